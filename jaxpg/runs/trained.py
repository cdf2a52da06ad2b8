"""What became of many seeds, as arrays, and what can be done with them: in memory or on disk."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from jaxpg.analysis.outcomes import RANKS, typical
from jaxpg.core.config import nearest
from jaxpg.core.types import Algorithm
from jaxpg.errors import RunError
from jaxpg.files import whole_directory
from jaxpg.names import from_torch, to_torch
from jaxpg.population.policy import Policy
from jaxpg.population.population import Population
from jaxpg.population.settings import integer, which, with_setting
from jaxpg.runs import manifests, results, starts
from jaxpg.runs.manifests import Manifest

if TYPE_CHECKING:
    import pandas


class Trained(Population):
    """A population that says what was trained, with what a run in a directory has.

    It adds no data, so whatever takes the arrays of a population takes it.
    """

    __slots__ = ()

    @property
    def what(self) -> Manifest:
        """What was trained.

        Raises:
          RunError: if its manifest is None, as of one that was put together by hand.
        """
        if self.manifest is None:
            raise RunError("this population does not say what was trained: its manifest is None")
        return cast(Manifest, self.manifest)

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of a run: spreads, what diverged, speed, config, versions."""
        summary = results.summarize(self.what, self)
        return json.loads(json.dumps(summary))  # tuples are lists there

    def row(self, seed: int | str, setting: int | None = None) -> int:
        """Where a seed is in the arrays; as `Run.row`."""
        count = int(self.setting.max()) + 1
        settings = [{}] * count if self.manifest is None else self.what.settings
        rows = np.flatnonzero(self.setting == which(setting, settings))
        if isinstance(seed, str):
            return _ranked(self, seed, rows)
        number = integer(seed)
        if number is None:
            raise RunError(f"seed must be an integer, or one of {', '.join(RANKS)}; got {seed!r}")
        seeds = self.seeds[rows]
        if number not in seeds:
            known = manifests.format_seeds(seeds.tolist())
            raise RunError(f"the run has no seed {seed}; its seeds are {known}")
        return int(rows[np.flatnonzero(seeds == number)[0]])

    def policy(
        self, seed: int | str, setting: int | None = None, algorithm: Algorithm | None = None
    ) -> Policy:
        """The trained policy of one seed; as `Run.policy`."""
        what = self.what
        if what.build is not None and algorithm is None:
            raise RunError(
                f"the run was trained with parts of your own ({what.build}), which its files do "
                "not hold: give what made them, as in load(…, build=build), which has the run's "
                "options"
            )
        row = self.row(seed, setting)
        params = jax.tree.map(lambda leaf: leaf[row], self.params)
        config = with_setting(what.config, what.settings[self.setting[row]])
        return Policy.of(config, params, algorithm)

    def to_frame(self) -> "pandas.DataFrame":
        """The metrics as a tidy table, a line for each row and update; as `Run.to_frame`."""
        import pandas

        metrics = self.metrics
        rows, updates = metrics.env_steps.shape
        update = np.arange(updates)
        frozen_at = self.frozen_at[:, None]
        mean = np.full(metrics.return_sum.shape, np.nan, metrics.return_sum.dtype)
        np.divide(metrics.return_sum, metrics.episodes, out=mean, where=metrics.episodes > 0)
        columns: dict[str, np.ndarray] = {"setting": np.repeat(self.setting, updates)}
        for name in self.what.varied:
            columns[name] = np.repeat(np.array(self.what.values(name))[self.setting], updates)
        columns |= {
            "seed": np.repeat(self.seeds, updates),
            "update": np.tile(update, rows),
            "total_env_steps": np.cumsum(metrics.env_steps, axis=1, dtype=np.int64).reshape(-1),
            "mean_return": mean.reshape(-1),
            "frozen": ((frozen_at >= 0) & (update >= frozen_at)).reshape(-1),
            **{name: values.reshape(-1) for name, values in metrics.named().items()},
        }
        return pandas.DataFrame(columns)

    def save(self, out: str | os.PathLike[str]) -> None:
        """Make the directory of a finished run, as `jaxpg train` leaves it, checkpoints aside.

        It can be loaded, reported, compared, evaluated and exported.

        Args:
          out: new or empty; complete or not there.

        Raises:
          RunError: if `out` holds something or cannot be written, or networks of your own have
            parameters that are not named as a file needs it.
        """
        what = self.what
        check_params(self.params)
        with whole_directory(Path(out), "out") as partial:
            starts.write(partial, self.start)
            manifests.write(partial, what)
            results.save(partial, what, self)


def check_params(params: Any) -> None:
    """Raise RunError unless these parameters come back from the names that a file gives them."""
    try:
        jax.tree.map(np.testing.assert_array_equal, params, from_torch(to_torch(params)))
    except (AssertionError, AttributeError, TypeError, ValueError):
        raise RunError(
            "parameters can be saved if they are arrays in dicts, whose keys are texts without a "
            "dot and not 'weight', and a 'kernel' has at least two axes"
        ) from None


def _ranked(population: Population, rank: str, rows: np.ndarray) -> int:
    """The best, worst or median one of these rows."""
    if rank not in RANKS:
        raise RunError(f"seed is {rank!r}, which is no integer{nearest(rank, RANKS)}")
    found = typical(population.final_return[rows], population.frozen_at[rows] >= 0)
    if rank not in found:
        raise RunError("the run has no best seed: none finished an episode without diverging")
    return int(rows[found[rank]])
