"""Runs made from runs: a larger budget, more seeds, or the seeds of several together."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxpg import fast, files
from jaxpg.core.config import Config
from jaxpg.core.rules import validate
from jaxpg.errors import RunError
from jaxpg.population import chunks, evaluations, own
from jaxpg.population.own import Build
from jaxpg.runs import checkpoints, lock, manifests, planning, starts
from jaxpg.runs.manifests import Manifest


def extend(
    directory: Path,
    total_steps: int | None,
    total_episodes: int | None,
    build: Build = fast.build,
) -> None:
    """Give a run a larger budget; `train` then goes on from where it is.

    Args:
      total_steps, total_episodes: per seed, in all; the one that its config counts in.
      build: makes the algorithm; the same that the run was begun with.

    Raises:
      RunError: if the run counts in the other unit, what an update does depends on the budget, the
        budget is smaller than it was, or it was begun by a version that trains to other bits.
      ConfigError: if the budget has no meaning.
    """
    with lock.locked(directory):
        manifest = manifests.read(directory)
        manifests.check_same_bits(directory, manifest)
        config = manifest.config
        unit = config.budget
        budget = {"total_steps": total_steps, "total_episodes": total_episodes}[unit]
        if budget is None:
            raise RunError(f"{directory} has collect={config.collect!r}, so it needs {unit}")
        if config.lr_schedule != "constant":
            raise RunError(
                f"{directory} cannot be extended: with lr_schedule={config.lr_schedule!r} the "
                "learning rate of every update depends on the budget; a run with "
                "lr_schedule='constant' can"
            )
        changed: dict[str, Any] = {unit: budget}
        longer = validate(dataclasses.replace(config, **changed))
        if manifest.evaluating is not None:
            evaluations.asked(longer, *manifest.evaluating)
        if budget < getattr(config, unit):
            raise RunError(f"{directory} already has {unit}={getattr(config, unit)}; got {budget}")
        if manifest.build is not None:
            _check_budget_is_unused(directory, manifest, longer, build)
        with files.writing(directory):
            manifests.write(directory, manifest._replace(config=longer))


def _check_budget_is_unused(
    directory: Path, manifest: Manifest, longer: Config, build: Build
) -> None:
    """Raise RunError if an algorithm of one's own trains otherwise with a larger budget."""
    texts = {
        chunks.programs_text(planning.make_chunks(one)[0], build)
        for one in (manifest, manifest._replace(config=longer))
    }
    if len(texts) > 1:
        raise RunError(
            f"{directory} cannot be extended: {manifest.build} depends on the budget, so that the "
            "updates it has made are not those of a longer run"
        )


def add_seeds(directory: Path, seeds: Sequence[int]) -> None:
    """Give a run more seeds; `train` then trains those, and the results are of all.

    They fill lanes of their own, so that nothing of what is trained is trained again.

    Raises:
      RunError: if the run has one of them, is in use, or was begun by a version that trains to
        other bits.
    """
    with lock.locked(directory):
        manifest = manifests.read(directory)
        manifests.check_same_bits(directory, manifest)
        twice = sorted(set(manifest.seeds) & set(seeds))
        if twice:
            raise RunError(f"{directory} already has the seed {twice[0]}")
        longer = manifest._replace(parts=(*manifest.parts, manifests.format_seeds(seeds)))
        with files.writing(directory):
            manifests.write(directory, longer)


def adopt(directory: Path, build: Build) -> None:
    """Go on with what makes the algorithm, and with an environment of one's own, as they are now;
    the manifest keeps the former hashes.

    Raises:
      ConfigError: if it has not the run's options any more.
      RunError: if the run is in use or cannot be written, or was begun by a version that trains to
        other bits.
    """
    with lock.locked(directory):
        manifest = manifests.read(directory)
        manifests.check_same_bits(directory, manifest)
        now = own.source(build)
        adopted = manifest._replace(
            build_sha256=now and now.sha256,
            options=own.options(build),
            env_sha256=own.env_sha256(manifest.config.env),
        )
        former = [
            was
            for was, is_now in (
                (manifest.build_sha256, adopted.build_sha256),
                (manifest.env_sha256, adopted.env_sha256),
            )
            if was != is_now and None not in (was, is_now)
        ]
        if former:
            known = manifest.made.get("former_sources", [])
            adopted = adopted._replace(made={**manifest.made, "former_sources": [*known, *former]})
        if adopted != manifest:
            with files.writing(directory):
                manifests.write(directory, adopted)


def merge(directories: Sequence[Path], out: Path) -> Manifest:
    """Make a new run of the seeds of several, with all that they have saved.

    Args:
      directories: runs of different seeds of one config with one number of lanes.
      out: new or empty; complete or not there.

    Raises:
      RunError: if they differ in more than their seeds, share one, or are in use, or `out` holds
        something.
    """
    with ExitStack() as held:
        for directory in dict.fromkeys(path.resolve() for path in directories):
            manifests.read(directory)  # so that nothing else gets a lock
            held.enter_context(lock.locked(directory))
        runs = [manifests.read(directory) for directory in directories]
        first = runs[0]
        for directory, run in zip(directories, runs, strict=True):
            manifests.check_same_bits(directory, run)
            same = run._replace(parts=first.parts)
            if None in (first.env_sha256, run.env_sha256):  # versions before did not write it
                same = same._replace(env_sha256=first.env_sha256)
            changed = manifests.differences(first, same)
            if changed:
                raise RunError(
                    f"{directory} and {directories[0]} differ in more than their seeds: "
                    f"{'; '.join(changed)}"
                )
        seeds = [seed for run in runs for seed in run.seeds]
        if len(set(seeds)) != len(seeds):
            twice = min(seed for seed in seeds if seeds.count(seed) > 1)
            raise RunError(f"the runs share seeds, such as {twice}")
        made = dict(first.made)
        former = [sha for run in runs for sha in run.made.get("former_sources", [])]
        if former:
            made["former_sources"] = list(dict.fromkeys(former))
        clocks = [checkpoints.seconds(directory) for directory in directories]
        earlier = (run.made.get(manifests.SECONDS, 0.0) for run in runs)
        made[manifests.SECONDS] = sum(earlier) + sum(clocks) - max(clocks)
        parts = tuple(part for run in runs for part in run.parts)
        whole = first._replace(parts=parts, made=made)
        with files.whole_directory(out, "--out") as partial:
            files.make_folder(partial / checkpoints.FOLDER)
            shift = 0
            for directory, run in zip(directories, runs, strict=True):
                _copy_checkpoints(directory, partial, shift)
                shift += manifests.num_chunks(run)
            starts.write(partial, starts.read(directories[0], first))
            manifests.write(partial, whole)
    return whole


def _copy_checkpoints(directory: Path, out: Path, shift: int) -> None:
    """Of all chunks, whose indices grow by `shift`; they are verified when they load."""
    for chain in checkpoints.listed(directory).values():
        for at in chain:
            name = checkpoints.name(shift + at.chunk, at.update, at.sha256)
            files.write(out / checkpoints.FOLDER / name, at.path.read_bytes())
