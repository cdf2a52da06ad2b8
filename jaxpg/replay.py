"""A ring that holds the last M rows of a stream, and uniform samples from it."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.types import Ring


def empty(row: Any, size: int) -> Ring:
    """A ring of M = size rows, each like `row`."""
    rows = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), row)
    return Ring(rows, jnp.int32(0))


def insert(ring: Ring, rows: Any, valid: jax.Array) -> Ring:
    """Append the valid rows in order; the oldest make room.

    Args:
      ring: of M rows.
      rows: leaves [B, ...].
      valid: which of them to append, bool [B].
    """
    size = jax.tree.leaves(ring.rows)[0].shape[0]
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    total = rank[-1] + 1
    survives = jnp.logical_and(valid, rank >= total - size)
    slot = jnp.where(survives, (ring.inserted + rank) % size, size)  # `size` is dropped
    kept = jax.tree.map(lambda old, new: old.at[slot].set(new, mode="drop"), ring.rows, rows)
    return Ring(kept, ring.inserted + total)


def sample(ring: Ring, bits: jax.Array, batch_size: int) -> tuple[Any, jax.Array]:
    """Rows drawn uniformly without replacement: those with the smallest random bits.

    Args:
      ring: of M rows.
      bits: uint32 [M]; of equal ones the lower slot comes first.
      batch_size: B ≤ M.

    Returns:
      Rows, leaves [B, ...], and which of them are real, bool [B]: all of them once the ring holds
      B rows.
    """
    slots = jnp.arange(bits.shape[0], dtype=jnp.int32)
    filled = jnp.minimum(ring.inserted, bits.shape[0])
    is_empty = (slots >= filled).astype(jnp.int32)
    *_, order = jax.lax.sort((is_empty, bits, slots), num_keys=3)
    chosen = order[:batch_size]
    return jax.tree.map(lambda rows: rows[chosen], ring.rows), slots[:batch_size] < filled


def mean(ring: Ring) -> jax.Array:
    """Mean of the rows held; NaN while there is none."""
    filled = jnp.arange(ring.rows.shape[0]) < ring.inserted
    total = jnp.sum(jnp.where(filled, ring.rows, 0.0))
    return total / jnp.sum(filled, dtype=ring.rows.dtype)
