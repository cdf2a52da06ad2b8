"""How often is a race wrong, and how many seeds does it take beside a test of a fixed number?

    python -m benchmarks.race [--smoke]

Simulates races of equal contenders, of contenders of which neither is better though they differ,
and of different ones, whose scores are spread as those of policy gradients are and as they are not.
Trains nothing. The numbers go to benchmarks/results/race-cpu.json, and into docs/statistics.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks.measure import command_line
from benchmarks.record import markdown, write
from jaxpg.analysis.race import ALPHA, Plan, race, rounds
from jaxpg.analysis.stats import improvement, seeds_needed

Draw = Callable[[np.random.Generator, int], np.ndarray]
SAMPLE = 2_000  # scores by which the fixed test knows the difference beforehand
HIGHEST = 0.999  # power that a fixed test is asked for


def normal(mean: float, spread: float = 1.0) -> Draw:
    """Scores that are spread evenly around one value."""
    return lambda rng, n: rng.normal(mean, spread, n)


def bimodal(fails: float) -> Draw:
    """Seeds that learn, to about 480, and a share that fails, at about 30."""
    return lambda rng, n: np.where(
        rng.random(n) < fails, rng.normal(30, 10, n), rng.normal(480, 15, n)
    )


def tied(short: float) -> Draw:
    """Seeds that end at 500 exactly, and a share that falls short."""
    return lambda rng, n: np.where(rng.random(n) < short, rng.uniform(100, 500, n), 500.0)


def either(rng: np.random.Generator, n: int) -> np.ndarray:
    """300 or 500: as often better as worse than 400."""
    return np.where(rng.random(n) < 0.5, 300.0, 500.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """Two contenders."""

    name: str
    one: Draw
    other: Draw
    kind: str  # equal, neither or different
    most: int  # seeds

    @property
    def plan(self) -> Plan:
        """Ten swaps are struck out in each round, so that all of α is spent."""
        planned = rounds(16, self.most)
        return Plan(2, planned, ALPHA, swaps=round(10 * len(planned) / ALPHA))


CASES = (
    Case("normal", normal(0), normal(0), "equal", 64),
    Case("bimodal: 30 % fail", bimodal(0.3), bimodal(0.3), "equal", 64),
    Case("tied: 60 % at 500", tied(0.4), tied(0.4), "equal", 64),
    Case("normal, spread 1 and 5", normal(0, 1), normal(0, 5), "neither", 64),
    Case("normal, spread 1 and 5", normal(0, 1), normal(0, 5), "neither", 256),
    Case("400, and 300 or 500", normal(400, 0), either, "neither", 64),
    Case("400, and 300 or 500", normal(400, 0), either, "neither", 256),
    Case("normal, 2 σ apart", normal(2), normal(0), "different", 256),
    Case("normal, 1 σ apart", normal(1), normal(0), "different", 256),
    Case("normal, ½ σ apart", normal(0.5), normal(0), "different", 256),
    Case("bimodal: 10 and 50 % fail", bimodal(0.1), bimodal(0.5), "different", 256),
    Case("tied: 90 and 60 % at 500", tied(0.1), tied(0.4), "different", 256),
)


def main() -> None:
    """Simulate, print, and write what was found."""
    options = command_line(__doc__).parse_args()
    if options.smoke:
        record = simulate(races={"equal": 20, "neither": 20, "different": 20})
    else:
        record = simulate(races={"equal": 10_000, "neither": 2_000, "different": 1_000})
        write("race", record)
    print(page_part(record))


def simulate(races: dict[str, int]) -> dict[str, Any]:
    """All cases, and what a test at ALPHA after every round would do."""
    cases = [
        {"name": case.name, "kind": case.kind, "max_seeds": case.most, **measure(case, races)}
        for case in CASES
    ]
    return {"alpha": ALPHA, "races": races, "cases": cases, "peeking": peeking(100_000)}


def measure(case: Case, races: dict[str, int]) -> dict[str, Any]:
    """One case."""
    rng = np.random.default_rng(0)
    ends = [
        race(case.plan, [case.one(rng, case.most), case.other(rng, case.most)])[-1]
        for _ in range(races[case.kind])
    ]
    better = [end.pairs[0].better for end in ends]
    if case.kind != "different":
        return {"told_apart": 1 - better.count(None) / len(better)}
    seeds = np.array([end.seeds for end in ends])
    one, other = case.one(rng, SAMPLE), case.other(rng, SAMPLE)
    power = better.count(0) / len(better)
    return {
        "improvement": improvement([one], [other]).value,
        "right": power,
        "wrong": better.count(1) / len(better),
        "seeds_mean": float(seeds.mean()),
        "seeds_of_90_percent": float(np.quantile(seeds, 0.9, method="inverted_cdf")),
        "fixed_of_same_power": seeds_needed(one, other, min(power, HIGHEST)),
        "fixed_of_80_percent": seeds_needed(one, other, 0.8),
    }


def peeking(repetitions: int) -> dict[str, Any]:
    """How often two that are alike are told apart by a test at ALPHA after every round."""
    planned = np.array(rounds(16, 1024))
    steps = np.sqrt(np.diff(planned, prepend=0))
    walks = np.random.default_rng(0).normal(size=(repetitions, len(planned))) * steps
    scores = walks.cumsum(axis=1) / np.sqrt(planned)  # normal, as with many seeds
    wrong = (np.abs(scores) > norm.ppf(1 - ALPHA / 2)).any(axis=1)
    return {"rounds": planned.tolist(), "told_apart": float(wrong.mean())}


def page_part(record: dict[str, Any]) -> str:
    """Both tables."""
    alike = [case for case in record["cases"] if case["kind"] != "different"]
    apart = [case for case in record["cases"] if case["kind"] == "different"]
    wrong = markdown(
        ["neither is better", "seeds at most", "told apart"],
        [
            [
                f"{case['name']}{', both' if case['kind'] == 'equal' else ''}",
                str(case["max_seeds"]),
                f"{case['told_apart']:.1%}",
            ]
            for case in alike
        ],
    )
    columns = [
        *("one is better", "P(improvement)", "the better one is found"),
        *("seeds of each, mean", "in 90 % at most", "fixed test, same power", "fixed test, 80 %"),
    ]
    saved = markdown(
        columns,
        [
            [
                case["name"],
                f"{case['improvement']:.2f}",
                f"{case['right']:.1%}",
                f"{case['seeds_mean']:.0f}",
                f"{case['seeds_of_90_percent']:.0f}",
                f"{case['fixed_of_same_power']}",
                f"{case['fixed_of_80_percent']}",
            ]
            for case in apart
        ],
    )
    counts, peeking = record["races"], record["peeking"]
    origin = (
        f"`python -m benchmarks.race`, α = {record['alpha']:.0%}: {counts['equal']:,} races of "
        f"equal ones, {counts['neither']:,} where neither is better though they differ, "
        f"{counts['different']:,} of each difference, of 256 seeds at most. A test at "
        f"{record['alpha']:.0%} after each of the {len(peeking['rounds'])} rounds of "
        f"{peeking['rounds'][-1]:,} seeds would tell {peeking['told_apart']:.0%} of equal ones "
        "apart."
    )
    return f"{wrong}\n\n{saved}\n\n{origin}"


if __name__ == "__main__":
    main()
