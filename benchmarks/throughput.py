"""How many environment steps does `vpg` train on in a second?

    python -m benchmarks.throughput [--smoke]

By turns, in processes of their own, each with a warm compilation cache: `jaxpg train vpg`, saving
and all; the textbook's `jit(vmap(train))` (benchmarks/baselines/textbook.py) as anybody would start
it; and `torch_ref`, one seed. Before that, two checks: the textbook's loop learns what jaxpg
learns, and `torch_ref` is bit-equal to jaxpg. Writes benchmarks/results/throughput-cpu.json (or
-gpu) and docs/throughput.png, prints a table.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import markdown, write
from jaxpg.config import PRESETS, Config

PICTURE = Path(__file__).parents[1] / "docs" / "throughput.png"
VPG = PRESETS["vpg"]
STEPS_PER_UPDATE = VPG.num_envs * VPG.num_steps


class Case(NamedTuple):
    """Something to time."""

    contender: str
    seeds: int
    updates: int


CASES = (
    Case("jaxpg", 64, 100),
    Case("textbook", 64, 25),
    Case("jaxpg", 1024, 20),
    Case("textbook", 1024, 5),
    Case("torch_ref", 1, 10),
)
SMOKE = (Case("jaxpg", 4, 3), Case("textbook", 4, 3), Case("torch_ref", 1, 2))
NAMES = {
    "jaxpg": "`jaxpg train`",
    "textbook": "textbook `jit(vmap(train))`",
    "torch_ref": "`torch_ref`",
}


def main() -> None:
    """Check, time by turns, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a minute; writes nothing")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case")
    parser.add_argument("--measure", nargs=3, metavar=("CONTENDER", "SEEDS", "UPDATES"))
    options = parser.parse_args()
    if options.measure:
        contender, seeds, updates = options.measure
        print(json.dumps(CONTENDERS[contender](int(seeds), int(updates))))
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        content = _compare(options.smoke, options.rounds)
    if not options.smoke:
        write("throughput", content)
        draw(content, PICTURE)
    print(content["table"])


def _compare(smoke: bool, repetitions: int) -> dict[str, Any]:
    """Check, then time every case in turn; the first round is the cold one."""
    cases = SMOKE if smoke else CASES
    learned = _learned(*SMOKE[0][1:]) if smoke else _learned(64, VPG.num_updates)
    rounds: list[list[dict[str, Any]]] = []
    for i in range(1 if smoke else repetitions + 1):
        print(f"round {i}" if i else "round 0, which fills the caches", file=sys.stderr)
        rounds.append([_in_process(case) for case in cases])
    measured = rounds if smoke else rounds[1:]
    rows = [
        {**case._asdict(), "cold": rounds[0][i], "repetitions": [row[i] for row in measured]}
        for i, case in enumerate(cases)
    ]
    content = {
        "config": dataclasses.asdict(VPG),
        "flop_per_step": flop_per_step(VPG),
        "limit_flop_per_second": _in_process(Case("limit", 0, 0))["flop_per_second"],
        "learned": learned,
        "rows": rows,
    }
    return {**content, "table": table(content)}


def flop_per_step(config: Config) -> int:
    """Multiplications and additions in the networks for each environment step trained on.

    A network of D inputs, H hidden units and K outputs takes 2H(D + K) forward, and backward, in
    its parameters alone, 2H(D + 2K). The policy acts and is differentiated; the critic is evaluated
    at s and s' for Ψ, and differentiated in each value step.
    """
    inputs, actions, (hidden,) = 4, 2, config.hidden_sizes

    def forward(outputs: int) -> int:
        return 2 * hidden * (inputs + outputs)

    def gradient(outputs: int) -> int:
        return forward(outputs) + 2 * hidden * (inputs + 2 * outputs)

    policy = forward(actions) + gradient(actions)
    return policy + 2 * forward(1) + config.value_steps * gradient(1)


def table(content: dict[str, Any]) -> str:
    """A line for each case: median, range, and how it compares."""
    measured = [speeds(row) for row in content["rows"]]
    textbook = {
        row["seeds"]: statistics.median(speed)
        for row, speed in zip(content["rows"], measured, strict=True)
        if row["contender"] == "textbook"
    }
    lines = []
    for row, speed in zip(content["rows"], measured, strict=True):
        median = statistics.median(speed)
        ratio = median / textbook[row["seeds"]] if row["seeds"] in textbook else None
        limit = median * content["flop_per_step"] / content["limit_flop_per_second"]
        compile_seconds = row["cold"].get("compile_seconds")
        lines.append(
            [
                NAMES[row["contender"]],
                str(row["seeds"]),
                f"{median:,.0f}",
                f"{min(speed):,.0f} to {max(speed):,.0f}",
                "" if ratio is None else f"{ratio:.1f} x",
                f"{limit:.1%}",
                "" if compile_seconds is None else f"{compile_seconds:.0f} s",
            ]
        )
    columns = ["", "seeds", "trained steps/s", "range", "to the textbook",
               "of the multiply-add limit", "cold compile"]  # fmt: skip
    return markdown(columns, lines)


def speeds(row: dict[str, Any]) -> list[float]:
    """Steps per second of each repetition."""
    steps = row["seeds"] * row["updates"] * STEPS_PER_UPDATE
    return [steps / repetition["wall_seconds"] for repetition in row["repetitions"]]


def draw(content: dict[str, Any], path: Path) -> None:
    """Medians and ranges as bars on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(reversed(content["rows"])):
        speed = speeds(row)
        median = statistics.median(speed)
        colour = "#1f6fb4" if row["contender"] == "jaxpg" else "#9aa5b1"
        axes.barh(i, median, color=colour)
        axes.plot([min(speed), max(speed)], [i, i], color="black", linewidth=1)
        axes.annotate(
            f"{median:,.0f}", (median, i), (6, 0), textcoords="offset points", va="center"
        )
    labels = [f"{NAMES[row['contender']].replace('`', '')}, {row['seeds']} seeds"
              for row in reversed(content["rows"])]  # fmt: skip
    axes.set_yticks(range(len(labels)), [label.replace(" 1 seeds", " 1 seed") for label in labels])
    axes.set_xscale("log")
    axes.set_xlabel("environment steps trained on in a second (log scale)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _learned(seeds: int, updates: int) -> dict[str, Any]:
    """That the contenders do the same work: returns of the last tenth, and a lockstep."""
    from jaxpg.proof.lockstep import lockstep

    print("checking that all of them learn the same", file=sys.stderr)
    found = {name: _in_process(Case(name, seeds, updates)) for name in ("jaxpg", "textbook")}
    returns = {name: measured["mean_return"] for name, measured in found.items()}
    grid = dataclasses.replace(VPG, arithmetic="float32_grid")
    (run,) = lockstep(grid, [0], 5)
    assert run.verdict == "equal", run
    if updates == VPG.num_updates:
        assert all(mean > 475 for mean in returns.values()), returns
    return {"seeds": seeds, "mean_return": returns, "torch_ref": run.verdict}


def _in_process(case: Case) -> dict[str, Any]:
    arguments = ["--measure", case.contender, str(case.seeds), str(case.updates)]
    command = [sys.executable, "-m", "benchmarks.throughput", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _budget(updates: int) -> int:
    return updates * STEPS_PER_UPDATE


def _measure_jaxpg(seeds: int, updates: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        size = ["--seeds", str(seeds), "--total-steps", str(_budget(updates)), "--out", str(out)]
        command = [sys.executable, "-m", "jaxpg", "train", "vpg", *size]
        subprocess.run(command, check=True, stdout=sys.stderr)
        summary = json.loads((out / "summary.json").read_text())
        with np.load(out / "results.npz", allow_pickle=False) as arrays:
            mean_return = _last_tenth(arrays["return_sum"], arrays["episodes"])
    measured = {name: summary[name] for name in ("wall_seconds", "compile_seconds")}
    return {**measured, "mean_return": mean_return}


def _measure_textbook(seeds: int, updates: int) -> dict[str, Any]:
    import jax

    from benchmarks.baselines.textbook import make_train

    train = make_train(dataclasses.replace(VPG, total_steps=_budget(updates)))
    keys = jax.random.split(jax.random.key(0), seeds)
    began = time.perf_counter()
    compiled = jax.jit(jax.vmap(train)).lower(keys).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    _, episodes, return_sum = jax.block_until_ready(compiled(keys))
    wall_seconds = time.perf_counter() - began
    return {
        "wall_seconds": wall_seconds,
        "compile_seconds": compile_seconds,
        "mean_return": _last_tenth(np.asarray(return_sum), np.asarray(episodes)),
    }


def _last_tenth(return_sum: np.ndarray, episodes: np.ndarray) -> float:
    """Mean return of the episodes that ended in the last tenth of the updates, [S, U]."""
    last = -(-episodes.shape[1] // 10)
    return float(return_sum[:, -last:].sum() / episodes[:, -last:].sum())


def _measure_torch_ref(seeds: int, updates: int) -> dict[str, Any]:
    import torch_ref
    from torch_ref.config import PRESETS as TWINS

    config = dataclasses.replace(TWINS["vpg"], total_steps=_budget(updates))
    began = time.perf_counter()
    for seed in range(seeds):
        torch_ref.train(config, torch_ref.key(seed))
    return {"wall_seconds": time.perf_counter() - began}


def _measure_limit(seeds: int, updates: int) -> dict[str, Any]:
    """Multiply-adds of a large float32 product on the whole device; the best of many."""
    import jax
    import jax.numpy as jnp

    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest")).lower(x).compile()
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - began)
    return {"flop_per_second": 2 * size**3 / best}


CONTENDERS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "jaxpg": _measure_jaxpg,
    "textbook": _measure_textbook,
    "torch_ref": _measure_torch_ref,
    "limit": _measure_limit,
}

if __name__ == "__main__":
    main()
