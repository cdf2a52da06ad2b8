"""How many environment steps does `vpg` train on in a second, and with what part of the time?

    python -m benchmarks.throughput [--smoke] [--rounds 3]

By turns, in processes of their own, each with a warm compilation cache: `jaxpg train vpg`, saving
and all; the textbook's `jit(vmap(train))` (benchmarks/baselines/textbook.py) as anybody would start
it; `torch_ref`, one seed, and at its best, all seeds batched by `torch.func`, eager and under
`torch.compile` (benchmarks/baselines/torch_batched.py); Stable-Baselines3 A2C where it is
installed. Then jaxpg's parts, each compiled alone.

Before that, three checks: the textbook's loop learns what jaxpg learns, `torch_ref` is bit-equal to
jaxpg, and an update of the batched one is torch_ref's.
"""

import dataclasses
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, measure, parts
from benchmarks.contenders import NAMES, VPG
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg.core.config import Config

MAIN = (("jaxpg", 64, 488), ("textbook", 64, 25), ("jaxpg", 1024, 488), ("textbook", 1024, 3))
RIVALS = (("torch_ref", 1, 8), ("torch_batched", 64, 8), ("torch_compiled", 64, 8),
          ("torch_compiled", 1024, 1), ("sb3", 1, 8))  # fmt: skip
SMOKE = (("jaxpg", 4, 3), ("textbook", 4, 3), ("torch_ref", 1, 1), ("torch_batched", 4, 2))


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Check, then time every case in turn; the first round is the cold one."""
    missing = contenders.absent()
    chosen = [one for one in (SMOKE if smoke else MAIN + RIVALS) if one[0] not in missing]
    cases = [Case(what, {"seeds": seeds, "updates": updates}) for what, seeds, updates in chosen]
    seconds = 0.1 if smoke else 2.0
    cases += [
        Case("part", {"name": name, "seconds": seconds})
        for name in (("noise",) if smoke else parts.NAMES)
    ]
    learned = check_equal(4, 3) if smoke else check_equal(16, VPG.num_updates)
    rows = with_speeds(measure.by_turns("throughput", cases, rounds, cold=not smoke))
    content = {
        "config": dataclasses.asdict(VPG),
        "flop_per_step": flop_per_step(VPG),
        "limit_flop_per_second": measure.in_process("roofline", Case("multiply_add", {}))["rate"],
        "learned": learned,
        "left_out": missing,
        "rows": [row for row in rows if row["what"] != "part"],
        "parts": [row for row in rows if row["what"] == "part"],
    }
    return {**content, "table": table(content)}


def flop_per_step(config: Config) -> int:
    """Multiplications and additions in the networks for each environment step trained on.

    A network of D inputs, H hidden units and K outputs takes 2H(D + K) forward, and backward, in
    its parameters alone, 2H(D + 2K). What is needed is counted, and once: the policy's gradient
    follows from what it said when it acted, and the first value step from the V(s) that Ψ has.
    """
    inputs, actions, (hidden,) = 4, 2, config.hidden_sizes

    def forward(outputs: int) -> int:
        return 2 * hidden * (inputs + outputs)

    def backward(outputs: int) -> int:
        return 2 * hidden * (inputs + 2 * outputs)

    policy = forward(actions) + backward(actions)
    return policy + (1 + config.value_steps) * forward(1) + config.value_steps * backward(1)


def with_speeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with the steps a second of its repetitions."""
    return [
        {**row, "steps_per_second": [_speed(row, one) for one in row["repetitions"]]}
        for row in rows
    ]


def ratios(rows: list[dict[str, Any]]) -> dict[int, float]:
    """How many times as fast as the textbook's loop jaxpg is, by the number of seeds."""
    speeds = {
        (row["what"], row["options"]["seeds"]): median(row["steps_per_second"]) for row in rows
    }
    return {
        seeds: speed / speeds["textbook", seeds]
        for (what, seeds), speed in speeds.items()
        if what == "jaxpg" and ("textbook", seeds) in speeds
    }


def table(content: dict[str, Any]) -> str:
    """A line for each contender, then one for each part."""
    textbook = {
        row["options"]["seeds"]: median(row["steps_per_second"])
        for row in content["rows"]
        if row["what"] == "textbook"
    }
    lines = []
    for row in content["rows"]:
        seeds, speed = row["options"]["seeds"], row["steps_per_second"]
        middle = median(speed)
        lines.append(
            [
                NAMES[row["what"]],
                str(seeds),
                f"{middle:,.0f}",
                f"{min(speed):,.0f} to {max(speed):,.0f}",
                f"{middle / textbook[seeds]:.1f} x" if seeds in textbook else "",
                f"{middle * content['flop_per_step'] / content['limit_flop_per_second']:.1%}",
            ]
        )
    columns = ["", "seeds", "trained steps/s", "range", "to the textbook",
               "of the multiply-add limit"]  # fmt: skip
    alone = [
        [parts.NAMES[row["options"]["name"]], f"{median(row['steps_per_second']):,.0f}"]
        for row in content["parts"]
    ]
    left_out = [f"Left out: {reason}." for reason in content["left_out"].values()]
    tables = [markdown(columns, lines)]
    if alone:
        tables.append(markdown(["part of an update, alone", "steps/s"], alone))
    return "\n\n".join(tables + left_out)


def draw(content: dict[str, Any], path: Path) -> None:
    """Medians and ranges as bars on a logarithmic axis."""
    rows = content["rows"]
    figure, (axes,) = measure.figure(8, 0.8 + 0.32 * len(rows))
    plural = {1: "1 seed"}
    labels = [
        f"{NAMES[row['what']].replace('`', '')}, "
        f"{plural.get(row['options']['seeds'], str(row['options']['seeds']) + ' seeds')}"
        for row in rows
    ]
    speeds = [row["steps_per_second"] for row in rows]
    measure.bars(axes, labels, speeds, [row["what"] == "jaxpg" for row in rows])
    axes.set_xlabel("environment steps trained on in a second (log scale)")
    figure.savefig(path)


def check_equal(seeds: int, updates: int) -> dict[str, Any]:
    """That the contenders do the same work: returns of the last tenth, and two locksteps."""
    from jaxpg.proof.lockstep import lockstep

    print("checking that all of them learn the same", file=sys.stderr, flush=True)
    names = ("jaxpg", "textbook")
    returns = {
        name: measure.in_process("throughput", Case(name, {"seeds": seeds, "updates": updates}))[
            "mean_return"
        ]
        for name in names
    }
    if updates == VPG.num_updates:
        assert all(mean > 475 for mean in returns.values()), returns
    (run,) = lockstep(dataclasses.replace(VPG, arithmetic="float32_grid"), [0], 5)
    assert run.verdict == "equal", run
    error = measure.in_process("throughput", Case("torch_batched_error", {}))["relative_error"]
    assert error < 1e-5, error
    return {
        "seeds": seeds,
        "mean_return": returns,
        "torch_ref": run.verdict,
        "torch_batched": error,
    }


def torch_batched_error(seeds: int = 3) -> dict[str, float]:
    """Relative difference of the parameters that the batched rival and torch_ref have.

    After one update from the same seeds by the same noise: the largest over seeds and leaves.
    """
    import torch

    import torch_ref
    from benchmarks.baselines.torch_batched import Trainer
    from torch_ref import noise, training

    config = contenders.vpg(4)
    batched = Trainer(config, seeds, compiled=False)
    draws, wanted = [], []
    for seed in range(seeds):
        key_run = noise.streams(torch_ref.key(seed))[2]
        spec, steps = batched.env.spec, config.num_steps
        draws.append(noise.draw(key_run, 0, batched.config, spec, steps))
        state, _ = next(training.updates(batched.config, torch_ref.key(seed)))
        wanted.append(state.params)
    batched.update(
        (
            torch.cat([one.action for one in draws], dim=1),
            torch.cat([one.reset for one in draws], dim=1),
        )
    )
    worst = 0.0
    for seed, params in enumerate(wanted):
        for name, expected in params.named_parameters():
            network, leaf = name.split(".", 1)
            found = batched.params[network][leaf][seed]
            error = (found - expected).detach().norm() / expected.detach().norm()
            worst = max(worst, float(error))
    return {"relative_error": worst}


def _speed(row: dict[str, Any], measured: dict[str, Any]) -> float:
    """Steps a second of one measurement."""
    if row["what"] == "part":
        return measured["rate"]
    options = row["options"]
    return options["seeds"] * contenders.budget(options["updates"]) / measured["wall_seconds"]


SCRIPT = measure.Script(
    name="throughput",
    doc=__doc__ or "",
    rounds=3,
    measures={
        **contenders.MEASURES,
        "part": parts.speed,
        "torch_batched_error": torch_batched_error,
    },
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
