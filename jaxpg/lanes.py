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

BLOCK = 32  # rows that `up_to_last` evaluates together


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


def up_to_last(valid: jax.Array, network: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The network on rows [T, N, ...], which does no work after the last valid one of any lane.

    Its outputs there are 0, and so are their gradients. It is differentiable in the parameters
    alone; a gradient computes the outputs a second time.

    Args:
      valid: bool [T, N].
      network: (params, rows [T, N, ...]) -> outputs [T, N, ...], row by row.
    """
    length = jnp.max(jnp.where(valid, jnp.arange(1, len(valid) + 1)[:, None], 0))
    count = max_lane((length + BLOCK - 1) // BLOCK)

    @jax.custom_vjp
    def blocks(params: Any, rows: jax.Array) -> jax.Array:
        padded = _pad(rows)
        shape = jax.eval_shape(network, params, padded)

        def step(i: jax.Array, outputs: jax.Array) -> jax.Array:
            return _put(outputs, i, network(params, _take(padded, i)))

        outputs = jax.lax.fori_loop(0, count, step, jnp.zeros(shape.shape, shape.dtype))
        return outputs[: len(rows)]

    def forward(params: Any, rows: jax.Array) -> tuple:
        return blocks(params, rows), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals
        padded, cotangent = _pad(rows), _pad(cotangent)

        def step(i: jax.Array, total: Any) -> Any:
            _, pull = jax.vjp(lambda params: network(params, _take(padded, i)), params)
            return jax.tree.map(jnp.add, total, pull(_take(cotangent, i))[0])

        gradient = jax.lax.fori_loop(0, count, step, jax.tree.map(jnp.zeros_like, params))
        return gradient, jnp.zeros_like(rows)

    blocks.defvjp(forward, backward)
    return blocks


def _pad(rows: jax.Array) -> jax.Array:
    """Zeros after the last row, so that the blocks come out even."""
    return jnp.pad(rows, [(0, -len(rows) % BLOCK)] + [(0, 0)] * (rows.ndim - 1))


def _take(rows: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(rows, i * BLOCK, BLOCK)


def _put(rows: jax.Array, i: jax.Array, block: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(rows, block, i * BLOCK, 0)
