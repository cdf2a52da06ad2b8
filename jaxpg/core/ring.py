"""A ring that holds the last M rows of a stream, and uniform samples from it."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core.types import Ring


def empty(row: Any, size: int) -> Ring:
    """A ring of M = size rows, each like `row`."""
    rows = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), row)
    return Ring(rows, jnp.int32(0), jnp.int32(0))


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
    slot = jnp.where(survives, (ring.next_slot + rank) % size, size)  # `size` is dropped
    kept = jax.tree.map(lambda old, new: old.at[slot].set(new, mode="drop"), ring.rows, rows)
    next_slot = (ring.next_slot + total) % size
    return Ring(kept, next_slot, jnp.minimum(ring.filled + total, size))


def sample(ring: Ring, round_keys: jax.Array, batch_size: int) -> tuple[Any, jax.Array]:
    """Rows drawn uniformly without replacement: the first of a random permutation.

    Args:
      ring: of M rows, at least one of them filled.
      round_keys: the permutation's random bits, uint32 [rounds].
      batch_size: B ≤ M.

    Returns:
      Rows, leaves [B, ...], and which of them are real, bool [B]: all of them once the ring holds
      B rows.
    """
    wanted = jnp.arange(batch_size, dtype=jnp.int32)
    index = jnp.minimum(wanted, ring.filled - 1)
    slot = permute(index.astype(jnp.uint32), ring.filled.astype(jnp.uint32), round_keys)
    chosen = jax.tree.map(lambda rows: rows[slot.astype(jnp.int32)], ring.rows)
    return chosen, wanted < ring.filled


def permute(index: jax.Array, size: jax.Array, round_keys: jax.Array) -> jax.Array:
    """Where a random permutation of {0, …, size - 1} takes each index.

    A Feistel network permutes the numbers of b bits, 2^b ≥ size; one that lands outside is sent
    on until it lands inside. Costs nothing for the indices that nobody asks for.

    Args:
      index: uint32 [B], below size.
      size: of the set, uint32, at least 1; may be traced.
      round_keys: uint32 [rounds].

    Returns:
      uint32 [B].

    Source: Luby & Rackoff 1988 (SIAM J. Computing 17); the walk is that of Black & Rogaway 2002,
    Ciphers with arbitrary finite domains.
    """
    bits = jnp.maximum(32 - jax.lax.clz(size - 1), 4)  # narrower halves would not mix
    low_bits = bits // 2
    low_mask = (jnp.uint32(1) << low_bits) - 1
    high_mask = (jnp.uint32(1) << (bits - low_bits)) - 1

    def encrypt(x: jax.Array) -> jax.Array:
        high, low = x >> low_bits, x & low_mask
        for i, round_key in enumerate(round_keys):
            if i % 2:
                low = low ^ (_mix(high, round_key) & low_mask)
            else:
                high = high ^ (_mix(low, round_key) & high_mask)
        return (high << low_bits) | low

    def outside(x: jax.Array) -> jax.Array:
        return jnp.any(x >= size)

    return jax.lax.while_loop(
        outside, lambda x: jnp.where(x >= size, encrypt(x), x), encrypt(index)
    )


def _mix(x: jax.Array, round_key: jax.Array) -> jax.Array:
    """A hash of 32 bits; arithmetic is modulo 2^32."""
    x = x ^ round_key
    x = (x ^ (x >> 16)) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)
    return x ^ (x >> 16)


def mean(ring: Ring) -> jax.Array:
    """Mean of the rows held; NaN while there is none."""
    filled = jnp.arange(ring.rows.shape[0]) < ring.filled
    total = jnp.sum(jnp.where(filled, ring.rows, 0.0))
    return total / jnp.sum(filled, dtype=ring.rows.dtype)
