"""Who trains `vpg`, and how each of them is measured. The same config for all of them.

Each function trains so many seeds for so many updates and returns "wall_seconds" of training alone,
"compile_seconds" where something is compiled, and "mean_return" of the episodes that ended in the
last tenth of the updates where it knows.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

VPG = PRESETS["vpg"]
STEPS_PER_UPDATE = VPG.num_envs * VPG.num_steps
NAMES = {
    "jaxpg": "`jaxpg train`",
    "textbook": "textbook `jit(vmap(train))`",
    "torch_ref": "`torch_ref`",
    "torch_batched": "`torch_ref`'s algorithm, seeds batched by `torch.func`",
    "torch_compiled": "the same under `torch.compile`",
    "sb3": "Stable-Baselines3 A2C",
}


def vpg(updates: int) -> Config:
    """`vpg` with a budget of so many updates."""
    return dataclasses.replace(VPG, total_steps=budget(updates))


def budget(updates: int) -> int:
    """Environment steps of so many updates of `vpg`."""
    return updates * STEPS_PER_UPDATE


def jaxpg(seeds: int, updates: int, *options: str) -> dict[str, Any]:
    """`jaxpg train`: with its progress, metrics, checkpoints and files."""
    return command("vpg", seeds, budget(updates), *options)


def command(preset: str, seeds: int, total_steps: int, *options: str) -> dict[str, Any]:
    """`jaxpg train` of any preset."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        size = ["--seeds", str(seeds), "--total-steps", str(total_steps), "--out", str(out)]
        line = [sys.executable, "-m", "jaxpg", "train", preset, *size, *options]
        began = time.perf_counter()
        process = subprocess.Popen(line, stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process_seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"jaxpg train ended with code {process.returncode}")
        summary = json.loads((out / "summary.json").read_text())
        with np.load(out / "results.npz", allow_pickle=False) as arrays:
            mean_return = last_tenth(arrays["return_sum"], arrays["episodes"])
    measured = {name: summary[name] for name in ("wall_seconds", "compile_seconds")}
    return {
        **measured,
        "process_seconds": process_seconds,
        "solved": summary["solved_fraction"],
        "mean_return": mean_return,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def textbook(seeds: int, updates: int) -> dict[str, Any]:
    """benchmarks/baselines/textbook.py, as anybody would start it."""
    from benchmarks.baselines.textbook import make_train

    return loop(make_train(vpg(updates)), seeds)


def loop(train: Callable, seeds: int) -> dict[str, Any]:
    """A textbook's train(key) under `jit(vmap(...))`.

    Args:
      train: key -> parameters; episodes that ended, and their returns' sum, by update.
    """
    import jax

    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), seeds)
    compiled = jax.jit(jax.vmap(train)).lower(keys).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    _, episodes, return_sum = jax.block_until_ready(compiled(keys))
    wall_seconds = time.perf_counter() - began
    episodes, return_sum = np.asarray(episodes), np.asarray(return_sum)
    return {
        "wall_seconds": wall_seconds,
        "compile_seconds": compile_seconds,
        "mean_return": last_tenth(return_sum, episodes),
        "solved": float(np.mean(last_hundred(return_sum, episodes) >= 475)),
    }


def torch_ref(seeds: int, updates: int) -> dict[str, Any]:
    """The PyTorch twin, one seed after another."""
    return twin(vpg(updates), seeds)


def twin(config: Config, seeds: int) -> dict[str, Any]:
    """`torch_ref` with any config, one seed after another."""
    import torch_ref

    own = torch_ref.Config(**dataclasses.asdict(config))
    began = time.perf_counter()
    for seed in range(seeds):
        torch_ref.train(own, torch_ref.key(seed))
    return {"wall_seconds": time.perf_counter() - began}


def torch_batched(seeds: int, updates: int, compiled: bool = False) -> dict[str, Any]:
    """benchmarks/baselines/torch_batched.py."""
    from benchmarks.baselines import torch_batched as batched

    began = time.perf_counter()
    trainer = batched.Trainer(VPG, seeds, compiled)
    if compiled:
        for _ in range(2):  # which compile: the second for what the first has made
            trainer.update()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    ended = [trainer.update() for _ in range(updates)]
    wall_seconds = time.perf_counter() - began
    episodes, return_sum = (np.stack(part, axis=1) for part in zip(*ended, strict=True))
    return {
        "wall_seconds": wall_seconds,
        "compile_seconds": compile_seconds if compiled else None,
        "mean_return": last_tenth(return_sum, episodes),
    }


def torch_compiled(seeds: int, updates: int) -> dict[str, Any]:
    """The same, its environment, losses and optimizer steps compiled by inductor."""
    return torch_batched(seeds, updates, compiled=True)


def sb3(seeds: int, updates: int) -> dict[str, Any]:
    """A2C with `vpg`'s numbers; it has one value step an update, on a loss that both share."""
    import gymnasium
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.vec_env import DummyVecEnv

    def optimizer(params: Any, lr: float, eps: float = 1e-8, **_: Any) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=lr, eps=eps)

    (hidden,) = VPG.hidden_sizes
    wall_seconds = 0.0
    for seed in range(seeds):
        envs = DummyVecEnv([lambda: gymnasium.make(VPG.env)] * VPG.num_envs)
        model = A2C(
            "MlpPolicy",
            envs,
            learning_rate=lambda left: VPG.learning_rate * left,
            n_steps=VPG.num_steps,
            gamma=VPG.gamma,
            gae_lambda=VPG.gae_lambda,
            ent_coef=VPG.ent_coef,
            max_grad_norm=VPG.max_grad_norm,
            use_rms_prop=False,
            policy_kwargs={
                "net_arch": {"pi": [hidden], "vf": [hidden]},
                "activation_fn": torch.nn.ReLU,
                "optimizer_class": optimizer,
            },
            seed=seed,
            device="cpu",
        )
        began = time.perf_counter()
        model.learn(budget(updates))
        wall_seconds += time.perf_counter() - began
    return {"wall_seconds": wall_seconds, "version": version("stable-baselines3")}


def absent() -> dict[str, str]:
    """Which contenders cannot run here, and why."""
    reasons = {
        "rejax": "rejax 0.1.3 takes the five values that gymnax before 1.0 gave for a step, and "
        "needs distrax, which needs a nightly build of tensorflow-probability"
    }
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        reasons["sb3"] = f"Stable-Baselines3 is not installed ({error})"
    return reasons


def last_tenth(return_sum: np.ndarray, episodes: np.ndarray) -> float:
    """Mean return of the episodes that ended in the last tenth of the updates, [S, U]."""
    last = -(-episodes.shape[1] // 10)
    return float(return_sum[:, -last:].sum() / max(1, episodes[:, -last:].sum()))


def last_hundred(return_sum: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Mean return of each seed's last updates that hold at least 100 episodes, [S]; else of all."""
    count, total = (np.cumsum(x[:, ::-1], axis=1) for x in (episodes, return_sum))
    enough = np.where(count[:, -1] >= 100, np.argmax(count >= 100, axis=1), count.shape[1] - 1)
    seeds = np.arange(len(count))
    return total[seeds, enough] / np.maximum(count[seeds, enough], 1)


MEASURES = {
    "jaxpg": jaxpg,
    "textbook": textbook,
    "torch_ref": torch_ref,
    "torch_batched": torch_batched,
    "torch_compiled": torch_compiled,
    "sb3": sb3,
}
