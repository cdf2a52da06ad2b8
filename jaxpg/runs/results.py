"""The files that a training run leaves behind."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg import files, words
from jaxpg.analysis.measures import of_few, spread
from jaxpg.analysis.outcomes import (
    all_gone,
    evaluated,
    failed,
    is_known_who_solves,
    is_solved,
    learning,
    scores,
    select,
    solved_at,
)
from jaxpg.analysis.stats import iqm
from jaxpg.core.config import RECENT_EPISODES, Config
from jaxpg.names import to_torch
from jaxpg.population import provenance
from jaxpg.population.chunks import CAUSES
from jaxpg.population.evaluations import MODES
from jaxpg.population.population import Population
from jaxpg.population.settings import ENV
from jaxpg.runs import manifests
from jaxpg.runs.manifests import Manifest

EVALUATIONS = ("evaluated_at", "greedy_return", "sampled_return")  # as `Evaluations` has them
FILES = ("results.npz", "params.safetensors", "summary.json")  # the last says that all are there
NO_INTERVAL = {"ci95_low": None, "ci95_high": None}  # of numbers that are one made-up number


def save(
    directory: Path,
    what: Manifest,
    population: Population,
    device: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write results.npz, params.safetensors and then summary.json into a run's directory.

    Args:
      what: was trained, as the directory's manifest.json says.
      device: that trained, as of `provenance.device`; None for the manifest's.

    Returns:
      The summary.

    Raises:
      OSError: if they could not be written; summary.json is then that of before.
    """
    packed = io.BytesIO()
    seen = population.evaluations
    evaluations: dict[str, Any] = dict(zip(EVALUATIONS, seen, strict=True)) if seen else {}
    np.savez_compressed(
        packed,
        seed=population.seeds,
        setting=population.setting,
        final_return=population.final_return,
        frozen_at=population.frozen_at,
        cause=population.cause,
        **population.metrics.named(),
        **evaluations,
    )
    contents = {"results.npz": packed.getvalue(), "params.safetensors": packed_params(population)}
    for name, content in contents.items():
        files.write(directory / name, content)
    summary = {
        **summarize(what, population, device),
        "manifest": manifests.sha256(directory),
        "sha256": {name: hashlib.sha256(x).hexdigest() for name, x in contents.items()},
    }
    files.write(directory / "summary.json", files.as_json(summary))
    return summary


def packed_params(population: Population) -> bytes:
    """params.safetensors."""
    metadata = {
        "seeds": json.dumps(population.seeds.tolist()),
        "setting": json.dumps(population.setting.tolist()),
    }
    return files.safetensors(to_torch(population.params), metadata)


def summarize(
    what: Manifest, population: Population, device: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What summary.json says; every number a JSON number, or null where there is none."""
    config, population = what.config, population._replace(manifest=what)
    total_env_steps = int(population.metrics.env_steps.sum(dtype=np.int64))
    silent = population.metrics.episodes.sum(axis=1) == 0
    counted = scores(population)

    def outcome(rows: Any) -> dict[str, Any]:
        return _outcome(config, select(population, rows), counted[rows])

    def named(row: Any) -> dict[str, int]:
        return {"seed": int(population.seeds[row]), "setting": int(population.setting[row])}

    return {
        "preset": what.preset,
        "build": what.build,
        "options": dict(what.options),
        "env": config.env,
        "seeds": len(population.seeds) // len(what.settings),
        "lanes": population.lanes,
        "total_env_steps": total_env_steps,
        "wall_seconds": round(population.wall_seconds, 3),
        "compile_seconds": round(population.compile_seconds, 3),
        "env_steps_per_second": round(total_env_steps / population.wall_seconds),
        **outcome(slice(None)),
        "settings": [
            {"setting": dict(setting), **outcome(population.setting == i)}
            for i, setting in enumerate(what.settings)
        ],
        "seeds_without_episode": [named(i) for i in np.flatnonzero(silent)],
        "diverged": [
            {
                **named(i),
                "update": int(population.frozen_at[i]),
                "cause": CAUSES[population.cause[i]],
            }
            for i in np.flatnonzero(population.frozen_at >= 0)
        ],
        "config": shared(what),
        "versions": provenance.versions(config.env),
        "device": device or what.made.get("device"),
    }


def shared(what: Manifest) -> dict[str, Any]:
    """The fields of the config that all settings share."""
    varied = what.varied
    found = {k: v for k, v in dataclasses.asdict(what.config).items() if k not in varied}
    shared = {k: v for k, v in what.config.env_params.items() if f"{ENV}{k}" not in varied}
    return {**found, "env_params": shared}


def closing(summary: dict[str, Any], out: Path) -> str:
    """What a person is told at the end of a run."""
    speed, settings = words.short(summary["env_steps_per_second"]), len(summary["settings"])
    seconds = summary["wall_seconds"]
    times = f" with {settings} settings each" if settings > 1 else ""
    lines = [
        f"{words.seeds(summary['seeds'])}{times}, {summary['total_env_steps']:,} environment steps "
        f"in {seconds:.{1 if seconds < 10 else 0}f} s ({speed} steps/s; compiling took "
        f"{summary['compile_seconds']:.0f} s)"
    ]
    found = summary["final_return"]
    if found is None:
        lines.append("no episode ended: there is no return to report")
    else:
        said = {name: words.returned(x) for name, x in found.items() if x is not None}
        interval = ""
        if "ci95_low" in said:
            interval = f" (95 % interval {said['ci95_low']} to {said['ci95_high']})"
        together = ", all settings together" if settings > 1 else ""
        lines.append(
            f"return over the last 100 episodes{together}: IQM {said['iqm']}{interval}, worst seed "
            f"{said['min']}, best {said['max']}"
        )
        if interval:
            lines += of_few(summary["seeds"])
    silent = summary["seeds_without_episode"]
    if silent and found is not None:
        lines.append(
            f"{words.seeds(len(silent)) if settings == 1 else len(silent)} finished no episode, "
            f"the first of them seed {silent[0]['seed']}: they count as untrained"
        )
    if summary["solved_at"] is not None:
        share, at = summary["solved_fraction"], f"solved (>= {summary['solved_at']:g})"
        unknown = f"not known, for no seed has ended {RECENT_EPISODES} episodes"
        lines.append(f"{at}: {unknown if share is None else words.share(share)}")
    seen = summary["evaluations"]
    if seen:
        said = {mode: words.returned(parts["last"]["iqm"]) for mode, parts in seen.items()}
        lines.append(
            f"evaluated at its end: IQM {said['greedy']} greedily, {said['sampled']} sampled"
        )
    diverged = summary["diverged"]
    if diverged:
        first = diverged[0]
        lines.append(
            f"{len(diverged)} diverged and were frozen at their last finite state, the first of "
            f"them seed {first['seed']} at update {first['update']} ({first['cause']}): they count "
            "as untrained"
        )
    lines.append(f"{out}: {' '.join(reversed(FILES))}")
    if summary["learning"] and summary["learning"]["warning"]:
        lines.append(summary["learning"]["warning"])
    return "\n".join(lines)


def _outcome(config: Config, population: Population, counted: np.ndarray) -> dict[str, Any]:
    """The spread of what its rows count with, who solves the task, if they learnt."""
    target, learnt = solved_at(config), learning(config, population)
    solved = None
    if target is not None and is_known_who_solves(population):
        solved = float(is_solved(population, target).mean())
    found = None if np.isnan(counted).any() else spread(counted, population.setting)
    if found is not None and failed(population).all():  # all count with the floor
        found |= NO_INTERVAL
    return {
        "final_return": found,
        "solved_at": target,
        "solved_fraction": solved,
        "learning": learnt and learnt._asdict(),
        "evaluations": evaluations(config, population),
    }


def evaluations(config: Config, population: Population) -> dict[str, Any] | None:
    """Of the evaluations while it trained the last one, and that with the largest IQM; by mode.

    `at` is what each seed had spent of its budget. None if there was none.
    """
    seen = evaluated(population)
    if seen is None:
        return None
    found = {}
    for mode, returns in zip(MODES, seen[1:], strict=True):
        best = int(np.argmax(iqm(returns)))
        found[mode] = {
            name: {
                "at": int(seen.update[k]) * config.update_cost,
                **spread(returns[:, k], population.setting),
                **(NO_INTERVAL if all_gone(population, seen.update[k]) else {}),
            }
            for name, k in (("last", len(seen.update) - 1), ("best", best))
        }
    return found
