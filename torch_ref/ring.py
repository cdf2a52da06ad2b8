"""A ring that holds the last M rows of a stream, and uniform samples from it."""

import numpy as np
import torch

from torch_ref.types import Ring


def empty(row: tuple[torch.Tensor, ...], size: int) -> Ring:
    """A ring of M = size rows, each like `row`."""
    return Ring(tuple(x.new_zeros((size, *x.shape)) for x in row), 0, 0)


def insert(ring: Ring, rows: tuple[torch.Tensor, ...], valid: torch.Tensor) -> Ring:
    """Append the valid rows in order; the oldest make room.

    Args:
      ring: of M rows.
      rows: leaves [B, ...].
      valid: which of them to append, bool [B].
    """
    size = ring.rows[0].shape[0]
    total = int(valid.sum())
    rank = torch.arange(total)[-size:]
    slot = (ring.next_slot + rank) % size
    kept = tuple(old.clone() for old in ring.rows)
    for old, new in zip(kept, rows, strict=True):
        old[slot] = new[valid][-size:]
    next_slot = (ring.next_slot + total) % size
    return Ring(kept, next_slot, min(ring.filled + total, size))


def sample(
    ring: Ring, round_keys: np.ndarray, batch_size: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Rows drawn uniformly without replacement: the first of a random permutation.

    Args:
      ring: of M rows, at least one of them filled.
      round_keys: the permutation's random bits, uint32 [rounds].
      batch_size: B ≤ M.

    Returns:
      Rows, leaves [B, ...], and which of them are real, bool [B]: all of them once the ring holds
      B rows.
    """
    wanted = np.arange(batch_size)
    index = np.minimum(wanted, ring.filled - 1)
    slot = permute(index.astype(np.uint32), np.uint32(ring.filled), round_keys)
    chosen = torch.from_numpy(slot.astype(np.int64))
    return tuple(rows[chosen] for rows in ring.rows), torch.from_numpy(wanted < ring.filled)


def permute(index: np.ndarray, size: np.uint32, round_keys: np.ndarray) -> np.ndarray:
    """Where a random permutation of {0, …, size - 1} takes each index.

    A Feistel network permutes the numbers of b bits, 2^b ≥ size; one that lands outside is sent
    on until it lands inside. Costs nothing for the indices that nobody asks for.

    Args:
      index: uint32 [B], below size.
      size: of the set, uint32, at least 1.
      round_keys: uint32 [rounds].

    Returns:
      uint32 [B].

    Source: Luby & Rackoff 1988 (SIAM J. Computing 17); the walk is that of Black & Rogaway 2002,
    Ciphers with arbitrary finite domains.
    """
    bits = max(int(size - 1).bit_length(), 4)  # narrower halves would not mix
    low_bits = np.uint32(bits // 2)
    low_mask = np.uint32((1 << (bits // 2)) - 1)
    high_mask = np.uint32((1 << (bits - bits // 2)) - 1)

    def encrypt(x: np.ndarray) -> np.ndarray:
        high, low = x >> low_bits, x & low_mask
        for i, round_key in enumerate(round_keys):
            if i % 2:
                low = low ^ (_mix(high, round_key) & low_mask)
            else:
                high = high ^ (_mix(low, round_key) & high_mask)
        return (high << low_bits) | low

    x = encrypt(index)
    while (x >= size).any():
        x = np.where(x >= size, encrypt(x), x)
    return x


def _mix(x: np.ndarray, round_key: np.uint32) -> np.ndarray:
    """A hash of 32 bits; arithmetic is modulo 2^32."""
    x = x ^ round_key
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x9E3779B1)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return x ^ (x >> np.uint32(16))


def mean(ring: Ring) -> torch.Tensor:
    """Mean of the rows held; NaN while there is none."""
    (rows,) = ring.rows
    return rows[: ring.filled].mean()
