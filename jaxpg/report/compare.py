"""jaxpg compare: finished runs of one environment side by side, with intervals."""

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.budget import NEAR, STEPS, Budget, last_within, smallest, spent, taken
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.measures import MEASURES, as_json, measure, remarks, write, write_interval
from jaxpg.analysis.outcomes import Outcomes, lowest_floors, outcomes, select
from jaxpg.analysis.stats import (
    CONFIDENCE,
    Estimate,
    improvement,
    paired_improvement,
    seeds_needed,
)
from jaxpg.core.config import ConfigError, EnvParams
from jaxpg.errors import RunError
from jaxpg.report import canvas, figures, terminal
from jaxpg.report.canvas import MUTED
from jaxpg.runs.load import Run, load
from jaxpg.runs.manifests import sha256
from jaxpg.runs.sweep import said

POWER, ALPHA = 0.8, 0.05  # of the test for which seeds are counted
KINDS = (".png", ".svg", ".pdf")
LETTERS_OF_HALF = 65  # of a name in a legend


class Entry(NamedTuple):
    """One setting of one run."""

    letter: str
    name: str
    run: Run
    rows: np.ndarray  # of its population
    within: Budget | None  # the part of its training that is compared; None for all of it
    outcomes: Outcomes
    measures: dict[str, Estimate | None]

    @property
    def setting(self) -> int:
        """Its index in the run."""
        return int(self.run.population.setting[self.rows[0]])

    @property
    def seeds(self) -> np.ndarray:
        """Its seeds, [S]."""
        return self.run.population.seeds[self.rows]

    @property
    def world(self) -> tuple[EnvParams, str | None]:
        """The environment, which all have, with its own parameters and file."""
        return self.run.config_of(self.setting).env_params, self.run.manifest.env_sha256


class Pair(NamedTuple):
    """An entry held against another."""

    better: Entry
    than: Entry
    paired: bool  # whether both trained the same seeds
    improvement: Estimate | None  # P(a seed of `better` beats one of `than`); None without scores
    seeds: int | None  # of each, to tell them apart; None if they are alike


def entries(
    directories: Sequence[Path], target: float | None = None, labels: Sequence[str] = ()
) -> list[Entry]:
    """The settings of these runs, with their measures.

    Where budgets differ, what counts is what each seed was once the smallest of them was spent.

    Args:
      target: return that counts as solved; None takes the environment's own, if it has one.
      labels: what to call each of them; without any, directories and what they set.

    Raises:
      ConfigError: if labels are too few or too many.
      RunError: if a run is not finished or damaged, they are of different environments, or there
        are fewer than two.
    """
    runs = [load(directory) for directory in directories]
    for run in runs[1:]:
        for name in ("env", "max_episode_steps"):
            ours, theirs = (getattr(one.config, name) for one in (runs[0], run))
            if ours != theirs:
                raise RunError(
                    f"only runs of one environment can be compared; {runs[0].directory} has "
                    f"{name}={ours!r} and {run.directory} has {theirs!r}"
                )
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise RunError("every run can be given once only")
    within = smallest([(run.config, run.population) for run in runs])
    parts = [(run, setting) for run in runs for setting in range(len(run.settings))]
    if not 2 <= len(parts) <= len(string.ascii_uppercase):
        raise RunError(f"between 2 and 26 runs and settings can be compared; got {len(parts)}")
    if labels and len(labels) != len(parts):
        raise ConfigError(
            f"--label must name each of the {len(parts)} runs and settings, in their order; got "
            f"{len(labels)}"
        )
    found = list[Entry]()
    for letter, (run, setting) in zip(string.ascii_uppercase, parts, strict=False):
        rows = np.flatnonzero(run.population.setting == setting)
        ends = outcomes(run.config, select(run.population, rows), target, within)
        own = words.parameters(run.config.env_params, run.manifest.varied)
        name = f"{run.directory}  {own}".rstrip()
        if len(run.settings) > 1:
            name += f"  {said(run.settings[setting])}"
        if labels:
            name = labels[len(found)]
        found.append(Entry(letter, name, run, rows, within, ends, {}))
    return [entry._replace(measures=measure(entry.outcomes)) for entry in _with_a_floor(found)]


def _with_a_floor(entries: list[Entry]) -> list[Entry]:
    """Seeds that failed count alike in all that act in one environment."""
    floors = lowest_floors((entry.world, entry.outcomes.floor) for entry in entries)
    found = []
    for entry in entries:
        ends = entry.outcomes
        if not np.isnan(ends.floor):  # else it has no numbers at all
            ends = ends._replace(floor=floors[entry.world])
        found.append(entry._replace(outcomes=ends))
    return found


def pairs(entries: Sequence[Entry], against: str = "A") -> list[Pair]:
    """Every entry against one of them.

    Args:
      against: its letter.

    Raises:
      ConfigError: if none has it.
    """
    letters = [entry.letter for entry in entries]
    if against not in letters:
        raise ConfigError(f"--against must be one of {', '.join(letters)}; got {against!r}")
    base = entries[letters.index(against)]
    return [_held(entry, base) for entry in entries if entry is not base]


def _held(entry: Entry, base: Entry) -> Pair:
    # One floor for both: seeds that failed are equal, in whichever run.
    floor = float(np.minimum(entry.outcomes.floor, base.outcomes.floor))
    ours, theirs = (one.outcomes._replace(floor=floor).scores for one in (entry, base))
    paired = _are_paired(entry, base)
    if not len(ours):
        return Pair(entry, base, paired, None, None)
    if paired:
        ours, theirs = ours[np.argsort(entry.seeds)], theirs[np.argsort(base.seeds)]
        probability = paired_improvement(ours, theirs)
    else:
        probability = improvement([ours], [theirs])
    needed = seeds_needed(ours, theirs, POWER, ALPHA, paired=paired)
    return Pair(entry, base, paired, probability, needed)


def _are_paired(one: Entry, other: Entry) -> bool:
    return np.array_equal(np.sort(one.seeds), np.sort(other.seeds))


def notes(entries: Sequence[Entry], held: Sequence[Pair]) -> list[str]:
    """What a reader must know besides: unequal budgets, which come first, other worlds, what was
    trained before, what intervals are of, and seeds unlike the others."""
    whose: dict[str, list[str]] = {}
    for entry in entries:
        for line in remarks(entry.outcomes):
            whose.setdefault(line, []).append(entry.letter)
    seeds = [f"{', '.join(letters)}: {line}" for line, letters in whose.items()]
    return budgets(entries) + worlds(entries) + starts(entries) + comparisons(held) + seeds


def comparisons(held: Sequence[Pair]) -> list[str]:
    """What the probabilities of improvement take for granted."""
    lines = []
    paired = [pair.better.letter for pair in held if pair.paired]
    within = "probabilities are of differences within a seed"
    if held and len(paired) == len(held):
        lines.append(f"all trained the same seeds: {within}")
    elif paired:
        theirs = f"{', '.join(paired)} trained the seeds of {held[0].than.letter}"
        lines.append(f"{theirs}, others did not: only their {within}")
    if len(held) > 1:
        lines.append(
            f"each of the {len(held)} comparisons may tell apart what is alike in 5 % of all "
            "cases, and one of them in more: jaxpg race keeps to 5 % for all"
        )
    return lines


def worlds(entries: Sequence[Entry]) -> list[str]:
    """That not all act in the same environment; nothing if they do."""
    lines = []
    for what, values in (
        ("parameters", {entry.world[0] for entry in entries}),
        ("source files", {entry.world[1] for entry in entries}),
    ):
        if len(values) > 1:
            lines.append(
                f"{what} of the environment differ: which return is higher says as much of them as "
                "of what was trained"
            )
    return lines


def starts(entries: Sequence[Entry]) -> list[str]:
    """Which of them start from a finished run; nothing if none does."""
    known = {sha256(entry.run.directory): entry.letter for entry in reversed(entries)}
    lines = []
    for entry in entries:
        origin = entry.run.manifest.start
        if origin is not None:
            whose = known.get(origin.manifest) or origin.run or "a population in memory"
            lines.append(
                f"{entry.letter} starts from what {whose} had trained, which is not in its budget: "
                "it is no fair comparison with what starts anew"
            )
    return lines


def budgets(entries: Sequence[Entry]) -> list[str]:
    """What unequal budgets mean for a comparison; nothing if they are equal."""
    within = entries[0].within
    if within is None:
        return []
    given = ", ".join(f"{entry.letter} {_budget(entry)}" for entry in entries)
    lines = [f"budgets differ ({given}): all are compared after {within.said} of each seed"]
    lines += filter(None, map(_cut_short, entries))
    falling = [entry.letter for entry in entries if _falls(entry)]
    if falling:
        lines.append(
            f"the learning rate of {' and '.join(falling)} falls over a larger budget than that: "
            "trained for so much alone, it would have learnt otherwise"
        )
    return lines


def as_object(entries: Sequence[Entry], held: Sequence[Pair]) -> dict[str, Any]:
    """Everything for JSON."""
    solving = entries[0].outcomes.solving
    return {
        "env": entries[0].run.config.env,
        "solved_at": solving and solving.target,
        "confidence": CONFIDENCE,
        "compared_after": entries[0].within and entries[0].within._asdict(),
        "runs": [
            {
                "letter": entry.letter,
                "directory": str(entry.run.directory),
                "preset": entry.run.manifest.preset,
                "algorithm": entry.run.manifest.called,
                "setting": dict(entry.run.settings[entry.setting]),
                "seeds": len(entry.rows),
                "budget": taken(entry.run.config)._asdict(),
                "diverged": int(entry.outcomes.diverged.sum()),
                "without_episode": int(np.isnan(entry.outcomes.final).sum()),
                "measures": {name: as_json(one) for name, one in entry.measures.items()},
            }
            for entry in entries
        ],
        "pairs": [
            {
                "better": pair.better.letter,
                "than": pair.than.letter,
                "same_seeds": pair.paired,
                "probability_of_improvement": as_json(pair.improvement),
                "seeds_needed": {"each": pair.seeds, "power": POWER, "alpha": ALPHA},
            }
            for pair in held
        ],
        "notes": notes(entries, held),
    }


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Learning curves, intervals, profiles and times to solve, as PNG, SVG or PDF.

    Raises:
      RunError: if the file cannot be written.
    """
    solving, within = entries[0].outcomes.solving, entries[0].within
    units = {entry.run.config.unit for entry in entries}
    spent_in = units.pop() if len(units) == 1 else STEPS
    named = [_described(entry) for entry in entries]
    columns = 2 if len(entries) > 3 and max(map(len, named)) <= LETTERS_OF_HALF else 1
    size = (10, 6.2 + 0.2 * -(-len(entries) // columns))
    with canvas.blank(size, dpi=150, layout="constrained") as figure:
        curves, intervals, profiles, times = figure.subplots(2, 2).ravel()
        ends = []
        for i, entry in enumerate(entries):
            look = figures.look(i)
            config, population = entry.run.config, entry.run.population
            part = select(population, entry.rows)
            amount, returns = curve_points(config, part, spent_in, entry.outcomes.floor)
            ends.append(float(amount[-1]))
            figures.draw_iqm(curves, amount, returns, label=named[i], **look)
            iqm = entry.measures["iqm"]
            if iqm is not None:
                span = [[iqm.value - iqm.low], [iqm.high - iqm.value]]
                intervals.errorbar(
                    iqm.value, -i, xerr=span, fmt="o", color=look["color"], capsize=3
                )
                figures.draw_profile(profiles, entry.outcomes.scores, **look)
            if entry.outcomes.solving is not None:
                watched = within or Budget(int(amount[-1]), spent_in)
                figures.draw_time_to_solve(times, entry.outcomes.solving, watched, **look)
        figures.label_budget(curves, spent_in, max(ends))
        figures.label_budget(times, spent_in, within.amount if within else max(ends))
        if within is not None:
            curves.axvline(within.amount, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        figures.draw_target(curves, solving and solving.target)
        figures.label_returns(curves)
        intervals.set_yticks([-i for i in range(len(entries))], [entry.letter for entry in entries])
        intervals.set_ylim(0.5 - len(entries), 0.5)
        intervals.set_xlabel("final return, IQM")
        times.set_visible(solving is not None)
        final = f"Return after {within.said}" if within else "Final return"
        titles = ("Learning curves (IQM)", final, "Performance profiles", "Time to solve")
        for axes, title in zip((curves, intervals, profiles, times), titles, strict=True):
            axes.set_title(title, loc="left", fontsize=11)
        figure.legend(
            title=f"{entries[0].run.config.env}; 95 % intervals over seeds",
            alignment="left",
            loc="outside upper left",
            ncols=columns,
            fontsize=9,
        )
        canvas.save(figure, path, path.suffix[1:])


def show(entries: Sequence[Entry], held: Sequence[Pair]) -> None:
    """All of it on the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    console = terminal.console()
    solving = entries[0].outcomes.solving
    solved = f", solved from {solving.target:g}" if solving else ""
    first = budgets(entries)
    for line in first:
        console.print(escape(line), soft_wrap=True)
    console.print(f"{escape(entries[0].run.config.env)}{solved}; 95 % intervals over seeds")
    for entry in entries:
        console.print(f"  {escape(_described(entry))}", overflow="fold")
    for part in _side_by_side(entries, console.width):
        table = Table("", *(entry.letter for entry in part), box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, about in MEASURES.items():
            cells = [_cell(entry.measures[name], about.kind) for entry in part]
            if any(cells):
                table.add_row(about.label, *(cell or "-" for cell in cells))
        console.print(table)
    for pair in held:
        console.print(_verdict(pair), soft_wrap=True)
    for line in notes(entries, held)[len(first) :]:
        console.print(escape(line))


def _described(entry: Entry) -> str:
    """Its letter, what it is, and how much of it there is."""
    about = f"{entry.run.manifest.called}, {words.seeds(len(entry.rows))}, {_budget(entry)}"
    return f"{entry.letter}  {entry.name}  ({about})"


def _side_by_side(entries: Sequence[Entry], width: int) -> Iterator[list[Entry]]:
    """As many of them at a time as so many letters hold, with the names of the measures."""
    margin = 3  # of a column
    label = max(len(about.label) for about in MEASURES.values()) + margin
    part, left = list[Entry](), width - label
    for entry in entries:
        cells = (_cell(one, MEASURES[name].kind) for name, one in entry.measures.items())
        needed = max(len(line) for cell in cells for line in (cell or "-").split("\n")) + margin
        if part and needed > left:
            yield part
            part, left = [], width - label
        part.append(entry)
        left -= needed
    yield part


def _cell(one: Estimate | None, kind: str) -> str:
    return "" if one is None else f"{write(one.value, kind)}\n{write_interval(one, kind)}"


def _verdict(pair: Pair) -> str:
    """What a pair says, in a sentence."""
    one, better, than = pair.improvement, pair.better.letter, pair.than.letter
    if one is None:
        return f"{better} against {than}: one of them has no returns"
    if one.low > 0.5:
        says = f"{better} is better"
    elif one.high < 0.5:
        says = f"{than} is better"
    else:
        says = "not told apart"
    if pair.seeds is None:
        seeds = "these seeds say nothing of which is better"
    else:
        seeds = f"if it is as these seeds say, {pair.seeds:,} of each tell them apart ({POWER:.0%})"
    after = f" after {pair.than.within.said}" if pair.than.within else ""
    return (
        f"{better} beats {than} with probability {one.value:.3f} "
        f"({one.low:.3f} to {one.high:.3f}){after}: {says}; {seeds}"
    )


def _budget(entry: Entry) -> str:
    """What a run gave to each seed; in steps too, where that is what it is compared in."""
    config, within = entry.run.config, entry.within
    own = taken(config)
    if within is None or within.unit == own.unit:
        return own.said
    used = spent(config, entry.run.population, within.unit)[entry.rows, -1]
    took = " to ".join(dict.fromkeys(words.amount(x) for x in (used.min(), used.max())))
    return f"{own.said} in {took} steps"


def _cut_short(entry: Entry) -> str | None:
    """That what counts of it is a fiftieth less than what is compared: only whole updates do."""
    within, healthy = entry.within, ~entry.outcomes.diverged
    if within is None or not healthy.any():
        return None
    used = spent(entry.run.config, entry.run.population, within.unit)[entry.rows][healthy]
    last = last_within(used, within)
    if within.amount - last.min() <= NEAR * within.amount:
        return None
    at = " to ".join(dict.fromkeys(words.amount(x) for x in (last.min(), last.max())))
    return f"{entry.letter} is what its last whole update by then had made of it, after {at}"


def _falls(entry: Entry) -> bool:
    """Whether its learning rate is made for a larger budget than what is compared."""
    config, within = entry.run.config, entry.within
    if within is None or config.lr_schedule == "constant":
        return False
    used = spent(config, entry.run.population, within.unit)[entry.rows, -1]
    return bool((used > within.amount).any())
