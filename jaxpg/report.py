"""What a person looks at: the learning curve."""

from pathlib import Path

import numpy as np

from jaxpg.config import Config
from jaxpg.population import Population
from jaxpg.stats import SOLVED, iqm, iqm_interval

POINTS = 100  # points of a curve; updates are averaged into so many
INK, ACCENT, MUTED = "#1f2933", "#0b6e99", "#7b8794"


def learning_curve(config: Config, population: Population, path: Path) -> None:
    """Draw the return over training, IQM with its 95 % interval and every seed behind, as PNG.

    A seed's point is the mean return of the episodes that ended since the point before; where
    none did, it keeps its last value.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    amount, returns = curve_points(config, population)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(amount, returns.T, color=ACCENT, linewidth=0.5, alpha=min(0.4, 12 / len(returns)))
    known = np.isfinite(returns).all(axis=0)  # from where on every seed has finished an episode
    if known.any():
        low, high = iqm_interval(returns[:, known])
        axes.fill_between(amount[known], low, high, color=ACCENT, alpha=0.35, linewidth=0)
        axes.plot(amount[known], iqm(returns[:, known]), color=ACCENT, linewidth=2)
    else:
        note = "some seeds finished no episode: no IQM over all of them"
        axes.annotate(note, (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
    if config.env in SOLVED:
        axes.axhline(SOLVED[config.env], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        label = f"solved: {SOLVED[config.env]:g}"
        axes.annotate(
            label,
            (0.99, SOLVED[config.env]),
            xycoords=("axes fraction", "data"),
            xytext=(0, -12),
            textcoords="offset points",
            ha="right",
            color=MUTED,
            fontsize=9,
        )
    seeds = f"{len(returns)} seeds" if len(returns) > 1 else "1 seed"
    axes.set_title(
        f"{config.env}, {seeds}: IQM of the return, 95 % interval, every seed",
        loc="left",
        color=INK,
        fontsize=11,
    )
    axes.set_xlabel("environment steps" if config.collect == "steps" else "episodes", color=INK)
    axes.set_ylabel("return per episode", color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(0, amount[-1])
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def curve_points(config: Config, population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Where the curve's points lie, and each seed's return there.

    Returns:
      Environment steps or episodes per seed, [P]; returns [S, P], NaN before a seed's first
      episode has ended.
    """
    updates = config.num_updates
    edges = np.unique(np.linspace(0, updates, min(POINTS, updates) + 1).round().astype(int))
    count = np.add.reduceat(population.metrics.episodes, edges[:-1], axis=1)
    total = np.add.reduceat(population.metrics.return_sum, edges[:-1], axis=1, dtype=np.float64)
    returns = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    for i in range(1, returns.shape[1]):
        returns[:, i] = np.where(np.isnan(returns[:, i]), returns[:, i - 1], returns[:, i])
    steps = config.num_envs * (config.num_steps if config.collect == "steps" else 1)
    return edges[1:] * steps, returns
