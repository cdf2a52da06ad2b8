"""How what a page shows was made, as its runs say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.runs.load import Run
from jaxpg.runs.manifests import Manifest


class Cost(NamedTuple):
    """What a run took."""

    steps: int  # of the environment
    seconds: float
    compiling: float  # seconds

    @classmethod
    def of(cls, run: Run) -> "Cost":
        """What it says of itself."""
        some = run.population
        steps = int(np.asarray(some.metrics.env_steps).sum(dtype=np.int64))
        return cls(steps, some.wall_seconds, some.compile_seconds)


def rows(what: Manifest, costs: Sequence[Cost]) -> list[tuple[str, str]]:
    """Names and values for a table.

    Args:
      what: was trained; of a sweep one of its runs, for all.
      costs: of each run.
    """
    steps, seconds, compiling = (sum(each) for each in zip(*costs, strict=True))
    speed = f", {words.short(steps / seconds)} a second" if seconds > 0 else ""
    found = [
        ("environment steps", f"{steps:,} in {seconds:,.0f} s{speed}"),
        ("compiling", f"{compiling:,.0f} s"),
        ("seeds", ", ".join(what.parts)),
        ("lanes", str(what.lanes)),
    ]
    if what.build is not None:
        source = f"{what.called}, of a file with SHA-256 {what.build_sha256}"
        found.insert(0, ("algorithm", source))
    if what.env_sha256 is not None:
        source = f"{what.config.env}, of a source with SHA-256 {what.env_sha256}"
        found.insert(0, ("environment", source))
    if what.start is not None:
        where = what.start.run or "a population in memory"
        found.append(("started from", f"{where}, of a manifest with SHA-256 {what.start.manifest}"))
    for kind in ("device", "versions"):
        entries = what.made.get(kind)
        if isinstance(entries, dict):
            known = {name: value for name, value in entries.items() if value != ""}
            found.append((kind, ", ".join(f"{name} {value}" for name, value in known.items())))
    commit = what.made.get("commit")
    return found if commit is None else [*found, ("commit", str(commit))]
