"""The pictures of `jaxpg oracle`."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpg.proof import oracle
from jaxpg.proof.bias import Bias
from jaxpg.proof.finding import Finding
from jaxpg.proof.oracle import Row
from jaxpg.report.canvas import ACCENT, DASHES, GRID, INK, MUTED, SERIES, own_rc, save


@own_rc({})
def draw(rows: Sequence[Row], path: Path) -> None:
    """Bias and variance of each estimator at random parameters, a problem a row, as PNG.

    Raises:
      RunError: if the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    colors = (ACCENT, "#5aa469", "#d1495b", MUTED, INK)
    looks = dict(zip(oracle.VARIANTS, zip("os^Dx", colors, strict=True), strict=True))
    random = oracle.groups([row for row in rows if row.parameters == "random"])
    figure = Figure(figsize=(11, 5 * len(random)), dpi=130, layout="constrained")
    grid = figure.subplots(len(random), 2, sharex="col", squeeze=False)
    for axes, (title, group) in zip(grid, random.items(), strict=True):
        names = list(dict.fromkeys((oracle.label_of(row), row.baseline) for row in group))
        for row in group:
            variant = oracle.variant_of(row)
            if not variant:
                continue
            marker, color = looks[variant]
            line = names.index((oracle.label_of(row), row.baseline))
            y = line + 0.16 * (oracle.VARIANTS.index(variant) - 2)
            style = {"marker": marker, "color": color, "markersize": 5, "linestyle": ""}
            unbiased = row.relative_bias <= oracle.TOLERANCE
            axes[0].plot(3e-4 if unbiased else max(row.relative_bias, 1.1e-3), y, **style)
            if variant in oracle.VARIANTS[:3]:
                axes[1].plot(row.variance, y, **style)
        for panel, what in zip(axes, ("relative bias", "variance of one trajectory"), strict=True):
            panel.set_xscale("log")
            panel.set_title(f"{title.split(',')[0]}: {what}", loc="left", color=INK, fontsize=11)
            panel.set_yticks(range(len(names)), [f"{a}, {b}" for a, b in names])
            panel.set_ylim(len(names) - 0.4, -0.6)
            panel.grid(axis="x", color=GRID, linewidth=0.7)
            for y in range(1, len(names)):
                panel.axhline(y - 0.5, color=GRID, linewidth=0.7)
            panel.tick_params(colors=INK)
            panel.tick_params(axis="y", length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
        axes[0].axvspan(1e-4, 1e-3, color=ACCENT, alpha=0.08, linewidth=0)
        axes[0].set_xlim(1e-4, 20)
        ticks = {3e-4: f"below {oracle.TOLERANCE:g}", 1e-2: "1 %", 1e-1: "10 %", 1.0: "100 %"}
        axes[0].set_xticks(list(ticks), list(ticks.values()))
        axes[0].set_xticks([], minor=True)
        axes[1].tick_params(labelleft=False)
    grid[-1, 0].set_xlabel("‖E ĝ − ∇U‖ / ‖∇U‖", color=INK)
    grid[-1, 1].set_xlabel("N · trace Cov ĝ", color=INK)
    handles = [
        grid[0, 0].plot([], [], marker=marker, color=color, linestyle="", label=variant)[0]
        for variant, (marker, color) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    save(figure, path)


@own_rc({})
def draw_bias(found: Mapping[str, Bias], path: Path) -> None:
    """Bias and variance of estimators of one's own beside each other, as PNG.

    Args:
      found: from `estimator_bias`, by the estimators' names; of the same problems.

    Raises:
      RunError: if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    looks = zip(found, itertools.cycle((ACCENT, INK, MUTED)), itertools.cycle("os^D"), strict=False)
    rows = next(iter(found.values())).rows
    places = [f"{row.problem}, {row.parameters}, {row.value} V" for row in rows]
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(rows)), dpi=130, layout="constrained")
    bias, variance = figure.subplots(1, 2, sharey=True)
    for name, color, marker in looks:
        for y, row in enumerate(found[name].rows):
            style = {"marker": marker, "color": color, "linestyle": "", "alpha": 0.8}
            bias.plot(max(row.bias, 1e-3), y, label=None if y else name, **style)
            variance.plot(row.variance, y, **style)
    for axes, what in ((bias, "‖E ĝ − ∇U‖ / ‖∇U‖"), (variance, "N · trace Cov ĝ")):
        axes.set(xscale="log", xlabel=what)
        axes.set_yticks(range(len(places)), places)
        axes.grid(axis="x", color=GRID)
    bias.invert_yaxis()
    variance.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (variance.xaxis.set_major_formatter, variance.xaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:g}"))
    bias.set_title("bias (below 0.1 %: at 0.1 %)", loc="left")
    variance.set_title("variance of one trajectory", loc="left")
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, path)


class Panel(NamedTuple):
    """A panel of the family's picture: what is drawn over x, and each line's look."""

    question: str
    problem: str  # how its name begins
    measure: str  # of a Finding
    labels: tuple[str, str, str]  # title, x, y
    scales: tuple[str, str]
    lines: dict[str, tuple[int, int]]  # by case: color and dash


PANELS = (
    *(
        Panel(
            *("epochs", problem, "amount"),
            (f"{problem}: PPO's gradient in epoch k", "learning rate", "bias / ‖∇U‖ there"),
            ("log", "log"),
            {
                "epoch 2, no clip": (0, 0),
                "epoch 4, no clip": (1, 0),
                "epoch 2, clip 0.2": (0, 1),
                "epoch 4, clip 0.2": (1, 1),
                "epoch 2, penalty 1": (0, 3),
                "epoch 4, penalty 1": (1, 3),
                "epoch 2, no clip, fresh": (0, 2),
                "epoch 4, no clip, fresh": (1, 2),
            },
        )
        for problem in ("CartPole", "random MDP")
    ),
    Panel(
        *("natural direction", "random MDP", "cosine"),
        ("random MDP: conjugate gradients", "iterations", "cosine to (F + c I)⁻¹ ∇U"),
        ("log", "linear"),
        {f"conjugate gradients, damping {c:g}": (i, i % 3) for i, c in enumerate((0, 0.01, 0.1))},
    ),
    Panel(
        *("weights before a cut", "CartPole", "length"),
        ("GAE: the longest estimator", "steps to the cut", "its weight"),
        ("linear", "linear"),
        {f"GAE({x:g}): the weight of the longest": (i, 0) for i, x in enumerate((0.8, 0.95, 1))},
    ),
    *(
        Panel(
            *("bias before a cut", problem, "amount"),
            (
                f"{problem}: the first step's gradient, wrong V",
                "steps to the cut",
                "bias / its length",
            ),
            ("linear", "linear"),
            {f"GAE({x:g}), wrong V": (i, 0) for i, x in enumerate((0.8, 0.95, 1))},
        )
        for problem in ("CartPole", "random MDP")
    ),
)


@own_rc({})
def draw_family(found: Sequence[Finding], path: Path) -> None:
    """What PPO's epochs, conjugate gradients and a cut leave of the truth, as PNG.

    Raises:
      RunError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), dpi=130, layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for case, (color, dash) in panel.lines.items():
            points = [
                (f.x, getattr(f, panel.measure))
                for f in found
                if (f.question, f.case) == (panel.question, case)
                and f.problem.startswith(panel.problem)
            ]
            style = {"color": SERIES[color], "linestyle": DASHES[dash], "marker": "o"}
            axes.plot(*zip(*points, strict=True), **style, markersize=3.5, label=_short(case))
        title, x, y = panel.labels
        axes.set_title(title, loc="left", color=INK, fontsize=11)
        axes.set(xlabel=x, ylabel=y, xscale=panel.scales[0], yscale=panel.scales[1])
        axes.grid(color=GRID, linewidth=0.7)
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}  # no corner is always free
        axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=4.5, **below)
    save(figure, path)


def _short(case: str) -> str:
    """The case without what its panel's title says."""
    for said in ("conjugate gradients, ", ": the weight of the longest", ", wrong V"):
        case = case.replace(said, "")
    return case
