"""The grid: what keeps two frameworks bit-equal, outside the algorithm.

Two libraries' float64 results differ by about 1e-16, and a control task amplifies that until the
runs part. Computing in float64 and rounding what is carried forward (environment state, actions,
parameters) to fewer bits erases the difference before it can grow: to float32, which has 23 bits
of mantissa, or to 15 bits, 256 times as coarse, where a number is rarely so near to the middle
between its neighbours that the packages round it apart.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core.types import Distribution, Env, EnvState


def round_floats(tree: Any, mantissa_bits: int = 23) -> Any:
    """Every float leaf rounded to the nearest number of so many bits, its dtype kept.

    Ties go to the even neighbour. The exponent has the range of float32's: what is subnormal there
    becomes 0, and what is too large infinite.
    """

    def leaf(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=mantissa_bits)

    return jax.tree.map(leaf, tree)


def grid_env(env: Env, rounded: Callable = round_floats) -> Env:
    """The environment with its state, observation and reward on the grid after every step."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return rounded(state), rounded(reward), terminated, truncated

    def restart(state: EnvState, done: jax.Array, noise: jax.Array) -> EnvState:
        return rounded(env.restart(state, done, noise))

    return env._replace(
        reset=lambda *inputs: rounded(env.reset(*inputs)), step=step, restart=restart
    )


def grid_distribution(distribution: Distribution, rounded: Callable = round_floats) -> Distribution:
    """The distribution with its actions on the grid: erf⁻¹ differs in its last bits."""

    def sample(outputs: jax.Array, uniform: jax.Array) -> jax.Array:
        return rounded(distribution.sample(outputs, uniform))

    return distribution._replace(sample=sample)
