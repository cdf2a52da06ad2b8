"""Group baselines: what do the group's mean, its deviation and the division by length leave of ∇U?

Letters: N trajectories in a group.

Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free! (leave-one-out);
Shao et al. 2024, DeepSeekMath (arXiv:2402.03300); Liu et al. 2025, Understanding R1-Zero-like
training (arXiv:2503.20783), on the biases.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxpg.core.config import Config
from jaxpg.core.presets import preset
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Params
from jaxpg.proof import judged
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import Problem

GROUP_SIZES = (2, 3)
ONCE = {"epochs": 1, "minibatches": 1}
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {  # a preset, and what of it is changed
    "leave-one-out": ("rloo", {}),
    "mean": ("grpo", {**ONCE, "group_std": False, "reduction": "trajectories"}),
    "mean and deviation": ("grpo", {**ONCE, "reduction": "trajectories"}),
    "leave-one-out, by length": ("rloo", {"reduction": "trajectory_means"}),
    "mean and deviation, by length": ("grpo", ONCE),
}


def groups(problem: Problem, params: Params) -> Iterator[Finding]:
    """The presets `rloo` and `grpo`, whole and in part, in their first step on a group.

    A mean that holds one's own return scales the gradient by 1 - 1/N, and no more.
    """
    for size in GROUP_SIZES:
        weight, batches = judged.batches(problem, params, size)
        for case, (name, fields) in GROUPS.items():
            config = _preset(name, num_envs=size, **fields)
            batch = judged.estimate(problem, config, params, batches)
            order = next(iter(judged.orders(size).values()))
            expected = {"leave-one-out": 0.0, "mean": 1.0 / size}.get(case)
            yield held(
                problem,
                f"{case}, groups of {size}",
                weight @ judged.fit(problem, config, params, batch, order)[1][:, 0],
                judged.gradient(problem, params, 1.0),
                expected=expected,
            )


def _preset(name: str, **fields: Any) -> Config:
    """The preset with the problems' networks, whose gradients are not clipped."""
    ours = ("hidden_sizes", "activation", "arithmetic", "max_grad_norm")
    fields |= {field: getattr(judged.PLAIN, field) for field in ours}
    return as_arrays(validate(dataclasses.replace(preset(name), **fields)))
