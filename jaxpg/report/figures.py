"""What figures show of runs: curves, distributions and shares, drawn onto matplotlib axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg import words
from jaxpg.analysis.budget import Budget
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.outcomes import Solving, select, solved_at, time_to_solve
from jaxpg.analysis.stats import iqm, iqm_band, performance_profile
from jaxpg.report.canvas import (
    ACCENT,
    DASHES,
    INK,
    MUTED,
    PAPER,
    SERIES,
    WARN,
    figure_of,
    save,
)
from jaxpg.runs.load import Run
from jaxpg.runs.sweep import said

FAINT = 500  # seeds that are drawn one by one, at most


def learning_curve(run: Run, path: Path) -> None:
    """Draw the return over training, IQM with its 95 % interval and every seed behind, as PNG.

    Of several settings the IQM of each, without the seeds.
    """
    config, population, settings = run.config, run.population, run.settings
    target, spent = solved_at(config), config.unit
    parts = [select(population, population.setting == i) for i in range(len(settings))]
    curves = [curve_points(config, part) for part in parts]
    seeds = words.seeds(len(parts[0].seeds))

    def draw(axes: Any) -> None:
        if len(settings) == 1:
            draw_curve(axes, *curves[0], spent, target)
            where = words.environment(config)
            drawn = faintly(len(parts[0].seeds))
            title = f"{where}, {seeds}: IQM of the return, 95 % interval, {drawn}"
        else:
            values = {name: run.manifest.values(name) for name in run.manifest.varied}
            for i, (amount, returns) in enumerate(curves):
                label = said({name: each[i] for name, each in values.items()})
                draw_iqm(axes, amount, returns, label=label, **look(i))
            draw_target(axes, target)
            label_budget(axes, spent, curves[0][0][-1])
            label_returns(axes)
            count = len(settings)
            title = f"{config.env}, {seeds} × {count} settings: IQM of the return, 95 % interval"
            if count <= len(SERIES) * len(DASHES):
                axes.legend(fontsize=8, ncols=1 + count // 8)
            else:
                title += " (too many to name: jaxpg report)"
        axes.set_title(title, loc="left", fontsize=11)

    with figure_of(draw, (8, 4.5), top=0.35, name="curve") as figure:
        save(figure, path, dpi=150)


def faintly(count: int) -> str:
    """Which of so many seeds `draw_curve` draws one by one."""
    return "every seed" if count <= FAINT else f"{FAINT} of the {count:,} seeds, evenly by rank"


def draw_curve(
    axes: Any,
    amount: np.ndarray,
    returns: np.ndarray,
    unit: str,
    target: float | None,
    frozen: Sequence[tuple[float, float]] = (),
) -> None:
    """The IQM of the return with its interval, seeds faintly behind.

    Args:
      amount: [P], in `unit`.
      returns: [S, P].
      target: return that counts as solved, a dashed line.
      frozen: where seeds diverged, (amount, return) each, marked by crosses.
    """
    from matplotlib.collections import LineCollection

    faint = returns[evenly_by_rank(returns[:, -1])]
    lines = LineCollection(
        [np.column_stack([amount, row]) for row in faint],
        colors=ACCENT,
        linewidths=0.5,
        alpha=min(0.4, 12 / len(faint)),
        rasterized=True,
    )
    axes.add_collection(lines)
    draw_iqm(axes, amount, returns, ACCENT)
    if frozen:
        at, height = zip(*frozen, strict=True)
        axes.plot(at, height, "x", color=WARN, markersize=5, clip_on=False)
    axes.autoscale_view()
    draw_target(axes, target)
    label_budget(axes, unit, amount[-1])
    label_returns(axes)


def draw_iqm(axes: Any, amount: np.ndarray, returns: np.ndarray, color: str, **style: Any) -> None:
    """The IQM with its interval, from where on every seed that ever finishes an episode has."""
    heard = returns[np.isfinite(returns[:, -1])]
    known = np.isfinite(heard).all(axis=0) & (len(heard) > 0)
    if known.any():
        (low, high), middle = iqm_band(heard[:, known]), iqm(heard[:, known])
        axes.fill_between(amount[known], low, high, color=color, alpha=0.25, linewidth=0)
        style = {"marker": _marker(middle), **style}
        axes.plot(amount[known], middle, color=color, linewidth=2, **style)
    else:
        note = "no seed finished an episode"
        above_target = (0.5, 0.6)  # which is in the middle of axes without data
        axes.annotate(note, above_target, xycoords="axes fraction", ha="center", color=MUTED)


def draw_evaluations(
    axes: Any,
    amount: np.ndarray,
    returns: Mapping[str, np.ndarray],
    unit: str,
    target: float | None,
) -> None:
    """The IQM of each mode's mean returns with its interval.

    Args:
      amount: [K], in `unit`.
      returns: by mode, [S, K].
    """
    for i, (mode, values) in enumerate(returns.items()):
        draw_iqm(axes, amount, values, label=mode, marker="o", markersize=3, **look(i))
    draw_target(axes, target)
    label_budget(axes, unit, amount[-1])
    label_returns(axes)
    axes.legend(loc="lower right")


def look(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th of many lines, alike in neither to those beside it."""
    turn = i // len(SERIES)
    return {"color": SERIES[i % len(SERIES)], "linestyle": DASHES[(i + turn) % len(DASHES)]}


def draw_target(axes: Any, target: float | None) -> None:
    """A dashed line at the return that counts as solved; where it would leave the curves less than
    a third of the axes, the number alone, at their edge."""
    if target is None:
        return
    low, high = axes.get_ylim()
    said, at, units, away = f"solved: {target:g}", target, "data", 3
    if _leaves_room(target, low, high):
        axes.axhline(target, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    elif target > high:
        said, at, units, away = f"{said} ↑", 1.0, "axes fraction", -10
    else:
        said, at, units = f"{said} ↓", 0.0, "axes fraction"
    axes.annotate(  # on the left, where curves are not there yet
        said,
        (0.01, at),
        xycoords=("axes fraction", units),
        xytext=(0, away),
        textcoords="offset points",
        color=MUTED,
        fontsize=8.5,
    )


def _leaves_room(target: float, low: float, high: float) -> bool:
    """Whether axes that show it, too, have a third for what lies between the others' ends."""
    room = 2 * (high - low)
    return low - room <= target <= high + room


def label_budget(axes: Any, unit: str, end: float) -> None:
    """The horizontal axis of what is seen over training."""
    axes.set_xlabel(unit)
    axes.set_xlim(0, end)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def label_returns(axes: Any) -> None:
    """The vertical axis of returns."""
    axes.set_ylabel("return per episode")
    axes.yaxis.set_major_formatter(lambda value, _: short(value))


def draw_distribution(axes: Any, scores: np.ndarray, target: float | None) -> None:
    """A histogram of the final returns, a mark for each of up to 500 seeds, and the IQM."""
    edges = np.histogram_bin_edges(scores, bins=min(30, max(5, round(2 * len(scores) ** 0.5))))
    axes.hist(scores, edges, color=ACCENT, alpha=0.75, edgecolor=PAPER, linewidth=0.6)
    marks = scores[evenly_by_rank(scores)]
    axes.plot(
        marks,
        np.full(len(marks), -0.025),
        "|",
        color=ACCENT,
        markersize=6,
        alpha=0.6,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        rasterized=True,
    )
    axes.axvline(iqm(scores), color=INK, linewidth=1.5, label=f"IQM {words.returned(iqm(scores))}")
    if target is not None:
        low, high = axes.get_xlim()
        said = f"solved: {target:g}"
        if _leaves_room(target, low, high):
            axes.axvline(target, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=said)
        else:
            axes.plot([], [], " ", label=f"{said} →" if target > high else f"← {said}")
    axes.tick_params(axis="x", pad=8)
    axes.grid(axis="x", visible=False)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel("mean return of the last 100 episodes")
    axes.set_ylabel("seeds")
    _legend_above(axes)


def draw_profile(axes: Any, scores: np.ndarray, color: str = ACCENT, **style: Any) -> None:
    """The share of seeds that count with so high a return at least, with its interval.

    Args:
      scores: [S].
    """
    levels = np.unique(np.percentile(scores, np.linspace(0, 100, 201)))
    edge = 0.03 * (levels[-1] - levels[0]) or 1.0
    levels = np.concatenate([[levels[0] - edge], levels, [levels[-1] + edge]])
    share, low, high = np.array(performance_profile(scores, levels)).T
    axes.fill_between(levels, low, high, color=color, alpha=0.2, linewidth=0, step="pre")
    axes.step(levels, share, where="pre", color=color, linewidth=1.8, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel("final return, at least")
    axes.set_ylabel("seeds")


def draw_time_to_solve(
    axes: Any, solving: Solving, budget: Budget, color: str = ACCENT, **style: Any
) -> None:
    """The share of seeds that have solved the task, over the budget."""
    curve = time_to_solve(solving)
    time = np.append(curve.time, budget.amount)
    values = [1 - np.append(x, x[-1]) for x in (curve.share, curve.high, curve.low)]
    axes.fill_between(time, *values[1:], color=color, alpha=0.2, linewidth=0, step="post")
    axes.step(time, values[0], where="post", color=color, linewidth=1.8, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("seeds that have solved it")
    label_budget(axes, budget.unit, budget.amount)


def draw_seeds(
    axes: Any, amount: np.ndarray, curves: Sequence[tuple[str, np.ndarray]], unit: str
) -> None:
    """Single seeds' returns, each with its name."""
    for i, (label, returns) in enumerate(curves):
        axes.plot(amount, returns, linewidth=1.4, label=label, marker=_marker(returns), **look(i))
    label_budget(axes, unit, amount[-1])
    label_returns(axes)
    _legend_above(axes)


def _legend_above(axes: Any) -> None:
    """Names in a line above the axes, where no data are."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        ncols=3,
        fontsize=8.5,
        handlelength=2.0,
        columnspacing=1.2,
    )


def _marker(values: np.ndarray) -> str | None:
    """Of a line that would be seen by its end alone, or not at all."""
    return "o" if np.isfinite(values).sum() == 1 else None


def draw_metric(
    axes: Any, amount: np.ndarray, percentiles: np.ndarray, unit: str, label: str
) -> None:
    """A metric's median over seeds, and its 10th to 90th percentile."""
    low, middle, high = percentiles
    axes.fill_between(amount, low, high, color=ACCENT, alpha=0.25, linewidth=0)
    axes.plot(amount, middle, color=ACCENT, linewidth=1.6, marker=_marker(middle))
    positive = low[np.isfinite(low)]
    if len(positive) and positive.min() > 0 and np.nanmax(high) > 100 * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    label_budget(axes, unit, amount[-1])
    axes.set_ylabel(label)


def evenly_by_rank(values: np.ndarray) -> np.ndarray:
    """Indices of all, or of so many as are drawn one by one, evenly by rank."""
    if len(values) <= FAINT:
        return np.arange(len(values))
    ranks = np.linspace(0, len(values) - 1, FAINT).round().astype(int)
    return np.sort(np.argsort(values, kind="stable")[ranks])


def short(value: float) -> str:
    """A number on an axis, with as many digits as tell its ticks apart: 250k, 112.5k, 1.5M."""
    return words.short(value, digits=6).replace(" ", "")
