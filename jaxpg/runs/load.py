"""load: a finished run as one object, checked before it is believed. Executes nothing of it."""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors

from jaxpg import files, words
from jaxpg.core.config import Config
from jaxpg.core.networks import KERNEL
from jaxpg.core.types import Algorithm, Metrics, Params
from jaxpg.errors import RunError
from jaxpg.names import from_torch
from jaxpg.population import own
from jaxpg.population.chunks import CAUSES, COUNTED, metric_names
from jaxpg.population.evaluations import Evaluations, points
from jaxpg.population.own import Build
from jaxpg.population.policy import Policy, made
from jaxpg.population.settings import Setting, which, with_setting
from jaxpg.runs import manifests, results, starts
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.trained import Trained

if TYPE_CHECKING:
    import pandas

HEADER = 10_000  # bytes before the data of an array in results.npz, at most


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished run. A row is one seed with one setting, in the order of `manifest.rows`."""

    directory: Path
    manifest: Manifest
    summary: dict[str, Any]  # summary.json
    population: Trained  # arrays over rows and updates
    build: Build | None = None  # what made its algorithm, where it was given

    @property
    def config(self) -> Config:
        """What was trained, before any setting."""
        return self.manifest.config

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order; each was trained with every setting."""
        return self.manifest.seeds

    @property
    def settings(self) -> Sequence[Setting]:
        """The settings of traced hyperparameters; of most runs one, which is empty."""
        return self.manifest.settings

    def which(self, setting: int | None = None) -> int:
        """The index of a setting: the given one, or of the only one.

        Raises:
          RunError: if there is no such setting, or there are several and none is given.
        """
        return which(setting, self.settings)

    def config_of(self, setting: int | None = None) -> Config:
        """What a setting trained: the config with its values.

        Raises:
          RunError: as `which`.
        """
        return with_setting(self.config, self.settings[self.which(setting)])

    def __repr__(self) -> str:
        where = words.environment(self.config, self.manifest.varied)
        what = f"{self.manifest.called} on {where}, {words.seeds(len(self.seeds))}"
        return f"<Run {str(self.directory)!r}: {what}>"

    def row(self, seed: int | str, setting: int | None = None) -> int:
        """Where a seed is in the population.

        Args:
          seed: one of the run's, or "best", "worst" or "median" by final_return
            (`outcomes.typical`). A seed that diverged, or finished no episode, ranks below all
            others and never is the best; equal ones are ranked in their order, so that of three
            seeds these are three; of the two in the middle it is the lower one.
          setting: index in `settings`; where there is but one, it need not be said.

        Raises:
          RunError: as `which`; or if there is no such seed, or none good enough to be the best.
        """
        return self.population.row(seed, setting)

    def params(self, seed: int | str, setting: int | None = None) -> Params:
        """The trained parameters of one seed, as the networks take them; numpy leaves.

        Args, Raises: as of `row`. Of a seed that diverged they are the last finite ones.
        """
        row = self.row(seed, setting)
        return jax.tree.map(lambda leaf: leaf[row], self.population.params)

    def algorithm(self, setting: int | None = None) -> Algorithm | None:
        """What `build` makes of a setting; None without it: the config's.

        Raises:
          RunError: as `which`.
        """
        if self.build is None or self.manifest.build is None:
            return None
        config = self.config_of(setting)
        options = own.with_setting(self.manifest.options, self.settings[self.which(setting)])
        return made(self.build, config, options)

    def policy(
        self, seed: int | str, setting: int | None = None, algorithm: Algorithm | None = None
    ) -> Policy:
        """The trained policy of one seed, to act with.

        Args:
          seed, setting: as of `row`.
          algorithm: if the run was trained with parts of your own, and loaded without them.

        Raises:
          RunError: as `row`, or without those parts; ConfigError if the environment is not
            registered any more.
        """
        return self.population.policy(seed, setting, algorithm or self.algorithm(setting))

    def to_frame(self) -> "pandas.DataFrame":
        """The metrics as a tidy table: a line for each row and update.

        Returns:
          Columns: `setting` (and one for each hyperparameter that the settings set), `seed`,
          `update` (from 0), `total_env_steps` (of the seed, at the update's end), `mean_return`
          (of the episodes that ended in the update; NaN if none did), `frozen` (whether the seed
          had diverged), and the metrics of `results.npz` under their names.
        """
        return self.population.to_frame()

    def save(self, out: str | os.PathLike[str]) -> None:
        """Copy what the run is, checkpoints aside, into a directory that is new or empty.

        Raises:
          RunError: if `out` holds something or cannot be written.
        """
        with files.whole_directory(Path(out), "out") as partial:
            starts.write(partial, self.population.start)
            for name in (manifests.NAME, *results.FILES):
                files.write(partial / name, (self.directory / name).read_bytes())


def load(
    directory: str | os.PathLike[str],
    build: Build | None = None,
    *,
    changed_algorithm: bool = False,
) -> Run:
    """A finished run: its manifest, its summary, and what became of every seed.

    Reads JSON, npz and safetensors, without pickle; sizes, shapes, dtypes and SHA-256 are checked.

    Args:
      directory: that `jaxpg train` wrote.
      build: what made the algorithm, if it has parts of your own: its policies act by it.
      changed_algorithm: whether `build` may be another than that, or its source have changed.

    Raises:
      RunError: if it is no run, or not finished, or damaged, or `build` is not what made it.
    """
    directory = Path(directory)
    manifest = manifests.read(directory)
    if build is not None and not changed_algorithm:
        manifests.check_source(directory, manifest, own.source(build))
    summary = _summary(directory)
    order = np.array(manifest.rows)
    arrays: dict[str, Any] = _arrays(directory, summary, manifest, len(order))
    for name, values in zip(("seed", "setting"), order.T, strict=True):
        if not np.array_equal(arrays[name], values):
            raise RunError(f"{directory / 'results.npz'} has other {name}s than the manifest")
    cause, frozen_at = arrays["cause"], arrays["frozen_at"]
    agree = (cause > 0) == (frozen_at >= 0)
    in_range = (cause >= 0) & (cause < len(CAUSES)) & (frozen_at < manifest.config.num_updates)
    if not (agree & in_range & (frozen_at >= -1)).all():
        raise RunError(f"{directory / 'results.npz'} is damaged: its cause and frozen_at disagree")
    population = Trained(
        seeds=arrays["seed"],
        setting=arrays["setting"],
        params=_params(directory, summary, manifest, len(order)),
        metrics=Metrics(**{name: arrays[name] for name in metric_names(manifest.config)}),
        final_return=arrays["final_return"],
        frozen_at=frozen_at,
        cause=cause,
        lanes=manifest.lanes,
        compile_seconds=summary["compile_seconds"],
        wall_seconds=summary["wall_seconds"],
        manifest=manifest,
        evaluations=_evaluations(directory, manifest, arrays),
        start=starts.read(directory, manifest),
    )
    return Run(directory, manifest, summary, population, build)


def _summary(directory: Path) -> dict[str, Any]:
    """summary.json, which says whose results they are."""
    path, again = directory / "summary.json", manifests.resume_line(directory)
    try:
        summary = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{directory} is not finished: {again} finishes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({words.line(error)})") from None
    if not isinstance(summary, dict):
        raise RunError(f"{path} is damaged: it is no object")
    if summary.get("manifest") != manifests.sha256(directory):
        raise RunError(
            f"{directory} is not finished: its results are of another manifest; {again} finishes it"
        )
    for name in ("compile_seconds", "wall_seconds"):
        if not isinstance(summary.get(name), int | float) or isinstance(summary[name], bool):
            raise RunError(f"{path} is damaged: {name} is {summary.get(name)!r:.60}, not a number")
    if not isinstance(summary.get("sha256"), dict):
        raise RunError(
            f"{path} lacks sha256: the results are of a first version, which wrote others; "
            f"{manifests.NAME} says of which commit, and that one reads them"
        )
    return summary


def _content(directory: Path, name: str, summary: dict[str, Any]) -> bytes:
    """A file of the results, with the SHA-256 that the summary says."""
    path = directory / name
    with files.reading(path):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != summary["sha256"].get(name):
        again = manifests.resume_line(directory)
        advice = f": remove summary.json, and {again} writes the results again"
        raise RunError(
            f"{path} is damaged: it has not the SHA-256 that summary.json says"
            + (advice if manifests.read(directory).bits == manifests.BITS else "")
        )
    return content


def _arrays(
    directory: Path, summary: dict[str, Any], manifest: Manifest, rows: int
) -> dict[str, np.ndarray]:
    """The arrays of results.npz, whose sizes are known before one is unpacked."""
    path, config = directory / "results.npz", manifest.config
    floats, row, by_update = np.dtype(config.float_type), (rows,), (rows, config.num_updates)
    wanted: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "seed": (row, np.dtype("uint32")),
        "setting": (row, np.dtype("int32")),
        "final_return": (row, floats),
        "frozen_at": (row, np.dtype("int32")),
        "cause": (row, np.dtype("int32")),
    }
    for name in metric_names(config):
        wanted[name] = (by_update, np.dtype("int32") if name in COUNTED else floats)
    if manifest.evaluating is not None:
        times = len(points(config, manifest.evaluating.every))
        at, *returns = results.EVALUATIONS
        wanted[at] = ((times,), np.dtype("int32"))
        wanted |= dict.fromkeys(returns, ((rows, times), floats))
    content = _content(directory, path.name, summary)
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if sizes.keys() != {f"{name}.npy" for name in wanted}:
                odd = sorted(sizes.keys() ^ {f"{name}.npy" for name in wanted})[0]
                raise RunError(f"{path} is not of this run: see {odd!r:.60}")
            for name, (shape, dtype) in wanted.items():
                size = int(np.prod(shape)) * dtype.itemsize
                if not size <= sizes[f"{name}.npy"] <= size + HEADER:
                    raise RunError(f"{path} is not of this run: {name} has not the size it should")
                packed = io.BytesIO(archive.read(f"{name}.npy"))
                array = np.lib.format.read_array(packed, allow_pickle=False)
                if (array.shape, array.dtype) != (shape, dtype):
                    raise RunError(
                        f"{path} is not of this run: {name} is {array.dtype} {array.shape}, "
                        f"and should be {dtype} {shape}"
                    )
                arrays[name] = array
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, OSError) as error:
        raise RunError(f"{path} is damaged ({words.line(error):.200})") from None
    return arrays


def _evaluations(directory: Path, manifest: Manifest, arrays: dict[str, Any]) -> Evaluations | None:
    """Those while it trained, at the updates that the manifest says; None if it says none."""
    if manifest.evaluating is None:
        return None
    found = Evaluations(*(arrays[name] for name in results.EVALUATIONS))
    if found.update.tolist() != points(manifest.config, manifest.evaluating.every):
        raise RunError(
            f"{directory / 'results.npz'} was evaluated otherwise than the manifest says"
        )
    return found


def _params(directory: Path, summary: dict[str, Any], manifest: Manifest, rows: int) -> Params:
    """params.safetensors as a parameter tree, leaves [rows, ...]."""
    path = directory / "params.safetensors"
    content = _content(directory, path.name, summary)
    try:
        named = from_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({words.line(error):.200})") from None
    found = {name: (leaf.shape, leaf.dtype.name) for name, leaf in named.items()}
    if manifest.build is None:
        wanted = _param_shapes(manifest.config, named, rows)
    else:  # what networks of one's own have is theirs to know
        wanted = {name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in found.items()}
    if found != wanted:
        odd = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))[0]
        raise RunError(
            f"{path} does not fit the manifest: {odd!r:.60} is {found.get(odd, 'missing')}, "
            f"and should be {wanted.get(odd, 'missing')}"
        )
    return from_torch(named)


def _param_shapes(config: Config, named: dict[str, np.ndarray], rows: int) -> dict[str, Any]:
    """Shapes and dtypes by name, for the observations and outputs that these parameters have.

    What the environment decides (D and K) is taken from them, and must be the same throughout.
    """
    shared = config.networks == "shared"
    first = "torso" if shared else "policy"
    inputs = named.get(f"{first}.hidden_0.weight", np.zeros((0, 0, 0))).shape[-1]
    channels = named.get(f"{first}.conv_0.weight", np.zeros((0, 0, 0))).shape[2]
    outputs = named.get("policy.output.bias", np.zeros((0, 0))).shape[-1]
    if shared:
        heads = {"torso": None, "policy": outputs, "value": 1}
    else:
        heads = {"policy": outputs} | ({"value": 1} if config.critic else {})
    shapes: dict[str, tuple[int, ...]] = {}
    for network, width in heads.items():
        is_head = shared and network != "torso"
        sizes = [config.hidden_sizes[-1]] if is_head else [inputs, *config.hidden_sizes]
        layers = [f"hidden_{i}" for i in range(len(sizes) - 1)]
        if width is not None:
            sizes, layers = [*sizes, width], [*layers, "output"]
        for layer, (before, after) in zip(layers, pairwise(sizes), strict=True):
            shapes[f"{network}.{layer}.weight"] = (rows, after, before)
            shapes[f"{network}.{layer}.bias"] = (rows, after)
        convolved = [] if is_head else config.conv_features
        for i, (before, after) in enumerate(pairwise([channels, *convolved])):
            shapes[f"{network}.conv_{i}.weight"] = (rows, after, before, KERNEL, KERNEL)
            shapes[f"{network}.conv_{i}.bias"] = (rows, after)
    if "policy.log_std" in named:
        shapes["policy.log_std"] = (rows, outputs)
    if config.normalize_obs:
        mean = named.get("obs.mean", np.zeros((0, 0)))
        size = mean.shape[-1] if config.conv_features else inputs  # not known from a kernel
        shapes |= {"obs.count": (rows,), "obs.mean": (rows, size), "obs.var": (rows, size)}
    return {name: (shape, config.float_type) for name, shape in shapes.items()}
