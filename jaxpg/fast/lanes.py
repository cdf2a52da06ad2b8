"""How the lanes of a vmap are computed: as one batch, one by one, or in kernels of their own.

Under vmap a loop whose length differs from lane to lane selects over its whole carry at every
step, a CPU vectorises over the innermost axis alone, and its cache is too small for the activations
of many seeds. What is computed stays the same.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.flatten_util import ravel_pytree

from jaxpg.fast import backend, dense

BLOCK = 512  # rows that `in_blocks` evaluates together, at most
STEPS = 32  # and time steps, where rows after the last valid one are skipped

logger = logging.getLogger(__name__)


@custom_vmap
def max_lane(x: jax.Array) -> jax.Array:
    """The largest x of all lanes, the same in each; a scalar."""
    return x


@max_lane.def_vmap
def _(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    return max_lane(jnp.max(x, axis=0)), False


def row_by_row(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, which treats each row alike, on the rows of L lanes as one batch [L · N, ...].

    Args:
      f: arrays [N, ...] -> arrays [N, ...].
    """
    batch = custom_vmap(f)

    @batch.def_vmap
    def _(size: int, batched: list[Any], *inputs: Any) -> tuple[Any, Any]:
        def flatten(x: jax.Array, has_lanes: bool) -> jax.Array:
            x = x if has_lanes else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        outputs = row_by_row(f)(*jax.tree.map(flatten, inputs, tuple(batched)))
        outputs = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), outputs)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return batch


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, which on a CPU takes one lane at a time; it cannot be differentiated in reverse."""
    # Without jit it would be traced twice: as a function, and as the body of the loop.
    return sequential_vmap(jax.jit(f)) if backend.form() == "cpu" else f


def scan(
    step: Callable[..., Any],
    state: Any,
    streams: Sequence[tuple[Any, int]],
    *,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over T steps of N rows that do not affect one another.

    Args:
      step: (state, an entry of each stream) -> (state, outputs), leaves [N, ...], row by row.
      state: leaves [N, ...].
      streams: (leaves [⌈T/k⌉, N, ...], k) each; an entry serves k steps. The first has T.
      reverse: from the last step to the first.

    Returns:
      The state in the end, and the outputs, leaves [T, N, ...].
    """
    length = len(jax.tree.leaves(streams[0][0])[0])
    if backend.form() == "fused":
        from jaxpg.fast import kernels as fused

        try:
            return fused.scan(step, state, streams, length, reverse)
        except fused.Unsupported as reason:
            logger.info("a scan is left to XLA: %s", reason)

    def body(state: Any, inputs: tuple) -> tuple[Any, Any]:
        t, each = inputs
        entries, left = [], iter(each)
        for tree, k in streams:
            entries.append(next(left) if k == 1 else jax.tree.map(lambda x: x[t // k], tree))
        return step(state, *entries)

    each = [tree for tree, k in streams if k == 1]
    return jax.lax.scan(body, state, (jnp.arange(length), each), reverse=reverse)


def in_blocks(
    network: Callable[..., jax.Array],
    valid: jax.Array | None = None,
    known: jax.Array | None = None,
) -> Callable[..., jax.Array]:
    """The network on blocks of rows, one after the other, whose activations stay in the cache.

    It does no work after the last valid row of any lane: outputs there are 0, and so are their
    gradients. It is differentiable in the parameters alone; a gradient computes the outputs a
    second time.

    Args:
      network: (params, rows [T, ..., D]) -> outputs [T, ...], row by row.
      valid: bool [T, N]; None if all rows are.
      known: the outputs, if they have been computed before.
    """
    if valid is None and backend.form() == "plain":
        return network
    if valid is None and backend.form() == "fused":
        return _in_kernels(network, known)

    @jax.custom_vjp
    def blocks(params: Any, rows: jax.Array) -> jax.Array:
        size, count = _blocks(rows, valid)
        padded, batch = _pad(rows, size), rows.ndim - 1
        shape = jax.eval_shape(network, params, padded)

        def step(i: jax.Array, outputs: jax.Array) -> jax.Array:
            return _put(outputs, i, network(params, _take(padded, i, size, batch)))

        outputs = jax.lax.fori_loop(0, count, step, jnp.zeros(shape.shape, shape.dtype))
        return outputs[: len(rows)]

    def forward(params: Any, rows: jax.Array) -> tuple:
        return (blocks(params, rows) if known is None else known), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals
        size, count = _blocks(rows, valid)
        padded, cotangent = _pad(rows, size), _pad(cotangent, size, mode="constant")
        batch = rows.ndim - 1
        flat, unravel = ravel_pytree(params)

        def step(i: jax.Array, total: jax.Array) -> jax.Array:
            _, pull = jax.vjp(lambda params: network(params, _take(padded, i, size, batch)), params)
            # As one vector: XLA runs a loop of up to 8 kernels with half the overhead for each.
            return total + ravel_pytree(pull(_take(cotangent, i, size, batch)))[0]

        gradient = unravel(jax.lax.fori_loop(0, count, step, jnp.zeros_like(flat)))
        return gradient, jnp.zeros_like(rows)

    blocks.defvjp(forward, backward)
    return blocks


def _in_kernels(
    network: Callable[..., jax.Array], known: jax.Array | None
) -> Callable[..., jax.Array]:
    """`in_blocks` where all rows are valid: its outputs and its gradient are one kernel each."""
    from jaxpg.fast import kernels as fused

    def of_row(ndim: int, params: Any, row: jax.Array) -> jax.Array:
        """The network for a row [1, D], which it sees as an array of so many axes."""
        outputs = network(params, row.reshape(*[1] * (ndim - 1), -1))
        return outputs.reshape(1, *outputs.shape[ndim - 1 :])

    @jax.custom_vjp
    def kernels(params: Any, rows: jax.Array) -> jax.Array:
        try:
            flat = rows.reshape(-1, rows.shape[-1])
            outputs = fused.map_rows(partial(of_row, rows.ndim, params), flat)
        except fused.Unsupported as reason:
            logger.info("a network is left to XLA: %s", reason)
            return network(params, rows)
        return outputs.reshape(*rows.shape[:-1], *outputs.shape[1:])

    def forward(params: Any, rows: jax.Array) -> tuple:
        return (kernels(params, rows) if known is None else known), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals

        def gradient(row: jax.Array, slope: jax.Array) -> Any:
            return jax.vjp(lambda params: of_row(rows.ndim, params, row), params)[1](slope)[0]

        flat = rows.reshape(-1, rows.shape[-1])
        slopes = cotangent.reshape(-1, *cotangent.shape[rows.ndim - 1 :])
        try:
            total = fused.sum_rows(gradient, flat, slopes)
        except fused.Unsupported as reason:
            logger.info("a gradient is left to XLA: %s", reason)
            total = jax.vjp(lambda params: network(params, rows), params)[1](cotangent)[0]
        return total, jnp.zeros_like(rows)

    kernels.defvjp(forward, backward)
    return kernels


def _blocks(rows: jax.Array, valid: jax.Array | None) -> tuple[int, Any]:
    """How many time steps a block has, and how many blocks there are."""
    size = max(1, BLOCK // math.prod(rows.shape[1:-1]))
    if valid is None:
        # At least two: XLA removes a loop of one step, fuses what was in it into each kernel that
        # uses its outputs, and so computes it again and again.
        size = min(size, -(-len(rows) // 2))
        return size, -(-len(rows) // size)
    size = min(size, STEPS)
    length = jnp.max(jnp.where(valid, jnp.arange(1, len(valid) + 1)[:, None], 0))
    return size, max_lane((length + size - 1) // size)


def _pad(rows: jax.Array, size: int, mode: str = "edge") -> jax.Array:
    """The last row again, so that the blocks come out even; its slope there is 0.

    (Of a row of zeros a network's slope may be infinite, and 0 times that is NaN.)
    """
    missing = -len(rows) % size
    width = [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(rows, width, mode=mode) if missing else rows


def _take(x: jax.Array, i: jax.Array, size: int, batch: int) -> jax.Array:
    """Block i, so many time steps, of x [T, ..., D], whose first axes, so many, are rows.

    Few columns are taken from the transpose. That is how `dense` reads them, and where x is a
    transpose itself, nothing is moved.
    """
    columns = math.prod(x.shape[batch:])
    flat, length = x.reshape(-1, columns), size * math.prod(x.shape[1:batch])
    take = partial(jax.lax.dynamic_slice_in_dim, slice_size=length, allow_negative_indices=False)
    few = columns <= dense.FEW_INPUTS
    block = take(flat.T, i * length, axis=1).T if few else take(flat, i * length)
    return block.reshape(size, *x.shape[1:])


def _put(rows: jax.Array, i: jax.Array, block: jax.Array) -> jax.Array:
    start = i * len(block)
    return jax.lax.dynamic_update_slice_in_dim(
        rows, block, start, axis=0, allow_negative_indices=False
    )
