"""What the lanes of a vmap share: one loop count for all, or a turn for each.

Under vmap a loop whose length differs from lane to lane selects over its whole carry at every
step, and a CPU's cache is too small for the activations of many seeds. Outside a vmap these
functions do nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap


@custom_vmap
def max_lane(x: jax.Array) -> jax.Array:
    """The largest x of all lanes, the same in each; a scalar."""
    return x


@max_lane.def_vmap
def _(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    return max_lane(jnp.max(x, axis=0)), False


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, which on a CPU takes one lane at a time; it cannot be differentiated in reverse."""
    return sequential_vmap(f) if jax.default_backend() == "cpu" else f
