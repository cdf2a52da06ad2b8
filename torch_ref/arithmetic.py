"""The float32 grid: what keeps two frameworks bit-equal, outside the algorithm.

Two libraries' float64 results differ by about 1e-16, and a control task amplifies that until the
runs part. Computing in float64 and rounding what is carried forward (environment state, actions,
parameters) to float32 erases the difference before it can grow.
"""

from collections.abc import Callable
from typing import Any

import torch

from torch_ref.types import Distribution, Env, EnvState


def round_floats(tree: Any) -> Any:
    """Every float leaf rounded to the nearest float32, its dtype kept; subnormals become 0."""
    if isinstance(tree, tuple):  # torch has no tree map
        rounded_leaves = map(round_floats, tree)
        return type(tree)(*rounded_leaves) if hasattr(tree, "_fields") else tuple(rounded_leaves)
    if isinstance(tree, dict):
        return {name: round_floats(part) for name, part in tree.items()}
    if isinstance(tree, torch.Tensor) and tree.is_floating_point():
        rounded = tree.to(torch.float32)
        tiny = rounded.abs() < torch.finfo(torch.float32).tiny  # as XLA does
        return torch.where(tiny, 0.0 * rounded, rounded).to(tree.dtype)
    return tree


def grid_env(env: Env, rounded: Callable = round_floats) -> Env:
    """The environment with its state, observation and reward on the grid after every step."""

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return rounded(state), rounded(reward), terminated, truncated

    def restart(state: EnvState, done: torch.Tensor, noise: Any) -> EnvState:
        return rounded(env.restart(state, done, noise))

    return env._replace(
        reset=lambda *inputs: rounded(env.reset(*inputs)), step=step, restart=restart
    )


def grid_distribution(distribution: Distribution, rounded: Callable = round_floats) -> Distribution:
    """The distribution with its actions on the grid: erf⁻¹ differs in its last bits."""

    def sample(outputs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return rounded(distribution.sample(outputs, uniform))

    return distribution._replace(sample=sample)
