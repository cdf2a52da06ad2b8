"""The commands that train a run again, from its manifest alone. Imports no jax."""

import dataclasses
import shlex
from typing import Any

from jaxpg import words
from jaxpg.core.config import FIELDS, EnvParams
from jaxpg.core.presets import PRESETS
from jaxpg.population import own
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.sweep import Plan, written


def commands(manifest: Manifest, out: str = "again") -> list[str]:
    """Shell lines that make a run of the same bits, on the same versions and kind of machine.

    They are made of what decides the results, not of the command that the manifest recalls: that
    one knows nothing of a later `extend` or `merge`, and is anybody's text.

    Args:
      manifest: of a run of one setting.
      out: the directory that they train into.

    Returns:
      One line or more; a comment where the algorithm or the environment was made, or what it
      started from, by what no line can name.
    """
    if manifest.build is not None and not own.is_importable(manifest.build):
        return [f"# by jaxpg.train_population(…, build=…), with the algorithm of {manifest.build}"]
    env = manifest.config.env
    if manifest.env_sha256 is not None and ":" not in env:
        return [f"# by jaxpg.train_population(…), where {env} had been registered in Python"]
    if manifest.start is not None and manifest.start.run is None:
        return ["# by jaxpg.train_population(…, start_from=…), of a population in memory"]
    line = _line("train", manifest)
    if len(manifest.parts) == 1:
        return [shlex.join([*line, "--seeds", manifest.parts[0], "--out", out])]
    parts = [f"{out}-{i}" for i in range(len(manifest.parts))]
    lines = [
        shlex.join([*line, "--seeds", seeds, "--out", part])
        for seeds, part in zip(manifest.parts, parts, strict=True)
    ]
    return [*lines, shlex.join(["jaxpg", "merge", *parts, "--out", out])]


def sweep_command(plan: Plan) -> str:
    """A shell line that makes a sweep of the same bits, as `commands` of a run."""
    grid = [f"{name}={','.join(map(written, values))}" for name, values in plan.grid.items()]
    line = [*_line("sweep", plan), "--grid", *grid, "--seeds", plan.seeds, "--out", "again"]
    return shlex.join(line)


def _line(command: str, what: Manifest | Plan) -> list[str]:
    """What decides the results of a run or of a sweep's, as words of a command."""
    name = what.preset if what.preset in PRESETS else "vpg"
    line = ["jaxpg", command, name]
    for field in FIELDS:
        value = getattr(what.config, field)
        if value != getattr(PRESETS[name], field):
            line += _option(field, value)
    if what.build is not None:
        line += ["--algorithm", what.build]
        if what.options:
            line += ["--option", *words.parameters(what.options).split()]
    if what.evaluating is not None:
        every, episodes = map(str, what.evaluating)
        line += ["--evaluate-every", every, "--evaluate-episodes", episodes]
    if what.start is not None:
        line += ["--from", str(what.start.run)]
    return [*line, "--lanes", str(what.lanes)]


def changed(manifest: Manifest) -> dict[str, tuple[Any, Any]]:
    """Every field of the config: its value, and the preset's (None for an unknown preset)."""
    base = PRESETS.get(manifest.preset)
    values = dataclasses.asdict(manifest.config)
    return {name: (value, base and getattr(base, name)) for name, value in values.items()}


def _option(field: str, value: Any) -> list[str]:
    """A field as an option of `jaxpg train`."""
    name = field.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, EnvParams):
        return [f"--{name}", *words.parameters(value).split()]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}", *(x if isinstance(x, str) else repr(x) for x in values)]
