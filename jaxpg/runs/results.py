"""The files that a training run leaves behind."""

import dataclasses
import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from jaxpg import words
from jaxpg.analysis.measures import spread
from jaxpg.analysis.outcomes import scores
from jaxpg.analysis.stats import SOLVED
from jaxpg.core.config import Config
from jaxpg.names import to_torch
from jaxpg.population import devices
from jaxpg.population.chunks import CAUSES
from jaxpg.population.population import Population
from jaxpg.population.settings import Setting
from jaxpg.report.figures import learning_curve

FILES = ("results.npz", "params.safetensors", "curve.png", "summary.json")


def save(
    directory: Path,
    preset: str,
    config: Config,
    population: Population,
    manifest: str | None = None,
    settings: Sequence[Setting] = ({},),
) -> dict[str, Any]:
    """Write summary.json, results.npz, params.safetensors and curve.png into a directory.

    Args:
      manifest: SHA-256 of the run's manifest.json, for the summary.
      settings: what `population.setting` is the index of.

    Returns:
      The summary.
    """
    metrics = population.metrics
    arrays = {name: getattr(metrics, name) for name in metrics._fields}
    np.savez_compressed(
        directory / "results.npz",
        seed=population.seeds,
        setting=population.setting,
        final_return=population.final_return,
        frozen_at=population.frozen_at,
        cause=population.cause,
        **arrays,
    )
    metadata = {
        "seeds": json.dumps(population.seeds.tolist()),
        "setting": json.dumps(population.setting.tolist()),
    }
    weights = to_safetensors(to_torch(population.params), metadata)
    (directory / "params.safetensors").write_bytes(weights)
    sha256 = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in ("results.npz", "params.safetensors")
    }
    summary = {
        **summarize(preset, config, population, settings),
        "manifest": manifest,
        "sha256": sha256,
    }
    text = json.dumps(summary, indent=2, allow_nan=False)
    (directory / "summary.json").write_text(text + "\n")
    learning_curve(config, population, directory / "curve.png")
    return summary


def summarize(
    preset: str, config: Config, population: Population, settings: Sequence[Setting] = ({},)
) -> dict[str, Any]:
    """What summary.json says; every number a JSON number, or null where there is none."""
    total_env_steps = int(population.metrics.env_steps.sum(dtype=np.int64))
    frozen = np.flatnonzero(population.frozen_at >= 0)
    silent = population.metrics.episodes.sum(axis=1) == 0
    return {
        "preset": preset,
        "env": config.env,
        "seeds": len(population.seeds) // len(settings),
        "lanes": population.lanes,
        "total_env_steps": total_env_steps,
        "wall_seconds": round(population.wall_seconds, 3),
        "compile_seconds": round(population.compile_seconds, 3),
        "env_steps_per_second": round(total_env_steps / population.wall_seconds),
        **_outcome(config, population, slice(None)),
        "settings": [
            {"setting": dict(setting), **_outcome(config, population, population.setting == i)}
            for i, setting in enumerate(settings)
        ],
        "seeds_without_episode": population.seeds[silent].tolist(),
        "diverged": [
            {
                "seed": int(population.seeds[i]),
                "setting": int(population.setting[i]),
                "update": int(population.frozen_at[i]),
                "cause": CAUSES[population.cause[i]],
            }
            for i in frozen
        ],
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "device": device(),
    }


def closing(summary: dict[str, Any], out: Path) -> str:
    """What a person is told at the end of a run."""
    speed = summary["env_steps_per_second"] / 1e6
    times = (
        f" with {len(summary['settings'])} settings each" if len(summary["settings"]) > 1 else ""
    )
    lines = [
        f"{words.seeds(summary['seeds'])}{times}, {summary['total_env_steps']:,} environment steps "
        f"in {summary['wall_seconds']:.0f} s ({speed:.2f} M steps/s; compiling took "
        f"{summary['compile_seconds']:.0f} s)"
    ]
    found = summary["final_return"]
    if found is None:
        lines.append("no episode ended: there is no return to report")
    else:
        said = {name: words.returned(number) for name, number in found.items()}
        lines.append(
            f"return over the last 100 episodes: IQM {said['iqm']} "
            f"(95 % interval {said['ci95_low']} to {said['ci95_high']}), "
            f"worst seed {said['min']}, best {said['max']}"
        )
    if summary["solved_fraction"] is not None:
        share = words.share(summary["solved_fraction"])
        lines.append(f"solved (>= {summary['solved_at']:g}): {share}")
    diverged = summary["diverged"]
    if diverged:
        first = diverged[0]
        lines.append(
            f"{len(diverged)} diverged and were frozen at their last finite state, the first of "
            f"them seed {first['seed']} at update {first['update']} ({first['cause']})"
        )
    lines.append(f"{out}: summary.json results.npz params.safetensors curve.png")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of Python and of every package that the numbers depend on."""
    packages = ("jaxpg", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def device() -> dict[str, Any]:
    """What the numbers were computed on, how many devices, or cores of a CPU, and in which form."""
    import jax

    from jaxpg.fast import backend

    first = jax.devices()[0]
    count = devices.cpu_count() if first.platform == "cpu" else jax.device_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": count,
        "form": backend.form(),
    }


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _outcome(config: Config, population: Population, rows: Any) -> dict[str, Any]:
    """Of these rows: the spread of what they count with, and how many solve the task."""
    finals, counted = population.final_return[rows], scores(population)[rows]
    solved = SOLVED.get(config.env)
    # A row that finished no episode, or diverged, has not solved its task.
    reached = (population.frozen_at[rows] < 0) & (
        np.nan_to_num(finals, nan=-np.inf) >= (solved or 0)
    )
    return {
        "final_return": None if np.isnan(counted).any() else spread(counted),
        "solved_at": solved,
        "solved_fraction": None if solved is None else float(np.mean(reached)),
    }
