"""Put the figures of benchmarks/results into README.md, benchmarks/README.md and docs.

python -m benchmarks.readme
"""

import json
import statistics
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import short
from benchmarks.record import RESULTS, fill, markdown

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write each page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(page, path.read_text()))


def render(page: str, text: str) -> str:
    """A page with each generated part made anew."""
    parts = {}
    for name, make in PAGES[page].items():
        path = RESULTS / f"{name}-{'gpu' if name == 'gpu' else 'cpu'}.json"
        if path.exists():
            parts[name] = make(json.loads(path.read_text()))
        else:
            parts[name] = f"Not measured yet: `python -m benchmarks.{name}`."
    return fill(text, parts)


def _train(record: dict[str, Any]) -> str:
    s = record["summary"]
    spread = s["final_return"]
    text = (
        f"{s['solved_fraction']:.1%} of {s['seeds']} seeds end with a mean return of at least "
        f"{s['solved_at']:g} over their last 100 episodes; IQM {spread['iqm']:.1f} (95 % interval "
        f"{spread['ci95_low']:.1f} to {spread['ci95_high']:.1f}), worst seed {spread['min']:.1f}. "
        f"{s['total_env_steps'] / 1e6:.0f} million environment steps in {s['wall_seconds']:.0f} s "
        f"on {s['device']['count']} CPU cores, {s['env_steps_per_second'] / 1e6:.2f} million a "
        f"second, compiling ({s['compile_seconds']:.0f} s) aside: `{record['command']}`, commit "
        f"{record['commit']}, jax {s['versions']['jax']}."
    )
    return textwrap.fill(text, 100)


def _parity(record: dict[str, Any]) -> str:
    levels, faults, versions = record["levels"], record["faults"], record["versions"]
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
    assert record["passed"], "a certificate that fails is not for the README"
    by_level = Counter(catch["level"] for catch in faults)
    order = [row["level"] for row in levels if by_level[row["level"]]]
    caught = ", ".join(f"{by_level[level]} by {level}" for level in order)
    return (
        f"{markdown(columns, rows)}\n\n"
        f"{len(faults)} faults planted in the PyTorch side are all caught, by the first level that "
        f"can: {caught}.\n\n"
        f"`{record['command']}`, commit {record['commit']}, jax {versions['jax']}, torch "
        f"{versions['torch']}, on a CPU."
    )


def _certificate(record: dict[str, Any]) -> str:
    rows, config = record["rows"], record["cases"]["vpg"]["config"]
    assert all(row["verdict"] in ("equal", "straddle") for row in rows), "a certificate that fails"
    whole = [row for row in rows if row["case"] == "vpg"]
    rest = [row for row in rows if row["case"] != "vpg"]
    equal = sum(row["verdict"] == "equal" for row in whole)
    text = (
        f"Whole training runs stay equal too: {equal} of {len(whole)} seeds of `vpg`, "
        f"{config['total_steps']:,} steps each, in two processes of which neither imports the "
        "other framework: every observation, action and return and, at each of "
        f"{whole[0]['updates']} updates, every parameter, bit by bit; one SHA-256 on both sides"
    )
    if rest:
        steps = sum(row["env_steps"] for row in rest)
        text += f"; and {len(rest)} shorter runs of the other presets and variants, {steps:,} steps"
    text += f" (`make certificate`, commit {record['commit']}, torch {record['torch']})."
    for row in rows:
        if row["verdict"] == "straddle":
            text += (
                f" Seed {row['seed']} of `{row['case']}` parts after {row['env_steps']:,} steps, "
                "where the two float64 values of one number lie on either side of the middle "
                "between two float32 numbers: a straddle, told from a fault and reported as one "
                "(docs/lockstep.md)."
            )
    return textwrap.fill(text, 100)


def _speed(record: dict[str, Any]) -> str:
    speeds = {
        (row["what"], row["options"]["seeds"]): statistics.median(row["steps_per_second"])
        for row in record["rows"]
    }
    few, many = (speeds["jaxpg", seeds] / speeds["textbook", seeds] for seeds in (64, 1024))
    text = (
        f"`vpg`, with its four value steps an update, trains on "
        f"{speeds['jaxpg', 64] / 1e6:.1f} million environment steps a second with 64 seeds and "
        f"{speeds['jaxpg', 1024] / 1e6:.1f} million with 1,024 on {record['device']['count']} CPU "
        f"cores ({record['processor']}): {few:.1f} and {many:.1f} times the textbook's "
        f"`jit(vmap(train))` of the same "
        f"algorithm, {speeds['jaxpg', 64] / speeds['torch_ref', 1]:,.0f} times `torch_ref` "
        f"(`{record['command']}`, commit {record['commit']}, medians of "
        f"{len(record['rows'][0]['repetitions'])}): [docs/performance.md](docs/performance.md)."
    )
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def plain(record: dict[str, Any]) -> str:
    """A record's table, and where it comes from."""
    repeated = len(record["rows"][0]["repetitions"]) if record["rows"] else 1
    medians = f"medians of {repeated}" if repeated > 1 else "one measurement"
    return (
        f"{record['table']}\n\n`{record['command']}`, commit {record['commit']}, jax "
        f"{record['versions']['jax']}, {record['device']['count']} cores ({record['processor']}); "
        f"{medians}."
    )


def _gpu(record: dict[str, Any]) -> str:
    """What was measured on a GPU, and beside it what had been predicted without one."""
    before = json.loads((RESULTS / "gpu-cpu.json").read_text())
    predicted = {
        (one["form"], one["lanes"]): one["steps_per_second"] for one in before["predicted"]
    }
    rows = []
    for one in record["rows"]:
        key, rate = (one["form"], one["lanes"]), statistics.median(one["steps_per_second"])
        (plain,) = (
            statistics.median(other["steps_per_second"])
            for other in record["rows"]
            if (other["form"], other["lanes"]) == ("textbook", one["lanes"])
        )
        expected = short(predicted[key]) if key in predicted else ""
        rows.append([*map(str, key), short(rate), f"{rate / plain:.1f} x", expected])
    columns = ["form", "lanes", "trained steps/s", "to the textbook", "predicted without a GPU"]
    _, *notes = record["table"].split("\n\n")
    seeds = "\n\n".join(notes).removesuffix(" Not predicted: measured instead.")
    return (
        f"{markdown(columns, rows)}\n\n{seeds}\n\n`{record['command']}`, commit "
        f"{record['commit']}, jax {record['versions']['jax']}, {record['device']['kind']}; medians "
        f"of {len(record['rows'][0]['steps_per_second'])}. The prediction is commit "
        f"{before['commit']}'s (benchmarks/h100.py)."
    )


def _gpu_line(record: dict[str, Any]) -> str:
    rates = {
        (row["form"], row["lanes"]): statistics.median(row["steps_per_second"])
        for row in record["rows"]
    }
    (whole,) = (one for one in record["trainings"] if one["form"] == "fused")
    seeds = whole["seeds"]
    fused, plain = (rates[form, seeds] for form in ("fused", "textbook"))
    text = (
        f"On one {record['device']['kind']} {seeds:,} seeds of `vpg` train to the end in "
        f"{whole['wall_seconds']:.1f} s, and {whole['solved']:.1%} of them solve CartPole: "
        f"{fused / 1e9:.2f} billion steps a second, {fused / plain:.1f} times the textbook's on "
        f"the same card (`{record['command']}`, commit {record['commit']})."
    )
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _number(error: float) -> str:
    return f"{error:.0e}" if error else "0 (bits)"


PAGES = {
    "README.md": {
        "train": _train,
        "throughput": _speed,
        "gpu": _gpu_line,
        "parity": _parity,
        "certificate": _certificate,
    },
    "docs/performance.md": {"throughput": plain, "gpu": _gpu},
    "benchmarks/README.md": {
        **dict.fromkeys(
            ("throughput", "scaling", "roofline", "time_to_solve", "compile", "memory"), plain
        ),
        "gpu": _gpu,
    },
}

if __name__ == "__main__":
    main()
