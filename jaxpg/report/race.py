"""What a race has found: a table on the terminal, decision.json, and race.png."""

import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg import files, words
from jaxpg.analysis.race import Pair, Round
from jaxpg.report import canvas, terminal
from jaxpg.report.canvas import ACCENT, MUTED
from jaxpg.runs.race import Race

NUMBERS, PICTURE = "decision.json", "race.png"
LETTERS = string.ascii_uppercase
ACROSS = 3  # pairs in a row of the picture


def line(race: Race, number: int, at: Round) -> str:
    """A round in a sentence."""
    said = "; ".join(_said(pair) for pair in at.pairs if pair.seeds == at.seeds)
    of = f"round {number} of {len(race.plan.rounds)}, {words.seeds(at.seeds)} each"
    return f"race: {of}: {said}"


def show(race: Race, found: Sequence[Round], scores: Sequence[np.ndarray]) -> None:
    """The race as it ended, on the terminal.

    Args:
      scores: of each contender, -inf of a seed that failed, as `runs.race.scores` has them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    last = found[-1]
    console = terminal.console()
    where = words.environment(race.contenders[0].config)
    risk = f"{race.plan.alpha:.3g}"
    console.print(escape(f"{where}; the chance of telling alike ones apart is held at {risk}"))
    seeds = trained(race, found)
    for letter, one, count, gone in zip(
        LETTERS, race.contenders, seeds, failed(seeds, scores), strict=False
    ):
        without = f", {gone} of them failed: below all others" if gone else ""
        about = f"{words.seeds(count)}{without}"
        console.print(escape(f"  {letter}  {one.name}  ({about})"), overflow="fold")
    table = Table("", "seeds", "P(first is better)", "p", "", box=SIMPLE_HEAD)
    for pair in last.pairs:
        low, high = pair.improvement.low, pair.improvement.high
        table.add_row(
            f"{LETTERS[pair.one]} against {LETTERS[pair.other]}",
            f"{pair.seeds:,}",
            f"{pair.improvement.value:.3f} ({low:.3f} to {high:.3f})",
            f"{pair.p_value:.2g}",
            _verdict(pair),
        )
    console.print(table)
    console.print(escape(outcome(race, last)), soft_wrap=True)


def outcome(race: Race, last: Round) -> str:
    """What is known at the end, in a sentence."""
    unbeaten = [LETTERS[i] for i in last.unbeaten]
    if len(unbeaten) == 1:
        (best,) = last.unbeaten
        name = race.contenders[best].name
        open_ = [
            LETTERS[pair.one + pair.other - best]
            for pair in last.pairs
            if best in pair[:2] and pair.better is None
        ]
        if not open_:
            return f"decided: {unbeaten[0]} is the best ({name})"
        return (
            f"decided: {unbeaten[0]} ({name}) alone has lost to nobody; but it was not told apart "
            f"from {' and '.join(open_)}"
        )
    if not unbeaten:
        return "decided, but without a best: each has lost to another"
    return (
        f"not decided between {' and '.join(unbeaten)} with {words.seeds(last.seeds)} of each, "
        "which does not say that they are alike"
    )


def trained(race: Race, found: Sequence[Round]) -> list[int]:
    """Seeds that each contender took part with."""
    last = found[-1].pairs
    return [max(pair.seeds for pair in last if i in pair[:2]) for i in range(len(race.contenders))]


def failed(seeds: Sequence[int], scores: Sequence[np.ndarray]) -> list[int]:
    """How many seeds of each contender diverged or finished no episode, of so many of it."""
    return [int(np.isneginf(x[:n]).sum()) for n, x in zip(seeds, scores, strict=True)]


def save(out: Path, race: Race, found: Sequence[Round], scores: Sequence[np.ndarray]) -> Path:
    """Write decision.json.

    Args:
      scores: as of `show`.

    Raises:
      RunError: if it cannot be written.
    """
    seeds = trained(race, found)
    content = {
        "alpha": race.plan.alpha,
        "planned_rounds": race.plan.rounds,
        "contenders": [
            {"letter": letter, "name": one.name, "directory": name, "seeds": count, "failed": gone}
            for letter, one, name, count, gone in zip(
                LETTERS, race.contenders, race.names, seeds, failed(seeds, scores), strict=False
            )
        ],
        "rounds": [
            {"seeds": at.seeds, "pairs": [_as_object(pair) for pair in at.pairs]} for at in found
        ],
        "unbeaten": [LETTERS[i] for i in found[-1].unbeaten],
        "outcome": outcome(race, found[-1]),
    }
    path = out / NUMBERS
    files.save(path, files.as_json(content))
    return path


def draw(out: Path, race: Race, found: Sequence[Round]) -> Path:
    """Draw race.png: of each pair P and its interval, round by round.

    Raises:
      RunError: if it cannot be written.
    """
    pairs = len(race.plan.pairs)
    across = min(ACROSS, pairs)
    down = -(-pairs // across)
    size, path = (1.2 + 3.4 * across, 0.9 + 2.6 * down), out / PICTURE
    with canvas.blank(size, dpi=150, layout="constrained") as figure:
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[pairs:]:
            axes.set_visible(False)
        for i, axes in enumerate(grid[:pairs]):
            seen = {at.pairs[i].seeds: at.pairs[i] for at in found}  # as last known of each round
            _draw_pair(axes, race, list(seen.values()))
        names = zip(LETTERS, race.contenders, strict=False)
        figure.suptitle(
            "\n".join(f"{letter}  {one.name}" for letter, one in names),
            x=0.01,
            ha="left",
            fontsize=10,
        )
        canvas.save(figure, path)
    return path


def _draw_pair(axes: Any, race: Race, seen: Sequence[Pair]) -> None:
    last = seen[-1]
    for pair in seen:
        value, low, high = pair.improvement
        axes.errorbar(
            pair.seeds,
            value,
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o",
            color=MUTED if pair.better is None else ACCENT,
            capsize=3,
        )
    axes.axhline(0.5, color=MUTED, linewidth=1)
    axes.set_xscale("log", base=2)
    planned = race.plan.rounds
    axes.set_xlim(planned[0] / 1.2, planned[-1] * 1.2)
    ticks = [n for n in planned if n in (planned[0], planned[-1], last.seeds)]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("seeds of each")
    axes.set_ylabel(f"P({LETTERS[last.one]} beats {LETTERS[last.other]})")
    axes.set_title(_verdict(last), loc="left", fontsize=10)


def _said(pair: Pair) -> str:
    one, other = LETTERS[pair.one], LETTERS[pair.other]
    value, low, high = pair.improvement
    return (
        f"{one} beats {other} with probability {value:.3f} ({low:.3f} to {high:.3f}): "
        f"{_verdict(pair)}"
    )


def _verdict(pair: Pair) -> str:
    return "not told apart" if pair.better is None else f"{LETTERS[pair.better]} is better"


def _as_object(pair: Pair) -> dict[str, Any]:
    return {
        "one": LETTERS[pair.one],
        "other": LETTERS[pair.other],
        "seeds": pair.seeds,
        # The interval has every P that is not struck out yet, at the race's alpha.
        "probability_of_improvement": {
            name: x if math.isfinite(x) else None for name, x in pair.improvement._asdict().items()
        },
        "p_value": pair.p_value,
        "better": None if pair.better is None else LETTERS[pair.better],
    }
