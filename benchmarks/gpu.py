"""How fast will `vpg` train on a GPU? Measured where there is one, predicted where there is none.

    python -m benchmarks.gpu [--smoke] [--rounds 5]

The prediction is made from the program that a GPU would be given: the plain forms of `jaxpg.lanes`
and `jaxpg.dense`, one vmap over all lanes. It is lowered for CUDA (StableHLO, which needs no GPU;
XLA's own compilation for one does) and, for its kernels and the bytes between them, compiled and
fused by XLA for this machine. An update takes

    kernels × launch + bytes / bandwidth + operations / arithmetic

with an H100's data-sheet numbers and the fractions of them in `H100`. XLA for CUDA fuses otherwise
than XLA for a CPU, so this is a prediction of the order, not of the digit. Where a GPU is found the
same update is timed at each number of lanes, and stands beside its prediction.
"""

import dataclasses
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import measure, parts
from benchmarks.contenders import VPG
from benchmarks.measure import Case, short
from benchmarks.record import markdown
from benchmarks.throughput import flop_per_step

LANES = (256, 1024, 4096, 16_384)
COUNTED = (64, 128)  # lanes compiled here; what depends on the lanes is linear in them
H100 = {
    "launch_seconds": 3e-6,  # a kernel within a captured or enqueued loop: 2 to 5 µs
    "bytes_per_second": 0.8 * 3.35e12,  # HBM3 of the SXM board, of which a stream gets 80 %
    "flop_per_second": 0.5 * 67e12,  # float32 outside tensor cores, at half of its peak
    "cache_bytes": 50e6,  # L2; what fits in it does not go to HBM, which is not counted on
}


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Count, predict, and time where a GPU is found (the smoke: anywhere)."""
    sizes = (4, 8) if smoke else COUNTED
    rows = measure.by_turns("gpu", [Case("count", {"lanes": lanes}) for lanes in sizes], 1, False)
    counted = [row["repetitions"][0] for row in rows]
    (devices,) = measure.by_turns("gpu", [Case("devices", {})], 1, cold=False)
    found = devices["repetitions"][0]
    timed = []
    if smoke or "gpu" in found["platforms"]:
        run, seconds = (sizes, 0.1) if smoke else (LANES, 2.0)
        cases = [Case("update", {"lanes": lanes, "seconds": seconds}) for lanes in run]
        timed = measure.by_turns("gpu", cases, rounds, cold=True)
    content = {
        "config": dataclasses.asdict(VPG),
        "assumed": H100,
        "counted": counted,
        "cuda": found,
        "predicted": [predict(counted, lanes) for lanes in LANES],
        "rows": timed,
    }
    return {**content, "table": table(content)}


def predict(counted: list[dict[str, float]], lanes: int) -> dict[str, float]:
    """Seconds of one update of so many lanes, and what they go into."""
    few, more = counted

    def at(name: str) -> float:
        slope = (more[name] - few[name]) / (more["lanes"] - few["lanes"])
        return max(0.0, few[name] + slope * (lanes - few["lanes"]))

    launches = at("kernels") * H100["launch_seconds"]
    memory = at("bytes") / H100["bytes_per_second"]
    arithmetic = (at("multiply_adds") + at("arithmetic")) / H100["flop_per_second"]
    seconds = launches + memory + arithmetic
    return {
        "lanes": lanes,
        "launch_seconds": launches,
        "memory_seconds": memory,
        "arithmetic_seconds": arithmetic,
        "steps_per_second": lanes * VPG.num_envs * VPG.num_steps / seconds,
        "bytes": at("bytes"),
    }


def table(content: dict[str, Any]) -> str:
    """A line for each number of lanes."""
    measured = {
        row["options"]["lanes"]: median(one["rate"] for one in row["repetitions"])
        for row in content["rows"]
    }
    lines = [
        [
            f"{one['lanes']:,}",
            f"{one['launch_seconds'] * 1e3:.2f} ms",
            f"{one['memory_seconds'] * 1e3:.2f} ms",
            f"{one['arithmetic_seconds'] * 1e3:.2f} ms",
            short(one["steps_per_second"]),
            short(measured[one["lanes"]]) if one["lanes"] in measured else "no GPU here",
        ]
        for one in content["predicted"]
    ]
    columns = ["lanes", "launches", "memory", "arithmetic", "steps/s predicted", "measured"]
    few, more = content["counted"]
    per_lane = (more["bytes"] - few["bytes"]) / (more["lanes"] - few["lanes"])
    per_step = per_lane / (VPG.num_envs * VPG.num_steps)
    most = content["assumed"]["flop_per_second"] / flop_per_step(VPG)
    return (
        f"{markdown(columns, lines)}\n\n{few['kernels']:,.0f} kernels an update; "
        f"{per_step:,.0f} bytes between kernels for a step that is trained on. A kernel that kept "
        f"everything on the chip would be left with the multiply-adds: {short(most)} steps/s. "
        f"StableHLO for CUDA: "
        f"{content['cuda']['operations']:,} operations. Compiling it here: "
        f"{content['cuda']['compile']}."
    )


def draw(content: dict[str, Any], path: Path) -> None:
    """Predicted, and where there is a GPU measured, speed over lanes."""
    figure, (axes,) = measure.figure(6, 3)
    predicted = content["predicted"]
    lanes = [one["lanes"] for one in predicted]
    axes.plot(lanes, [one["steps_per_second"] for one in predicted], "--", color=measure.INK,
              label="H100, predicted from the program")  # fmt: skip
    for i, row in enumerate(content["rows"]):
        speed = median(one["rate"] for one in row["repetitions"])
        axes.plot(row["options"]["lanes"], speed, "o", color=measure.BLUE,
                  label=None if i else "measured")  # fmt: skip
    axes.axhline(1e9, color=measure.GREY, linewidth=1)
    axes.annotate("goal", (lanes[0], 1e9), (0, 4), textcoords="offset points", color=measure.GREY)
    axes.margins(y=0.15)
    axes.set(xscale="log", yscale="log", xlabel="lanes", ylabel="environment steps/s")
    axes.legend(frameon=False)
    figure.savefig(path)


def count(lanes: int) -> dict[str, float]:
    """What one update does as any backend but a CPU is given it."""
    measure.start_as_jaxpg()
    from benchmarks import hlo

    with mock.patch("jax.default_backend", return_value="gpu"):  # the forms that are no CPU's
        part = parts.make("update", VPG, lanes)
        compiled = part.function.lower(*part.arguments).compile()
    return {"lanes": lanes, **hlo.count(compiled.as_text())._asdict()}


def devices() -> dict[str, Any]:
    """Which backends there are, and how far a CUDA program comes without a GPU."""
    measure.start_as_jaxpg()
    import jax
    from jax import export

    with mock.patch("jax.default_backend", return_value="gpu"):
        part = parts.make("update", VPG, 64)
        exported = export.export(part.function, platforms=["cuda"])(*part.arguments)
    try:
        compiled = f"possible, {len(jax.devices('cuda'))} found"
    except RuntimeError as error:
        compiled = f"not possible ({str(error).split(':')[0]})"
    operations = len(re.findall(r"^\s+(?:%|return)", exported.mlir_module(), flags=re.M))
    return {
        "platforms": [jax.default_backend()],
        "operations": operations,
        "compile": compiled,
    }


def update(lanes: int, seconds: float) -> dict[str, float]:
    """Environment steps a second of `update` on this GPU."""
    measure.start_as_jaxpg()
    part = parts.make("update", VPG, lanes)
    rate = measure.rate_of_all_cores(part.function, part.arguments, part.env_steps, seconds)
    memory = part.function.lower(*part.arguments).compile().memory_analysis()
    print(f"{lanes} lanes: {short(rate)} steps/s", file=sys.stderr)
    return {"rate": rate, "temporary_bytes": memory.temp_size_in_bytes}


SCRIPT = measure.Script(
    name="gpu",
    doc=__doc__ or "",
    rounds=5,
    measures={"count": count, "devices": devices, "update": update},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
