"""The grid: what keeps two frameworks bit-equal, outside the algorithm.

Two libraries' float64 results differ by about 1e-16, and a control task amplifies that until the
runs part. Computing in float64 and rounding what is carried forward (environment state, actions,
parameters) to fewer bits erases the difference before it can grow: to float32, which has 23 bits
of mantissa, or to 15 bits, 256 times as coarse, where a number is rarely so near to the middle
between its neighbours that the packages round it apart.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from torch_ref.types import Distribution, Env, EnvState


def round_floats(tree: Any, mantissa_bits: int = 23) -> Any:
    """Every float leaf rounded to the nearest number of so many bits, its dtype kept.

    Ties go to the even neighbour. The exponent has the range of float32's: what is subnormal there
    becomes 0, and what is too large infinite.
    """
    if isinstance(tree, tuple):  # torch has no tree map
        rounded_leaves = [round_floats(part, mantissa_bits) for part in tree]
        return type(tree)(*rounded_leaves) if hasattr(tree, "_fields") else tuple(rounded_leaves)
    if isinstance(tree, dict):
        return {name: round_floats(part, mantissa_bits) for name, part in tree.items()}
    if isinstance(tree, torch.Tensor) and tree.is_floating_point():
        bits = tree.double().view(torch.int64)  # torch has no reduce_precision
        dropped = 52 - mantissa_bits
        even = (bits >> dropped) & 1
        bits = (bits + (1 << (dropped - 1)) - 1 + even) >> dropped << dropped
        rounded = torch.where(tree.isfinite(), bits.view(torch.float64), tree)
        rounded = torch.where(rounded.abs() < torch.finfo(torch.float32).tiny, 0.0 * tree, rounded)
        huge = rounded.abs() >= 2.0**128
        return torch.where(huge, math.inf * rounded, rounded).to(tree.dtype)
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
