"""A network on blocks of rows, one after the other, whose activations stay in a CPU's cache.

Nothing of a block is kept but its outputs: a gradient computes it again. A network here treats rows
alike.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxpg.fast.dense import FEW_INPUTS

Network = Callable[..., jax.Array]  # (params, rows [..., D]) -> [..., K] or [...]
BLOCK = 512  # rows of a block, at most
STEPS = 32  # and time steps, where whole blocks may be padding


def of_rows(network: Network) -> Network:
    """The network, in blocks where there are steps of several environments, [T, N, D]."""

    def blocked(params: Any, obs: jax.Array) -> jax.Array:
        if obs.ndim != 3:
            return network(params, obs)
        # At least two: XLA removes a loop of one step, fuses what was in it into each kernel that
        # uses its outputs, and so computes it again and again.
        steps = min(max(1, BLOCK // obs.shape[1]), -(-len(obs) // 2))
        return _in_blocks(network, network, params, obs, steps)

    return blocked


def of_whole_episodes(network: Network) -> Network:
    """The same, where most rows may be padding: a block of nothing but zeros costs a row."""

    def skipping(params: Any, block: jax.Array) -> jax.Array:
        def one_row(params: Any, block: jax.Array) -> jax.Array:
            output = network(params, jnp.zeros_like(block[:1, :1]))
            return jnp.broadcast_to(output, (*block.shape[:2], *output.shape[2:]))

        return jax.lax.cond(jnp.any(block != 0.0), network, one_row, params, block)

    def blocked(params: Any, obs: jax.Array) -> jax.Array:
        if obs.ndim != 3:
            return network(params, obs)
        steps = min(max(1, BLOCK // obs.shape[1]), STEPS)
        return _in_blocks(network, skipping, params, obs, steps)

    return blocked


def _in_blocks(
    network: Network, of_block: Network, params: Any, obs: jax.Array, steps: int
) -> jax.Array:
    """The network on blocks of so many time steps.

    Args:
      of_block: the same on a block, as long as nobody asks for the slope in its rows.
    """
    padded = _pad(obs, steps)
    count = len(padded) // steps

    @jax.custom_vjp
    def blocks(params: Any, rows: jax.Array) -> jax.Array:
        shape = jax.eval_shape(network, params, rows)

        def step(i: jax.Array, outputs: jax.Array) -> jax.Array:
            return _put(outputs, i, of_block(params, _take(rows, i, steps)))

        return jax.lax.fori_loop(0, count, step, jnp.zeros(shape.shape, shape.dtype))

    def forward(params: Any, rows: jax.Array) -> tuple:
        return blocks(params, rows), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals
        flat, unravel = ravel_pytree(params)

        def in_params(i: jax.Array, total: jax.Array) -> jax.Array:
            _, pull = jax.vjp(lambda params: of_block(params, _take(rows, i, steps)), params)
            # As one vector: XLA runs a loop of up to 8 kernels with half the overhead for each.
            return total + ravel_pytree(pull(_take(cotangent, i, steps)))[0]

        def in_rows(i: jax.Array, slopes: jax.Array) -> jax.Array:
            _, pull = jax.vjp(partial(network, params), _take(rows, i, steps))
            return _put(slopes, i, *pull(_take(cotangent, i, steps)))

        total = jax.lax.fori_loop(0, count, in_params, jnp.zeros_like(flat))
        # In the rows hardly anybody asks for one: XLA leaves the loop out.
        return unravel(total), jax.lax.fori_loop(0, count, in_rows, jnp.zeros_like(rows))

    blocks.defvjp(forward, backward)
    return blocks(params, padded)[: len(obs)]


def _pad(obs: jax.Array, steps: int) -> jax.Array:
    """The last row again, so that the blocks come out even; its slope there is 0.

    (Of a row of zeros a network's slope may be infinite, and 0 times that is NaN.)
    """
    missing = -len(obs) % steps
    return jnp.pad(obs, [(0, missing)] + [(0, 0)] * (obs.ndim - 1), mode="edge") if missing else obs


def _take(x: jax.Array, i: jax.Array, steps: int) -> jax.Array:
    """The i-th block of so many time steps of x [T, N, ...].

    Few columns are taken from the transpose. That is how `dense` reads them, and where x is a
    transpose itself, nothing is moved.
    """
    columns = math.prod(x.shape[2:])
    flat, length = x.reshape(-1, columns), steps * x.shape[1]
    take = partial(jax.lax.dynamic_slice_in_dim, slice_size=length, allow_negative_indices=False)
    few = columns <= FEW_INPUTS
    rows = take(flat.T, i * length, axis=1).T if few else take(flat, i * length)
    return rows.reshape(steps, *x.shape[1:])


def _put(rows: jax.Array, i: jax.Array, block: jax.Array) -> jax.Array:
    start = i * len(block)
    return jax.lax.dynamic_update_slice_in_dim(
        rows, block, start, axis=0, allow_negative_indices=False
    )
