"""How fast does PPO train, beside the loop that people copy, and beside what the machine allows?

    python -m benchmarks.ppo [--smoke] [--rounds 3]

The preset `ppo` with PureJaxRL's sizes (4 environments × 128 steps, 4 epochs × 4 minibatches, two
networks of 2 × 64 tanh), then with 16 environments. By turns, in processes of their own: `jaxpg
train ppo`, saving and all; the textbook's loop (benchmarks/baselines/textbook_ppo.py); `torch_ref`,
one seed; Stable-Baselines3's PPO where it is installed. Before that the loop is shown to learn what
jaxpg learns.
"""

import dataclasses
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, measure
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg import words
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SIZES = {"num_envs": 4, "num_steps": 128, "epochs": 4, "minibatches": 4}
MAIN = (
    *(("jaxpg", 64, 4, 195), ("textbook", 64, 4, 20)),
    *(("jaxpg", 1024, 4, 10), ("textbook", 1024, 4, 10)),
    *(("jaxpg", 64, 16, 60), ("textbook", 64, 16, 6)),
    *(("torch_ref", 1, 4, 8), ("sb3", 1, 4, 8)),
)
SMOKE = (("jaxpg", 4, 4, 3), ("textbook", 4, 4, 3), ("torch_ref", 1, 4, 1))
PATIENCE = {"textbook": 90}  # seconds, of some 30; it can stop for ever in XLA's pool of threads
NAMES = {
    "jaxpg": "`jaxpg train ppo`",
    "textbook": "textbook `jit(vmap(train))`",
    "torch_ref": "`torch_ref`",
    "sb3": "Stable-Baselines3 PPO",
}


def ppo(num_envs: int, updates: int) -> Config:
    """The preset with PureJaxRL's sizes, so many environments and updates."""
    steps = num_envs * SIZES["num_steps"] * updates
    return dataclasses.replace(
        PRESETS["ppo"], **{**SIZES, "num_envs": num_envs, "total_steps": steps}
    )


def jaxpg(seeds: int, num_envs: int, updates: int) -> dict[str, Any]:
    """`jaxpg train`: with its progress, metrics, checkpoints and files."""
    given = {**SIZES, "num_envs": num_envs}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return contenders.command("ppo", seeds, ppo(num_envs, updates).total_steps, *options)


def textbook(seeds: int, num_envs: int, updates: int) -> dict[str, Any]:
    """benchmarks/baselines/textbook_ppo.py, as anybody would start it."""
    from benchmarks.baselines.textbook_ppo import make_train

    return contenders.loop(make_train(ppo(num_envs, updates)), seeds)


def torch_ref(seeds: int, num_envs: int, updates: int) -> dict[str, Any]:
    """The PyTorch twin, one seed after another."""
    return contenders.twin(ppo(num_envs, updates), seeds)


def sb3(seeds: int, num_envs: int, updates: int) -> dict[str, Any]:
    """Stable-Baselines3's, with the same numbers."""
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    config, wall_seconds = ppo(num_envs, updates), 0.0
    for seed in range(seeds):
        envs = DummyVecEnv([lambda: gymnasium.make(config.env)] * num_envs)
        model = PPO(
            "MlpPolicy",
            envs,
            learning_rate=lambda left: config.learning_rate * left,
            n_steps=config.num_steps,
            batch_size=num_envs * config.num_steps // config.minibatches,
            n_epochs=config.epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_coef,
            max_grad_norm=config.max_grad_norm,
            policy_kwargs={"net_arch": list(config.hidden_sizes)},
            seed=seed,
            device="cpu",
        )
        began = time.perf_counter()
        model.learn(config.total_steps)
        wall_seconds += time.perf_counter() - began
    return {"wall_seconds": wall_seconds}


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Check, then time every case in turn; the first round is the cold one."""
    missing = contenders.absent()
    chosen = [one for one in (SMOKE if smoke else MAIN) if one[0] not in missing]
    fields = ("seeds", "num_envs", "updates")
    cases = [Case(what, dict(zip(fields, rest, strict=True))) for what, *rest in chosen]
    learned = check_equal(4, 3) if smoke else check_equal(16, 390)
    rows = measure.by_turns("ppo", cases, rounds, cold=not smoke, may_hang=PATIENCE)
    content = {
        "config": dataclasses.asdict(ppo(4, 195)),
        "flop_per_step": flop_per_step(ppo(4, 195)),
        "limit_flop_per_second": measure.in_process("roofline", Case("multiply_add", {}))["rate"],
        "learned": learned,
        "left_out": {n: why for n, why in missing.items() if n == "sb3"},
        "rows": [{**row, "steps_per_second": speeds(row)} for row in rows],
    }
    return {**content, "table": table(content)}


def check_equal(seeds: int, updates: int) -> dict[str, float]:
    """The mean return of the last tenth of the updates, of jaxpg and of the loop."""
    print("checking that both learn the same", file=sys.stderr, flush=True)
    options = {"seeds": seeds, "num_envs": 4, "updates": updates}
    found = {
        name: measure.in_process("ppo", Case(name, options))["mean_return"]
        for name in ("jaxpg", "textbook")
    }
    if updates > 300:
        assert all(mean > 475 for mean in found.values()), found
    return found


def flop_per_step(config: Config) -> int:
    """Multiplications and additions in the networks for each environment step trained on.

    A network of D inputs, two times H hidden units and K outputs takes 2H(D + H + K) forward, and
    backward, in its parameters alone, 2H(D + 2H + 2K): each once in every epoch, and forward once
    more when the policy acts and the state is valued.
    """
    inputs, actions, (hidden, _) = 4, 2, config.hidden_sizes

    def forward(outputs: int) -> int:
        return 2 * hidden * (inputs + hidden + outputs)

    def backward(outputs: int) -> int:
        return 2 * hidden * (inputs + 2 * hidden + 2 * outputs)

    both = forward(actions) + forward(1)
    return both + config.epochs * (both + backward(actions) + backward(1))


def speeds(row: dict[str, Any]) -> list[float]:
    """Steps a second of each repetition."""
    options = row["options"]
    steps = options["seeds"] * ppo(options["num_envs"], options["updates"]).total_steps
    return [steps / one["wall_seconds"] for one in row["repetitions"]]


def table(content: dict[str, Any]) -> str:
    """A line for each contender."""
    by_case = {
        (row["what"], row["options"]["seeds"], row["options"]["num_envs"]): row
        for row in content["rows"]
    }
    limit = content["limit_flop_per_second"] / content["flop_per_step"]
    lines = []
    for (what, seeds, num_envs), row in by_case.items():
        taken, named = row["steps_per_second"], [NAMES[what], str(seeds), str(num_envs)]
        hangs = f"hung {row['hung']} x" if row["hung"] else ""
        if not taken:
            lines.append([*named, hangs, "", "", ""])
            continue
        beside = by_case.get(("textbook", seeds, num_envs), {}).get("steps_per_second")
        ratio = f"{median(taken) / median(beside):.1f} x" if beside else ""
        lines.append(
            [
                *named,
                f"{median(taken):,.0f}" + (f"; {hangs}" if hangs else ""),
                f"{min(taken):,.0f} to {max(taken):,.0f}",
                ratio,
                f"{median(taken) / limit:.1%}",
            ]
        )
    columns = ["", "seeds", "environments", "trained steps/s", "range", "to the textbook",
               "of the multiply-add limit"]  # fmt: skip
    left_out = [f"Left out: {reason}." for reason in content["left_out"].values()]
    return "\n\n".join([markdown(columns, lines), *left_out])


def draw(content: dict[str, Any], path: Path) -> None:
    """Medians and ranges as bars on a logarithmic axis."""
    rows = [row for row in content["rows"] if row["steps_per_second"]]
    figure, (axes,) = measure.figure(8, 0.8 + 0.32 * len(rows))
    labels = [
        f"{NAMES[row['what']].replace('`', '')}, {words.seeds(row['options']['seeds'])} of "
        f"{row['options']['num_envs']} environments"
        for row in rows
    ]
    taken = [row["steps_per_second"] for row in rows]
    measure.bars(axes, labels, taken, [row["what"] == "jaxpg" for row in rows])
    axes.set_xlabel("environment steps trained on in a second (log scale)")
    figure.savefig(path)


SCRIPT = measure.Script(
    name="ppo",
    doc=__doc__ or "",
    rounds=3,
    measures={"jaxpg": jaxpg, "textbook": textbook, "torch_ref": torch_ref, "sb3": sb3},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
