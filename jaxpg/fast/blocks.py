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

from jaxpg.core.rollout import mask_like
from jaxpg.fast.dense import FEW_INPUTS
from jaxpg.fast.lanes import largest

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
        return _in_blocks(network, params, obs, steps, lambda padded: len(padded) // steps)

    return blocked


def of_whole_episodes(network: Network) -> Network:
    """The same, where all rows from some step on may be zeros, padding: these cost one row."""

    def blocked(params: Any, obs: jax.Array) -> jax.Array:
        if obs.ndim != 3:
            return network(params, obs)
        steps = min(max(1, BLOCK // obs.shape[1]), STEPS)

        def count(padded: jax.Array) -> jax.Array:
            used = jnp.any(padded != 0.0, axis=(1, 2))
            length = jnp.max(jnp.where(used, jnp.arange(1, len(padded) + 1), 0))
            return largest((length + steps - 1) // steps)

        return _in_blocks(network, params, obs, steps, count)

    return blocked


def _in_blocks(
    network: Network, params: Any, obs: jax.Array, steps: int, count: Callable[[jax.Array], Any]
) -> jax.Array:
    """The network on blocks of so many time steps.

    Args:
      count: how many blocks there are in given rows before nothing but zeros follows.
    """

    zero = jax.ShapeDtypeStruct((1, 1, obs.shape[-1]), obs.dtype)

    def of_zero(params: Any) -> jax.Array:
        """Its output for a row of zeros, [1, 1, ...]."""
        return network(params, jnp.zeros(zero.shape, zero.dtype))

    @jax.custom_vjp
    def blocks(params: Any, rows: jax.Array) -> jax.Array:
        output = of_zero(params)
        zeros = jnp.broadcast_to(output, (*rows.shape[:2], *output.shape[2:]))

        def step(i: jax.Array, outputs: jax.Array) -> jax.Array:
            return _put(outputs, i, network(params, _take(rows, i, steps)))

        return jax.lax.fori_loop(0, count(rows), step, zeros)

    def forward(params: Any, rows: jax.Array) -> tuple:
        return blocks(params, rows), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals
        used, every = count(rows), len(rows) // steps

        def in_params(i: jax.Array, total: jax.Array) -> jax.Array:
            _, pull = jax.vjp(lambda params: network(params, _take(rows, i, steps)), params)
            # As one vector: XLA runs a loop of up to 8 kernels with half the overhead for each.
            return total + ravel_pytree(pull(_take(cotangent, i, steps)))[0]

        def in_rows(i: jax.Array, slopes: jax.Array) -> jax.Array:
            _, pull = jax.vjp(partial(network, params), _take(rows, i, steps))
            return _put(slopes, i, *pull(_take(cotangent, i, steps)))

        start, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, params))
        if not isinstance(used, int):
            of_padding = jnp.arange(len(rows)) >= used * steps
            slope = jnp.where(mask_like(of_padding, cotangent), cotangent, 0.0)
            _, pull = jax.vjp(of_zero, params)
            (start, _) = ravel_pytree(*pull(jnp.sum(slope, axis=(0, 1), keepdims=True)))
        total = jax.lax.fori_loop(0, used, in_params, start)
        if not jnp.issubdtype(rows.dtype, jnp.inexact):
            return unravel(total), None
        # In the rows hardly anybody asks for one: XLA leaves the loop out.
        return unravel(total), jax.lax.fori_loop(0, every, in_rows, jnp.zeros_like(rows))

    blocks.defvjp(forward, backward)
    return blocks(params, _pad(obs, steps))[: len(obs)]


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
