"""What a sweep has found: its points, as a table on the terminal and as a page."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.budget import Budget, taken
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.measures import (
    MEASURES,
    last_evaluation,
    measure,
    of_few,
    of_long_memory,
    write,
    write_interval,
)
from jaxpg.analysis.outcomes import Outcomes, lowest_floors, outcomes, select
from jaxpg.analysis.stats import (
    CONFIDENCE,
    Estimate,
    estimate_over_seeds,
    mean_iqm,
    paired_improvement,
)
from jaxpg.errors import RunError
from jaxpg.population.evaluations import MODES
from jaxpg.population.settings import ENV, with_values
from jaxpg.report import canvas, figures, made, terminal
from jaxpg.report.canvas import (
    ACCENT,
    GRID,
    HIGH,
    INK,
    MUTED,
    ON_HIGH,
    ON_LOW,
    PAPER,
    SERIES,
    SHADES,
    Drawn,
    Picture,
)
from jaxpg.report.html import render, save
from jaxpg.runs import manifests, reproduce, sweep
from jaxpg.runs.load import Run, load

LETTER = 6.0  # points that one of a label takes, about
SHOWN = 20  # points in the table on the terminal
CURVES = 4  # points whose learning curves are drawn
TABLED = ("iqm", "solved", "collapse", "time_to_solve")
FAILED: dict[str, Callable[[Outcomes], np.ndarray]] = {
    "diverged": lambda ends: ends.diverged,
    "no episode": lambda ends: np.isnan(ends.final) & ~ends.diverged,
}


class Point(NamedTuple):
    """One combination of the grid's values."""

    values: dict[str, Any]
    directory: Path
    setting: int  # index in its run's settings
    outcomes: Outcomes
    measures: dict[str, Estimate | None]
    evaluated: dict[str, Estimate]  # the IQM of the last evaluation while it trained, by mode
    taken: Budget  # what each of its seeds was trained for
    amount: np.ndarray  # [P]
    returns: np.ndarray  # [S, P]

    @property
    def score(self) -> float:
        """What points are ordered by: the IQM of the final return; -inf without one."""
        found = self.measures["iqm"]
        return -math.inf if found is None else found.value


class Found(NamedTuple):
    """A sweep's points, in the order of its grid."""

    directory: Path
    algorithm: str  # for people
    config: Any
    grid: dict[str, list[Any]]
    seeds: str
    points: list[Point]
    made: list[tuple[str, str]]  # how, as `made.rows`
    commit: str | None
    commands: list[str]  # that make it again; none of a run whose settings are no grid

    @property
    def varied(self) -> list[str]:
        """The fields that take several values."""
        return [name for name, values in self.grid.items() if len(values) > 1]

    @property
    def apart(self) -> list[str]:
        """The parameters of the environment that it varies: each value is another task."""
        return [name for name in self.varied if name.startswith(ENV)]

    @property
    def best(self) -> list[Point]:
        """Those with the highest IQM; none where no episode ended, or points are of other tasks."""
        if self.apart:
            return []
        score = self.ranked[0].score
        return [one for one in self.points if math.isfinite(score) and one.score == score]

    @property
    def ranked(self) -> list[Point]:
        """The best first; of equal ones the first of the grid."""
        return sorted(self.points, key=lambda point: -point.score)

    @property
    def taken(self) -> list[Budget]:
        """What seeds were trained for, in ascending order: of most sweeps one budget."""
        return sorted({point.taken for point in self.points})

    @property
    def modes(self) -> list[str]:
        """Of the evaluations while it trained, as far as a point has any that are numbers."""
        return [mode for mode in MODES if any(mode in point.evaluated for point in self.points)]


def load_sweep(directory: Path, target: float | None = None) -> Found:
    """A finished sweep, or a finished run of several settings.

    Args:
      target: return that counts as solved; None takes the environment's own, if it has one.

    Raises:
      RunError: if a run of it is not finished or damaged, or has other seeds.
    """
    if sweep.is_sweep(directory):
        plan = sweep.read(directory)
        points, costs = list[Point](), list[made.Cost]()
        for name, program in zip(plan.names, plan.programs, strict=True):
            run = load(directory / name)
            planned = with_values(plan.config, program)
            manifests.check_planned(
                run.directory, run.manifest, planned, "sweep", run.manifest.varied
            )
            if run.seeds != list(manifests.parse_seeds(plan.seeds)):  # compared one by one
                raise RunError(
                    f"{run.directory} has the seeds {','.join(run.manifest.parts)}, and the sweep "
                    f"that it is a part of {plan.seeds}: jaxpg report {run.directory} shows it"
                )
            points += _points(run, program, target)
            costs.append(made.Cost.of(run))
        order = {_key(values): i for i, values in enumerate(plan.combinations)}
        points.sort(key=lambda point: order[_key(point.values)])
        return Found(
            directory=directory,
            algorithm=plan.build or plan.preset,
            config=plan.config,
            grid=plan.grid,
            seeds=plan.seeds,
            points=_with_a_floor(points),
            made=made.rows(run.manifest, costs),
            commit=run.manifest.made.get("commit"),
            commands=[reproduce.sweep_command(plan)],
        )
    run = load(directory)
    values = {name: run.manifest.values(name) for name in run.manifest.varied}
    points = _with_a_floor(_points(run, {}, target))
    points = [
        point._replace(values={name: values[name][point.setting] for name in values})
        for point in points
    ]
    return Found(
        directory=directory,
        algorithm=run.manifest.called,
        config=run.config,
        grid={name: list(dict.fromkeys(values[name])) for name in values},
        seeds=",".join(run.manifest.parts),
        points=points,
        made=made.rows(run.manifest, [made.Cost.of(run)]),
        commit=run.manifest.made.get("commit"),
        commands=_of_its_sweep(run),
    )


def _of_its_sweep(run: Run) -> list[str]:
    """The command that made the sweep which a run is a part of, if it is."""
    directory = run.directory.resolve()
    if not sweep.is_sweep(directory.parent):
        return []
    plan = sweep.read(directory.parent)
    return [reproduce.sweep_command(plan)] if directory.name in plan.names else []


def _points(run: Run, program: dict[str, Any], target: float | None) -> list[Point]:
    found = []
    for i, setting in enumerate(run.settings):
        part = select(run.population, run.population.setting == i)
        ends = outcomes(run.config, part, target)
        values = {**program, **setting}
        seen = last_evaluation(part)
        # Its floor is known once all points are: -inf stands for it.
        of_curve = (taken(run.config), *curve_points(run.config, part, least=-math.inf))
        found.append(Point(values, run.directory, i, ends, measure(ends), seen, *of_curve))
    return found


def _with_a_floor(points: list[Point]) -> list[Point]:
    """Seeds that failed count alike in all points of one environment; in points where no episode
    ended, with the lowest floor of all."""
    floors = lowest_floors((_world(point), point.outcomes.floor) for point in points)
    lowest = min(floors.values(), default=math.nan)
    found = []
    for point in points:
        floor = floors.get(_world(point), lowest)
        ends = point.outcomes._replace(floor=floor)
        returns = np.where(np.isneginf(point.returns), floor, point.returns)
        found.append(point._replace(outcomes=ends, measures=measure(ends), returns=returns))
    return found


def _world(point: Point) -> str:
    return _key({name: x for name, x in point.values.items() if name.startswith(ENV)})


def _key(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


def show(found: Found) -> None:
    """The points on the terminal, the best first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = terminal.console()
    failed = _failed(found)
    heads = ["IQM", "95 %", "solved", *failed]
    heads += [f"{mode} IQM" for mode in found.modes]
    rows = []
    for i, point in enumerate(found.ranked[:SHOWN]):
        cells = [sweep.written(point.values[name]) for name in found.grid]
        cells += _written(point.measures["iqm"], "return")
        cells.append(_written(point.measures["solved"], "share")[0])
        cells += [str(counts[i]) for counts in failed.values()]
        cells += [_written(point.evaluated.get(mode), "return")[0] for mode in found.modes]
        rows.append(cells)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for head, column in zip([*found.grid, *heads], zip(*rows, strict=True), strict=True):
        least = max(map(len, column))  # a head is folded where there is no room, a number never
        table.add_column(head, justify="right", overflow="fold", min_width=least)
    for cells in rows:
        table.add_row(*cells)
    console.print(table, crop=False)
    if len(found.points) > SHOWN:
        console.print(f"and {len(found.points) - SHOWN} more: the report has all")
    console.print(_caveat(found))


CAVEAT = (
    "The best of many points looks better than it is: train it again on fresh seeds before "
    "reporting its number."
)


def _caveat(found: Found) -> str:
    """What is to be kept in mind of the best."""
    said = []
    if found.apart:
        said.append(
            f"Points of another {' or '.join(found.apart)} act in another environment: which "
            "return is higher says as much of that as of what was trained."
        )
    if len(found.taken) > 1:
        said.append(f"Points have trained for {' or '.join(one.said for one in found.taken)}.")
    if any(_failed(found).values()):
        said.append("Seeds that failed count as untrained, with the lowest final return if lower.")
    if rivals := _rivals(found):
        shown = "; ".join(_said(point, found) for point in rivals[:CURVES])
        more = f" and {len(rivals) - CURVES} more" if len(rivals) > CURVES else ""
        among = f" (of the {SHOWN} best)" if len(found.points) > SHOWN else ""
        said.append(f"These seeds do not tell the best apart from {shown}{more}{among}.")
    lines = [line for best in found.best[:1] for line in of_long_memory(best.outcomes)]
    lines += of_few(min(len(point.outcomes.final) for point in found.points))
    said += [f"{line[0].upper()}{line[1:]}." for line in lines]
    return " ".join([*said, *([CAVEAT] if found.best else [])])


def _rivals(found: Found) -> list[Point]:
    """Of the points in the table on the terminal those that other seeds might say to be the best,
    those that are as good among these. Any two of all points might have been the first two: a
    chance of 5 % that some are told apart that are alike is divided among so many pairs
    (Bonferroni)."""
    if not found.best:
        return []
    best, scored = found.best[0], [one for one in found.ranked if math.isfinite(one.score)]
    alpha = (1 - CONFIDENCE) / max(1, math.comb(len(scored), 2))
    return [
        one
        for one in scored[:SHOWN]
        if one is not best
        and paired_improvement(best.outcomes.scores, one.outcomes.scores, alpha).low <= 0.5
    ]


def _failed(found: Found) -> dict[str, list[int]]:
    """Of each point, the best first, how many seeds failed; by how, if any did so."""
    counts = {
        how: [int(some(point.outcomes).sum()) for point in found.ranked]
        for how, some in FAILED.items()
    }
    return {how: each for how, each in counts.items() if any(each)}


def _written(one: Estimate | None, kind: str) -> tuple[str, str]:
    """A value and its interval; what there is not is a dash."""
    return ("-", "") if one is None else (write(one.value, kind), write_interval(one, kind))


def make(found: Found) -> Path:
    """Write the sweep's report and figures; those of before are replaced.

    Raises:
      RunError: if the directory cannot be written.
    """
    pictures = {
        "Where it works": [*_sensitivities(found), *_heat_maps(found)],
        "Learning": [_curves(found)],
    }
    drawn = {picture.name: canvas.draw(picture) for part in pictures.values() for picture in part}
    return save(found.directory, _page(found, pictures, drawn), drawn)


def _page(found: Found, pictures: dict[str, list[Picture]], drawn: dict[str, Drawn]) -> str:
    rows, failed = [], _failed(found)
    for rank, point in enumerate(found.ranked, 1):
        cells = [_written(point.measures[name], MEASURES[name].kind) for name in TABLED]
        cells += [_written(point.evaluated.get(mode), "return") for mode in found.modes]
        where = f"{point.directory.name}, setting {point.setting}"
        rows.append(
            (
                rank,
                [sweep.written(point.values[name]) for name in found.grid],
                cells,
                [counts[rank - 1] for counts in failed.values()],
                where,
            )
        )
    return render(
        "sweep.html.j2",
        title=f"{words.environment(found.config, found.grid)} · {found.algorithm}",
        points=len(found.points),
        seeds=words.seeds(len(found.points[0].outcomes.final)),
        budget=_budget(found),
        swept={name: ", ".join(map(sweep.written, values)) for name, values in found.grid.items()},
        best=_said_best(found),
        best_iqm=found.ranked[0].measures["iqm"],
        made=found.made,
        commit=found.commit,
        commands=found.commands,
        write=write,
        write_interval=write_interval,
        sections=pictures,
        drawn=drawn,
        fields=list(found.grid),
        labels=[MEASURES[name].label for name in TABLED]
        + [f"{mode} at the end, IQM" for mode in found.modes],
        failed=list(failed),
        rows=rows,
        caveat=_caveat(found),
        config={
            name: value
            for name, value in dataclasses.asdict(found.config).items()
            if name not in found.grid
        },
    )


def _budget(found: Found) -> str | None:
    """Of each seed; None where points differ in it."""
    return found.taken[0].said if len(found.taken) == 1 else None


def _said_best(found: Found) -> str:
    """The best point, and how many others are as good."""
    if not found.best:
        return ""
    others = f", and {len(found.best) - 1} as good" if len(found.best) > 1 else ""
    return f"{_said(found.best[0], found)}{others}"


def _said(point: Point, found: Found) -> str:
    return sweep.said({name: point.values[name] for name in found.grid})


def _sensitivities(found: Found) -> list[Picture]:
    """For each field that takes several values: the IQM over them."""
    pictures = []
    for name in found.varied:
        values = found.grid[name]
        others = [other for other in found.varied if other != name]
        alike = not set(others) & set(found.apart)  # else a mean over them would be of no task
        bold = " and their mean in bold" if alike else ""
        pictures.append(
            Picture(
                f"sensitivity-{name.replace('_', '-')}",
                f"Sensitivity to {name}",
                f"IQM of the final return by {name}, 95 % intervals"
                + (f"; a thin line for each choice of the other fields{bold}." if others else "."),
                f"IQM of the final return for {name} of {', '.join(map(sweep.written, values))}.",
                partial(_draw_sensitivity, found=found, name=name, thin=bool(others), bold=alike),
            )
        )
    return pictures


def _draw_sensitivity(axes: Any, found: Found, name: str, thin: bool, bold: bool) -> None:
    values = found.grid[name]
    places = _places(axes, values)
    axes.set_xlabel(name)
    axes.set_ylabel("final return, IQM")
    axes.yaxis.set_major_formatter(lambda value, _: figures.short(value))
    groups: dict[str, dict[Any, float]] = {}
    for point in found.points:
        rest = {k: v for k, v in point.values.items() if k != name}
        groups.setdefault(_key(rest), {})[point.values[name]] = _finite(point.score)
    if thin:
        for scores in groups.values():
            axes.plot(
                places,
                [scores.get(value, math.nan) for value in values],  # settings need not be a grid
                color=MUTED,
                linewidth=0.8,
                alpha=0.6,
                marker=".",
                markersize=3,
            )
    if not bold:
        return
    pooled = [
        _pooled([point for point in found.points if point.values[name] == value])
        for value in values
    ]
    middle, low, high = (
        np.array([getattr(one, part) for one in pooled]) for part in ("value", "low", "high")
    )
    axes.errorbar(
        places,
        middle,
        yerr=[middle - low, high - middle],
        color=ACCENT,
        linewidth=2,
        marker="o",
        markersize=5,
        capsize=3,
    )


def _pooled(points: Sequence[Point]) -> Estimate:
    """The mean of the IQMs of some points."""
    scores = [point.outcomes.scores for point in points if math.isfinite(point.score)]
    if not scores:
        return Estimate(math.nan, math.nan, math.nan)
    return estimate_over_seeds(mean_iqm, np.stack(scores, axis=1))


def _mean(some: Sequence[float]) -> float:
    """NaN of none."""
    return float(np.mean(some)) if some else math.nan


def _finite(x: float) -> float:
    return x if math.isfinite(x) else math.nan


def _places(axes: Any, values: Sequence[Any]) -> np.ndarray:
    """Where values lie on the horizontal axis: numbers where they are, others side by side."""
    labels = [sweep.written(value) for value in values]
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if not numeric:
        places = np.arange(len(values), dtype=float)
        _set_labels(axes, places, labels)
        axes.set_xlim(-0.5, len(values) - 0.5)
        return places
    log = min(values) > 0 and max(values) >= 10 * min(values)
    places = np.array(values, float)
    if _collide(axes, np.log(places) if log else places, labels):
        places = np.argsort(np.argsort(places)).astype(float)  # side by side, in their order
        _set_labels(axes, places, labels)
        return places
    if log:
        axes.set_xscale("log")
    axes.set_xticks(places, labels)
    axes.set_xticks([], minor=True)
    return places


def _set_labels(axes: Any, places: np.ndarray, labels: Sequence[str]) -> None:
    """Ticks at the places, with as many of the labels as are not written over one another."""
    order = np.argsort(places)
    for step in range(1, len(labels) + 1):
        kept = order[::step]
        if not _collide(axes, places, labels, kept):
            break
    axes.set_xticks(places, [label if i in kept else "" for i, label in enumerate(labels)])


def _collide(
    axes: Any, places: np.ndarray, labels: Sequence[str], kept: np.ndarray | None = None
) -> bool:
    """Whether labels at these places, or those that are kept, would be written over one another."""
    kept = np.argsort(places) if kept is None else kept
    width = axes.get_position().width * axes.figure.get_figwidth() * 72  # points
    gaps = np.diff(places[kept]) / (np.ptp(places) or 1.0) * width
    sizes = np.array([len(labels[i]) for i in kept]) * LETTER
    return bool((gaps < (sizes[1:] + sizes[:-1]) / 2 + LETTER).any())


def _heat_maps(found: Found) -> list[Picture]:
    """For each pair of fields that take several values: the IQM over both."""
    if not math.isfinite(found.ranked[0].score):
        return []
    pictures = []
    for down, across in itertools.combinations(found.varied, 2):
        others = set(found.varied) - {down, across}
        if others & set(found.apart):
            continue  # the mean over tasks would be that of none
        rest = "; the mean over the other fields" if others else ""
        framed = f" The {'highest mean' if others else 'best'} has a frame." if found.best else ""
        rows = len(found.grid[down])
        pictures.append(
            Picture(
                f"heat-{down}-{across}".replace("_", "-"),
                f"{down} and {across}",
                f"IQM of the final return{rest}; shades go from the lowest cell to the highest."
                f"{framed}",
                f"Heat map of the IQM of the final return over {down} and {across}.",
                partial(_draw_heat, found=found, down=down, across=across),
                (4.6, 1.1 + 0.5 * max(3, rows)),
            )
        )
    return pictures


def _draw_heat(axes: Any, found: Found, down: str, across: str) -> None:
    rows, columns = found.grid[down], found.grid[across]
    cells = np.array(
        [
            [
                _mean(
                    [
                        _finite(p.score)
                        for p in found.points
                        if p.values[down] == row and p.values[across] == column
                    ]
                )
                for column in columns
            ]
            for row in rows
        ]
    )
    lowest, highest = np.nanmin(cells), np.nanmax(cells)
    span = (highest - lowest) or 1.0
    axes.grid(visible=False)
    for i, j in np.ndindex(*cells.shape):
        known = math.isfinite(cells[i, j])
        shade = round((cells[i, j] - lowest) / span * (len(SHADES) - 1)) if known else 0
        color = SHADES[shade] if known else GRID
        axes.add_patch(_box(j, i, facecolor=color, edgecolor=PAPER, linewidth=1.5))
        axes.text(
            j,
            i,
            words.returned(cells[i, j]),
            ha="center",
            va="center",
            fontsize=min(9.0, 80 / len(columns)),
            color=(ON_HIGH if shade >= HIGH else ON_LOW) if known else INK,
        )
    for row, column in np.argwhere(cells == highest) if found.best else ():
        axes.add_patch(_box(column, row, facecolor="none", edgecolor=SERIES[1], linewidth=2.5))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    labels = [sweep.written(value) for value in columns]
    _set_labels(axes, np.arange(len(columns)), labels)
    axes.set_yticks(range(len(rows)), [sweep.written(value) for value in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(across)
    axes.set_ylabel(down)


def _box(x: float, y: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, **style)


def _curves(found: Found) -> Picture:
    shown = found.ranked[:CURVES]
    return Picture(
        "learning-curves",
        f"Learning curves of the {'best points' if found.best else 'points that end highest'}",
        "IQM of the return with its 95 % interval.",
        "Learning curves of " + "; ".join(_said(point, found) for point in shown) + ".",
        partial(_draw_curves, found=found, shown=shown),
        (4.6, 3.1 + 0.2 * len(shown)),
        0.15 + 0.2 * len(shown),
    )


def _draw_curves(axes: Any, found: Found, shown: Sequence[Point]) -> None:
    differ = [name for name in found.grid if len({_key(p.values[name]) for p in shown}) > 1]
    for i, point in enumerate(shown):  # what all have would cut off what tells them apart
        label = sweep.said({name: point.values[name] for name in differ or found.grid})
        figures.draw_iqm(axes, point.amount, point.returns, label=label, **figures.look(i))
    solving = shown[0].outcomes.solving
    figures.draw_target(axes, solving and solving.target)
    figures.label_budget(axes, found.config.unit, max(p.amount[-1] for p in shown))
    figures.label_returns(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, fontsize=8.5)
