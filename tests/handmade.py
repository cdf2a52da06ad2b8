"""Finished runs made by hand: any returns, or any parameters, without training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg.core.config import Config
from jaxpg.core.types import Metrics
from jaxpg.population import provenance
from jaxpg.population.chunks import metric_names
from jaxpg.population.population import Population
from jaxpg.runs import manifests, results
from jaxpg.runs.load import Run
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.trained import Trained

EPISODES = 100  # that end in each update


def population(
    config: Config,
    returns: Any,
    frozen_at: dict[int, int] | None = None,
    steps_per_update: int | None = None,
) -> Population:
    """Seeds whose episodes of update u end with a mean return of returns[seed][u]; NaN: none end.

    Args:
      frozen_at: by row, the update before which it diverged.
      steps_per_update: environment steps; None for what an update takes of the budget.
    """
    returns = np.asarray(returns, float)
    rows, updates = returns.shape
    assert updates == config.num_updates
    rng = np.random.default_rng(0)
    frozen = np.full(rows, -1, np.int32)
    frozen[list(frozen_at or {})] = list((frozen_at or {}).values())
    gone = (frozen[:, None] >= 0) & (np.arange(updates) >= frozen[:, None])
    episodes = np.where(np.isnan(returns) | gone, 0, EPISODES).astype(np.int32)
    floats = {
        name: np.where(gone, np.nan, np.exp(rng.normal(size=returns.shape))).astype(np.float32)
        for name in metric_names(config)
    }
    counted = {
        "env_steps": np.where(gone, 0, steps_per_update or config.update_cost).astype(np.int32),
        "episodes": episodes,
        "return_sum": (np.nan_to_num(returns) * episodes).astype(np.float32),
    }
    last = [row[count > 0][-1:] for row, count in zip(returns, episodes, strict=True)]
    layers = {
        f"{layer}": {
            "kernel": rng.normal(size=(rows, before, after)).astype(np.float32),
            "bias": np.zeros((rows, after), np.float32),
        }
        for layer, before, after in (("hidden_0", 4, 3), ("output", 3, 2))
    }
    value = {**layers, "output": {name: x[..., :1] for name, x in layers["output"].items()}}
    return Population(
        seeds=np.arange(rows, dtype=np.uint32),
        setting=np.zeros(rows, np.int32),
        params={"policy": layers, "value": value},
        metrics=Metrics(**{**floats, **counted}),
        final_return=np.array([x[0] if len(x) else np.nan for x in last], np.float32),
        frozen_at=frozen,
        cause=(frozen >= 0).astype(np.int32),
        lanes=2,
        compile_seconds=1.0,
        wall_seconds=2.0,
    )


def run(
    directory: Path,
    returns: Any,
    *,
    frozen_at: dict[int, int] | None = None,
    steps_per_update: int | None = None,
    preset: str = "vpg",
    made: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A run directory; `fields` are of its config."""
    updates = np.shape(returns)[1]
    given = {"num_envs": 2, "num_steps": 10, "total_steps": 20 * updates, "hidden_sizes": (3,)}
    config = Config(**{**given, **fields})
    directory.mkdir()
    manifest = Manifest(
        preset, config, (f"0:{len(returns)}",), 2, 1, ({},), made or {"commit": "abc123"}
    )
    manifests.write(directory, manifest)
    whole = population(config, returns, frozen_at, steps_per_update)
    results.save(directory, manifest, whole, provenance.device())
    return directory


def in_memory(config: Config, params: Any, seeds: list[int]) -> Run:
    """A run that is in no directory, with these parameters, [S, ...] each, and nothing else."""
    nothing = dict.fromkeys(Metrics._fields)
    population = Trained(
        seeds=np.array(seeds, np.uint32),
        setting=np.zeros(len(seeds), np.int32),
        params=params,
        metrics=Metrics(**{**nothing, "env_steps": np.full((len(seeds), 1), config.update_cost)}),
        **dict.fromkeys(("final_return", "frozen_at", "cause")),
        lanes=2,
        compile_seconds=0.0,
        wall_seconds=0.0,
    )
    parts = (manifests.format_seeds(seeds),)
    manifest = Manifest("vpg", config, parts, 2, 1, ({},), {})
    return Run(None, manifest, {}, population._replace(manifest=manifest))


def with_manifest(run: Run, manifest: Manifest, **changes: Any) -> Run:
    """The run as if this had been its manifest."""
    population = run.population._replace(manifest=manifest)
    return dataclasses.replace(run, manifest=manifest, population=population, **changes)
