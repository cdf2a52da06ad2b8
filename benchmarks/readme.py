"""Put the figures of benchmarks/results into README.md, benchmarks/README.md and docs/.

python -m benchmarks.readme
"""

import statistics
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import certificate, gpu, race, tpu
from benchmarks.audit import page as audit
from benchmarks.record import commits, fill, markdown, processors, read
from jaxpg import words
from jaxpg.core.presets import PRESETS
from jaxpg.words import short

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write each page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(page, path.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str, text: str) -> str:
    """A page with each generated part made anew."""
    parts = {}
    for name, make in PAGES[page].items():
        record = read(name, "gpu" if name == "gpu" else "cpu")
        missing = f"Not measured yet: `python -m benchmarks.{name}`."
        parts[name] = missing if record is None else make(record)
    return fill(text, parts)


def _train(record: dict[str, Any]) -> str:
    s = record["summary"]
    spread = s["final_return"]
    low, high = words.returned(spread["ci95_low"]), words.returned(spread["ci95_high"])
    text = (
        f"{words.share(s['solved_fraction'])} of {words.seeds(s['seeds'])} end with a mean return "
        f"of at least {s['solved_at']:g} over their last 100 episodes; IQM "
        f"{words.returned(spread['iqm'])} (95 % interval {low} to {high}), worst seed "
        f"{words.returned(spread['min'])}. {s['total_env_steps'] / 1e6:.0f} million environment "
        f"steps in {words.duration(s['wall_seconds'])}, {_millions(s['env_steps_per_second'])} "
        f"million a second, compiling ({words.duration(s['compile_seconds'])}) aside."
    )
    return f"{_filled(text)}\n\n{_origin(record)}, {_machine(record)}."


def _train_line(record: dict[str, Any]) -> str:
    s = record["summary"]
    solved = round(s["solved_fraction"] * s["seeds"])
    of_them = "all" if solved == s["seeds"] else f"{solved:,} of them"
    return _filled(
        f"{words.seeds(s['seeds'])} of `vpg` train in {words.duration(s['wall_seconds'])} on "
        f"{s['device']['count']} CPU cores ({record['processor']}), compilation apart; "
        f"{of_them} solve {s['env']}, the worst with a return of "
        f"{words.returned(s['final_return']['min'])}."
    )


def _parity(record: dict[str, Any]) -> str:
    levels, faults = record["levels"], record["faults"]
    columns = ["level", "compared", "configurations × seeds", "worst relative error", "tolerance"]
    rows = [
        [
            row["level"],
            row["compares"],
            f"{row['configurations']} × {row['seeds']}",
            _number(row["error"]),
            _number(row["tolerance"]),
        ]
        for row in levels
    ]
    assert record["passed"], "a certificate that fails is not shown"
    by_level = Counter(catch["level"] for catch in faults)
    order = [row["level"] for row in levels if by_level[row["level"]]]
    caught = ", ".join(f"{by_level[level]} by {level}" for level in order)
    text = (
        f"{len(faults)} faults planted in the PyTorch side are all caught, by the first level that "
        f"can: {caught}."
    )
    origin = f"{_origin(record)}, torch {record['versions']['torch']}, on a CPU."
    return f"{markdown(columns, rows)}\n\n{_filled(text)}\n\n{origin}"


def _certificate(record: dict[str, Any]) -> str:
    rows = record["rows"]
    assert certificate.holds(rows), "a certificate that fails"
    long = [name for name, case in record["cases"].items() if case["updates"] is None]
    groups = [(_on_grid(name, record), [r for r in rows if r["case"] == name]) for name in long]
    groups += [("the other presets and variants", [r for r in rows if r["case"] not in long])]
    lines = [_verdicts(what, mine) for what, mine in groups if mine]
    origin = f"(`make certificate`, {commits(record)}, torch {record['torch']})"
    text = (
        f"{'; '.join(lines)}. Equal is every observation, action and return and, after each "
        f"update, every parameter, bit by bit; one SHA-256 on both sides {origin}."
    )
    parted = [row for row in rows if row["verdict"] == "straddle"]
    shown = [next(row for row in parted if row["case"] == name) for name in _cases_of(parted)]
    examples = [
        f"Seed {row['seed']} of `{row['case']}` parts after {row['env_steps']:,} steps:\n\n"
        + textwrap.indent(_filled(row["split"]), "> ")
        for row in shown
    ]
    return "\n\n".join([_filled(text), *examples])


def _on_grid(name: str, record: dict[str, Any]) -> str:
    grid = record["cases"][name]["config"]["arithmetic"]
    return f"`{name}` (`{grid}`)"


def _verdicts(what: str, rows: list[dict[str, Any]]) -> str:
    """How many runs are equal to their end, and when the others part."""
    equal = sum(row["verdict"] == "equal" for row in rows)
    steps = sum(row["env_steps"] for row in rows)
    said = f"{equal} of {len(rows)} runs of {what} are equal to their end"
    parted = sorted(row["env_steps"] for row in rows if row["verdict"] == "straddle")
    if parted:
        first, last = f"{parted[0]:,}", f"{parted[-1]:,}"
        after = first if first == last else f"{first} to {last}"
        said += f", {len(parted)} until a straddle, after {after} steps"
    return f"{said} ({steps:,} steps in all)"


def _cases_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in rows))


def _divergence(record: dict[str, Any]) -> str:
    return f"{record['table']}\n\n{_origin(record)}."


def _speed_line(record: dict[str, Any]) -> str:
    speeds = {
        (row["what"], row["options"]["seeds"]): statistics.median(row["steps_per_second"])
        for row in record["rows"]
    }
    few, many = (speeds["jaxpg", seeds] / speeds["textbook", seeds] for seeds in (64, 1024))
    return _filled(
        f"On {record['device']['count']} CPU cores ({record['processor']}) jaxpg trains on "
        f"{_millions(speeds['jaxpg', 64])} million environment steps a second with 64 seeds and "
        f"{_millions(speeds['jaxpg', 1024])} million with 1,024: {few:.0f} and {many:.0f} times "
        "the textbook's `jit(vmap(train))` of the same algorithm."
    )


def _ppo_line(record: dict[str, Any]) -> str:
    speeds = {
        (row["what"], row["options"]["seeds"], row["options"]["num_envs"]): statistics.median(
            row["steps_per_second"]
        )
        for row in record["rows"]
        if row["steps_per_second"]
    }
    with_4, with_16 = (speeds["jaxpg", 64, number] for number in (4, 16))
    few, many = (
        speed / speeds["textbook", 64, number] for speed, number in ((with_4, 4), (with_16, 16))
    )
    return _filled(
        "`ppo` at PureJaxRL's sizes (two networks of 64 × 64, 4 epochs of 4 minibatches) trains "
        f"64 seeds on {with_4 / 1e3:.0f},000 steps a second with 4 environments, {few:.1f} times "
        f"the textbook's loop, and on {with_16 / 1e3:.0f},000 with 16, {many:.1f} times "
        f"({record['device']['count']} cores, {record['processor']}). Arithmetic takes the time, "
        f"at {with_4 * record['flop_per_step'] / record['limit_flop_per_second']:.0%} and "
        f"{with_16 * record['flop_per_step'] / record['limit_flop_per_second']:.0%} of the "
        "machine's measured multiply-add rate."
    )


def _table(record: dict[str, Any]) -> str:
    return f"{record['table']}\n\n{_origin(record)}, {_machine(record)}."


def _reference(record: dict[str, Any]) -> str:
    return f"{record['table']}\n\nSeeds 0, 1, … of each: {_origin(record)}, {_machine(record)}."


def plain(record: dict[str, Any]) -> str:
    """A record's table, and where it comes from."""
    repeated = len(record["rows"][0]["repetitions"]) if record["rows"] else 1
    medians = f"medians of {repeated}" if repeated > 1 else "one measurement"
    return f"{record['table']}\n\n{_origin(record)}, {_machine(record)}; {medians}."


def _gpu(record: dict[str, Any]) -> str:
    """What was measured on a GPU, and beside it what had been predicted without one."""
    before = read("gpu")
    assert before is not None, "what was predicted is beside what was measured"
    measured = {gpu.key_of(row): row["steps_per_second"] for row in record["rows"]}
    predicted = {gpu.key_of(one): one["steps_per_second"] for one in before["predicted"]}
    rows = []
    for key in (*measured, *(key for key in predicted if key not in measured)):
        preset, _, lanes = key
        rate, ratio = "", ""
        if key in measured:
            plain = statistics.median(measured[preset, "textbook", lanes])
            rate = short(statistics.median(measured[key]))
            ratio = f"{statistics.median(measured[key]) / plain:.1f} x"
        expected = short(predicted[key]) if key in predicted else ""
        rows.append([*map(str, key), rate, ratio, expected])
    columns = [
        "preset",
        "form",
        "lanes",
        "trained steps/s",
        "to the textbook",
        "predicted without a GPU",
    ]
    _, *notes = record["table"].split("\n\n")
    seeds = "\n\n".join(notes).removesuffix(" Not predicted: measured instead.")
    return (
        f"{markdown(columns, rows)}\n\n{seeds}\n\n{_origin(record)}, {record['device']['kind']}; "
        f"medians of {len(record['rows'][0]['steps_per_second'])}. The prediction is commit "
        f"{before['commit']}'s (benchmarks/h100.py)."
    )


def _gpu_line(record: dict[str, Any]) -> str:
    rates = {gpu.key_of(row): statistics.median(row["steps_per_second"]) for row in record["rows"]}
    (whole,) = (one for one in record["trainings"] if one["form"] == "fused")
    seeds = whole["seeds"]
    fused, plain = (rates["vpg", form, seeds] for form in ("fused", "textbook"))
    solved = round(whole["solved"] * seeds)
    return _filled(
        f"{words.seeds(seeds)} of `vpg` take {whole['wall_seconds']:.1f} s on one "
        f"{record['device']['kind']}, compilation apart, and {solved:,} solve CartPole-v1; the "
        f"program alone runs {fused / 1e9:.2f} billion steps a second, {fused / plain:.1f} times "
        "the textbook's `jit(vmap(train))`."
    )


def _tpu(record: dict[str, Any]) -> str:
    done = {(row["preset"], row["chip"]) for row in record["rows"]}
    empty = len(PRESETS) * len(tpu.CHIPS) - len(done)
    said = f" Not compiled until now: the {empty} empty cells." if empty else ""
    return f"{record['table']}\n\n{_origin(record)}, libtpu {record['libtpu']}.{said}"


def _trust_region(record: dict[str, Any]) -> str:
    table, *said = record["table"].split("\n\n")
    return "\n\n".join([table, *map(_filled, said), f"{_origin(record)}, {_machine(record)}."])


def _trust_region_line(record: dict[str, Any]) -> str:
    fresh = record["kl"]["fresh"]
    return _filled(
        "On the states that the same policy meets elsewhere, with other noise, the steps of `trpo` "
        f"go {fresh['median']:.2f} δ far in the median, {fresh['q95']:.2f} δ at the 95th "
        f"percentile, and {fresh['largest']:.1f} δ at most: within 2 δ in "
        f"{words.share(record['kept_on_fresh_states'])} of {record['updates']:,} updates of "
        f"{words.seeds(record['seeds'])} (`python -m benchmarks.trust_region`)."
    )


def _origin(record: dict[str, Any]) -> str:
    return f"`{record['command']}`, {commits(record)}, jax {record['versions']['jax']}"


def _machine(record: dict[str, Any]) -> str:
    return f"{record['device']['count']} cores ({processors(record)})"


def _millions(number: float) -> str:
    return f"{number / 1e6:.1f}"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _number(error: float) -> str:
    return f"{error:.0e}" if error else "0 (bits)"


PAGES = {
    "README.md": {"train": _train_line, "gpu": _gpu_line},
    "docs/performance.md": {"throughput": _speed_line, "ppo": _ppo_line, "gpu": _gpu_line},
    "docs/results.md": {"reference": _reference, "optimum": _table},
    "docs/mathematics.md": {"trust_region": _trust_region_line},
    "docs/statistics.md": {"race": race.page_part},
    "docs/audit.md": {"audit": audit.audit},
    "docs/parity.md": {"audit": audit.twins, "parity": _parity},
    "docs/invariance.md": {"invariance": _table},
    "docs/scaling.md": {"cluster": _table},
    "docs/lockstep.md": {"certificate": _certificate, "divergence": _divergence},
    "benchmarks/README.md": {
        "train": _train,
        "presets": _table,
        **dict.fromkeys(
            ("ppo", "throughput", "scaling", "roofline", "time_to_solve", "compile", "memory"),
            plain,
        ),
        "gpu": _gpu,
        "tpu": _tpu,
        "trust_region": _trust_region,
    },
}

if __name__ == "__main__":
    main()
