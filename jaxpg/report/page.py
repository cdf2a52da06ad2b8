"""report.html: a run on one page that needs no network and runs no script, and its figures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.budget import Budget
from jaxpg.analysis.curves import curve_points, metric_points
from jaxpg.analysis.measures import (
    MEASURES,
    Measure,
    last_evaluation,
    measure,
    remarks,
    write,
    write_interval,
)
from jaxpg.analysis.outcomes import Outcomes, evaluated, outcomes, ranking, typical
from jaxpg.analysis.stats import Estimate, iqm
from jaxpg.core.presets import PRESETS
from jaxpg.population.chunks import CAUSES
from jaxpg.population.evaluations import MODES, Evaluations
from jaxpg.report import canvas, figures, made
from jaxpg.report import sweep as sweep_report
from jaxpg.report.canvas import Drawn, Picture
from jaxpg.report.figures import FAINT
from jaxpg.report.html import FOLDER as FOLDER
from jaxpg.report.html import NAME as NAME
from jaxpg.report.html import render, save
from jaxpg.runs import manifests, reproduce, sweep
from jaxpg.runs.load import Run, load

WIDE = (9.8, 4.0)  # inches, of the first figure where the page is wide
LISTED = 5  # seeds at either end of the table, where not all have room
ALL_LISTED = 16  # seeds that have room
METRICS = {  # title, and label of the axis
    "policy_loss": ("Policy loss", "loss"),
    "value_loss": ("Value loss", "loss"),
    "entropy": ("Entropy of the policy", "nats per step"),
    "policy_grad_norm": ("Gradient norm of the policy", "norm, before clipping"),
    "value_grad_norm": ("Gradient norm of the critic", "norm, before clipping"),
    "clip_fraction": ("Steps beyond the clip", "fraction"),
    "approx_kl": ("KL of the acting policy to the updated", "nats, approximately"),
    "kl": ("KL of the acting policy to the next", "nats"),
    "kl_weight": ("Weight of the penalty on the KL", "weight"),
    "full_kl": ("KL of TRPO's step before it is shortened", "nats"),
    "accepted": ("Updates in which TRPO accepts a step", "fraction"),
    "explained_variance": ("Variance of the target that the critic explains", "fraction"),
}


class View(NamedTuple):
    """What a page is made of."""

    run: Run
    outcomes: Outcomes
    amount: np.ndarray  # [P], environment steps or episodes
    returns: np.ndarray  # [S, P]

    @property
    def budget(self) -> Budget:
        """What each seed has spent."""
        return Budget(int(self.amount[-1]), self.run.config.unit)


def make(directory: Path, target: float | None = None) -> Path:
    """Write the report and figures of a run or a sweep; those of before are replaced.

    Args:
      target: return that counts as solved; None takes the environment's own, if it has one.

    Returns:
      The page's path.

    Raises:
      RunError: if the run is not finished or damaged, or the directory cannot be written.
    """
    if sweep.is_sweep(directory) or len(manifests.read(directory).settings) > 1:
        return sweep_report.make(sweep_report.load_sweep(directory, target))
    run = load(directory)
    ends = outcomes(run.config, run.population, target)
    view = View(run, ends, *curve_points(run.config, run.population))
    sections = pictures(view)
    drawn = {picture.name: canvas.draw(picture) for part in sections.values() for picture in part}
    return save(directory, _page(view, sections, drawn), drawn)


def pictures(view: View) -> dict[str, list[Picture]]:
    """The figures of each section; those that have nothing to show are left out."""
    sections = {
        "Learning": [_learning_curve(view)],
        "Solving": [],
        "Training": [found for name in METRICS if (found := _metric(view, name))],
    }
    evaluations = evaluated(view.run.population)
    if evaluations is not None:
        sections["Learning"].append(_evaluations(view, evaluations))
    if len(view.outcomes.scores):
        sections["Learning"] += [_final_returns(view), _seeds(view)]
        sections["Solving"].append(_profile(view))
    if view.outcomes.solving is not None and view.outcomes.solving.known:
        sections["Solving"].append(_time_to_solve(view))
    return {name: part for name, part in sections.items() if part}


def _learning_curve(view: View) -> Picture:
    ends, budget, count = view.outcomes, view.budget, len(view.outcomes.final)
    frozen = []
    for row in np.flatnonzero(ends.diverged & np.isfinite(ends.floor))[:FAINT]:
        update = int(view.run.population.frozen_at[row])
        spent = update * view.run.config.update_cost
        before = int(np.searchsorted(view.amount, spent, "right")) - 1
        there = view.returns[row, before] if before >= 0 else np.nan
        height = there if np.isfinite(there) else ends.floor  # it had no return of its own yet
        frozen.append((float(view.amount[max(0, before)]), float(height)))
    seeds = figures.faintly(count)
    said = " Crosses mark where a seed diverged, from where on it counts as untrained."
    crosses = said if frozen else ""
    end = "does not exist"
    if len(ends.scores):
        last = view.returns[:, -1]
        end = f"ends at {words.returned(iqm(last[np.isfinite(last)]))}"
    return Picture(
        "learning-curve",
        "Learning curve",
        f"IQM of the return with its 95 % interval; faintly behind it {seeds}.{crosses}",
        f"Return per episode over {words.amount(budget.amount)} {budget.unit}; the IQM {end}.",
        partial(
            figures.draw_curve,
            amount=view.amount,
            returns=view.returns,
            unit=budget.unit,
            target=ends.solving and ends.solving.target,
            frozen=frozen,
        ),
    )


def _evaluations(view: View, seen: Evaluations) -> Picture:
    evaluating, solving = view.run.manifest.evaluating, view.outcomes.solving
    assert evaluating is not None
    returns = {mode: getattr(seen, mode) for mode in MODES}
    ends = [f"{mode} {words.returned(iqm(x[:, -1]))}" for mode, x in returns.items()]
    return Picture(
        "evaluations",
        "Evaluations",
        f"IQM with its 95 % interval of each seed's mean return over {evaluating.episodes} fresh "
        "episodes, greedy and sampled.",
        f"Return of evaluations over {view.budget.unit}; the IQM ends at {', '.join(ends)}.",
        partial(
            figures.draw_evaluations,
            amount=seen.update * view.run.config.update_cost,
            returns=returns,
            unit=view.budget.unit,
            target=solving and solving.target,
        ),
    )


def _final_returns(view: View) -> Picture:
    scores, solving = view.outcomes.scores, view.outcomes.solving
    return Picture(
        "final-returns",
        "Final returns",
        "Mean return of each seed's last 100 episodes, or what a seed that failed counts with; a "
        "tick below the axis for each seed.",
        f"Histogram of final returns from {words.returned(scores.min())} to "
        f"{words.returned(scores.max())}; the IQM is {words.returned(iqm(scores))}.",
        partial(figures.draw_distribution, scores=scores, target=solving and solving.target),
        top=0.3,
    )


def _seeds(view: View) -> Picture:
    curves = [(name, _own_returns(view, row)) for name, row in _typical(view)]
    return Picture(
        "seeds",
        "Best, median and worst seed",
        "Return per episode of single seeds, chosen by final return; one that diverged is drawn "
        "until then.",
        "Learning curves of " + ", ".join(name for name, _ in curves) + ".",
        partial(
            figures.draw_seeds,
            amount=view.amount,
            curves=curves,
            unit=view.budget.unit,
        ),
        top=0.3,
    )


def _own_returns(view: View, row: int) -> np.ndarray:
    """A seed's curve without what it counts with where it has no return of its own: NaN, [P]."""
    frozen_at, silent = view.run.population.frozen_at[row], np.isnan(view.outcomes.final[row])
    gone = (frozen_at >= 0) & (view.amount > frozen_at * view.run.config.update_cost)
    return np.where(gone | silent, np.nan, view.returns[row])


def _profile(view: View) -> Picture:
    return Picture(
        "performance-profile",
        "Performance profile",
        "The share of seeds whose final return is at least so high; 95 % intervals.",
        "Share of seeds over final return; half of them reach "
        f"{words.returned(np.median(view.outcomes.scores))}.",
        partial(figures.draw_profile, scores=view.outcomes.scores),
    )


def _time_to_solve(view: View) -> Picture:
    solving = view.outcomes.solving
    assert solving is not None
    return Picture(
        "time-to-solve",
        "Time to solve",
        f"The share of seeds that have reached {solving.target:g} over 100 episodes; Kaplan-Meier "
        "with 95 % intervals. Those that never do are censored at the budget.",
        f"Share of seeds that have solved the task over {view.budget.unit}; "
        f"{words.share(solving.ever.mean())} by the end.",
        partial(figures.draw_time_to_solve, solving=solving, budget=view.budget),
    )


def _metric(view: View, name: str) -> Picture | None:
    """None if it is 0 throughout, or no seed had it for as long as a point stands for."""
    title, label = METRICS[name]
    values = view.run.population.metrics.named().get(name)
    if values is None or not np.nan_to_num(values).any():
        return None
    points, percentiles = metric_points(view.run.config, np.asarray(values))
    known = percentiles[1][np.isfinite(percentiles[1])]
    if not len(known):
        return None
    return Picture(
        name.replace("_", "-"),
        title,
        "Median over seeds, 10th to 90th percentile.",
        f"{title}: the median over seeds goes from {known[0]:.3g} to {known[-1]:.3g}.",
        partial(
            figures.draw_metric,
            amount=points,
            percentiles=percentiles,
            unit=view.budget.unit,
            label=label,
        ),
        (4.6, 2.4),
    )


def _typical(view: View) -> list[tuple[str, int]]:
    """Names and rows of the best, the median and the worst seed; of few seeds one has two names."""
    names: dict[int, list[str]] = {}
    for rank, row in typical(view.outcomes.final, view.outcomes.diverged).items():
        names.setdefault(row, []).append(rank)
    seeds = view.run.population.seeds
    return [(f"{' and '.join(ranks)} (seed {seeds[row]})", row) for row, ranks in names.items()]


def _advice(summary: dict[str, Any]) -> str | None:
    """What a run that learnt nothing is told; None if its summary says nothing of it."""
    learning = summary.get("learning")
    warning = learning.get("warning") if isinstance(learning, dict) else None
    return warning if isinstance(warning, str) else None


def _page(view: View, sections: dict[str, list[Picture]], drawn: dict[str, Drawn]) -> str:
    """The page's text."""
    run, ends, manifest = view.run, view.outcomes, view.run.manifest
    config, population = run.config, run.population
    found = measure(ends)
    order = ranking(ends.final, ends.diverged)
    hero = sections["Learning"][0]
    frozen = np.flatnonzero(ends.diverged)
    return render(
        "report.html.j2",
        title=f"{words.environment(config)} · {manifest.called}",
        seeds=words.seeds(len(ends.final)),
        budget=f"{words.amount(view.budget.amount)} {view.budget.unit}",
        cards=_cards(view, found),
        hero=hero,
        wide=canvas.draw_svg(hero._replace(size=WIDE)),
        sections=sections,
        drawn=drawn,
        advice=_advice(run.summary),
        remarks=remarks(ends),
        measures=[
            (about, write(one.value, about.kind), write_interval(one, about.kind))
            for about, one in _measures(view, found)
        ],
        scored=len(ends.scores) > 0,
        unsolvable=ends.solving is None,
        listed=[_seed(view, int(row), rank) for rank, row in _listed(order)],
        diverged=[
            (
                int(population.seeds[row]),
                int(population.frozen_at[row]),
                CAUSES[population.cause[row]],
            )
            for row in frozen[:100]
        ],
        diverged_count=len(frozen),
        config=reproduce.changed(manifest),
        preset=manifest.preset if manifest.preset in PRESETS else None,
        made=made.rows(manifest, [made.Cost.of(run)]),
        commands=reproduce.commands(manifest),
        commit=manifest.made.get("commit"),
    )


def _measures(view: View, found: dict[str, Estimate | None]) -> Iterator[tuple[Measure, Estimate]]:
    """What there is in numbers: of the final returns, then of the last evaluation."""
    yield from ((MEASURES[name], one) for name, one in found.items() if one is not None)
    for mode, one in last_evaluation(view.run.population).items():
        assert view.run.manifest.evaluating is not None
        episodes = view.run.manifest.evaluating.episodes
        says = f"of each seed's mean return in {episodes} fresh episodes"
        yield Measure(f"{mode} at the end, IQM", "return", says), one


def _cards(view: View, found: dict[str, Estimate | None]) -> list[tuple[str, str, str]]:
    """The page's first numbers: label, number, note."""
    cards = []
    for name in ("iqm", "solved", "time_to_solve"):
        one = found[name]
        if one is not None:
            kind = MEASURES[name].kind
            label = "final return, IQM" if name == "iqm" else MEASURES[name].label
            cards.append((label, write(one.value, kind), write_interval(one, kind)))
    scores = view.outcomes.scores
    if len(scores):
        lowest, highest = words.returned(scores.min()), words.returned(scores.max())
        cards.append(("worst seed", lowest, f"best {highest}"))
    diverged = int(view.outcomes.diverged.sum())
    cards.append(("diverged", str(diverged), f"of {words.seeds(len(view.outcomes.final))}"))
    return cards


def _listed(order: np.ndarray) -> list[tuple[int, int]]:
    """Rank from 1, and row, of the seeds at either end and in the middle, or of all."""
    count = len(order)
    ranks = set(range(count))
    if count > ALL_LISTED:
        ranks = {*range(LISTED), count // 2, *range(count - LISTED, count)}
    return [(rank + 1, int(order[rank])) for rank in sorted(ranks)]


def _seed(view: View, row: int, rank: int) -> tuple[int, int, str, str]:
    """Rank, seed, final return and when it solved the task, for the table."""
    ends, solving = view.outcomes, view.outcomes.solving
    final = "no episode" if np.isnan(ends.final[row]) else words.returned(ends.final[row])
    said = [] if solving is None else ["never" if solving.judged[row] else "too few episodes"]
    if solving is not None and solving.ever[row]:
        said = [words.amount(solving.time[row])]
        said += ["lost again"] if solving.collapsed[row] else []
    if ends.diverged[row]:
        said.append(f"diverged: counts with {words.returned(ends.floor)}")
    return rank, int(view.run.population.seeds[row]), final, ", ".join(said)
