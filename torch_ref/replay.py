"""A ring that holds the last M rows of a stream, and uniform samples from it."""

import numpy as np
import torch

from torch_ref.types import Ring


def empty(row: tuple[torch.Tensor, ...], size: int) -> Ring:
    """A ring of M = size rows, each like `row`."""
    return Ring(tuple(x.new_zeros((size, *x.shape)) for x in row), 0)


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
    slot = (ring.inserted + rank) % size
    kept = tuple(old.clone() for old in ring.rows)
    for old, new in zip(kept, rows, strict=True):
        old[slot] = new[valid][-size:]
    return Ring(kept, ring.inserted + total)


def sample(
    ring: Ring, bits: np.ndarray, batch_size: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Rows drawn uniformly without replacement: those with the smallest random bits.

    Args:
      ring: of M rows.
      bits: uint32 [M]; of equal ones the lower slot comes first.
      batch_size: B ≤ M.

    Returns:
      Rows, leaves [B, ...], and which of them are real, bool [B]: all of them once the ring holds
      B rows.
    """
    slots = np.arange(bits.shape[0])
    filled = min(ring.inserted, bits.shape[0])
    order = np.lexsort((slots, bits, slots >= filled))  # the last key is the primary one
    chosen = torch.from_numpy(order[:batch_size])
    return tuple(rows[chosen] for rows in ring.rows), torch.arange(batch_size) < filled


def mean(ring: Ring) -> torch.Tensor:
    """Mean of the rows held; NaN while there is none."""
    (rows,) = ring.rows
    return rows[: ring.inserted].mean()
