"""The picture of `jaxpg oracle`."""

import io
from collections.abc import Sequence
from pathlib import Path

from jaxpg import files
from jaxpg.proof import oracle
from jaxpg.proof.oracle import Row
from jaxpg.report.canvas import ACCENT, INK, MUTED, own_rc


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
            panel.grid(axis="x", color="#e4e7eb", linewidth=0.7)
            for y in range(1, len(names)):
                panel.axhline(y - 0.5, color="#e4e7eb", linewidth=0.7)
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    files.save(path, buffer.getvalue())
