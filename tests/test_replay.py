"""Replay: a ring against a deque, and samples that are uniform, distinct and never empty slots."""

from collections import Counter, deque
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

import torch_ref.noise
import torch_ref.replay as twin
from jaxpg import replay
from jaxpg.replay import empty, mean

insert = jax.jit(replay.insert)
sample = jax.jit(replay.sample, static_argnames="batch_size")
LARGEST = 2**32 - 1


def ring_of(values, size):
    """A ring that values have been appended to, all valid."""
    return insert(empty(jnp.zeros(()), size), jnp.array(values), jnp.ones(len(values), bool))


def stream(seed, steps=20, size=7):
    """Batches of transitions (obs, reward, terminated) and which of their rows are valid.

    Batches shorter and longer than the ring, some without a valid row.
    """
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = rng.choice([3, size, 3 * size])
        transition = (
            rng.normal(size=(rows, 2)).astype(np.float32),
            rng.normal(size=rows).astype(np.float32),
            rng.random(rows) < 0.5,
        )
        yield transition, rng.random(rows) < (0.0, 0.3, 0.8, 1.0)[step % 4]


def empty_ring(size):
    """Of transitions as in `stream`, in both packages."""
    row = (np.zeros(2, np.float32), np.zeros((), np.float32), np.zeros((), bool))
    ours = empty(jax.tree.map(jnp.array, row), size)
    return ours, twin.empty(tuple(map(torch.tensor, row)), size)


def assert_rings_equal(theirs, ours):
    assert theirs.inserted == int(ours.inserted)
    for their_rows, our_rows in zip(theirs.rows, ours.rows, strict=True):
        np.testing.assert_array_equal(their_rows.numpy(), our_rows, strict=True)


# Insertion


def test_insert_worked_by_hand():
    """Row i of the stream lives in slot i mod 3; slots that nothing reached are 0."""
    ring = empty(jnp.zeros(()), 3)
    ring = insert(ring, jnp.array([10.0, 11.0]), jnp.array([True, True]))
    assert (ring.rows.tolist(), int(ring.inserted)) == ([10, 11, 0], 2)
    # 13 is row 3 of the stream and wraps around; 99 is not valid and counts nowhere.
    ring = insert(ring, jnp.array([12.0, 99.0, 13.0]), jnp.array([True, False, True]))
    assert (ring.rows.tolist(), int(ring.inserted)) == ([13, 11, 12], 4)
    # Rows 4 to 8: only the last three fit, row 6 in slot 0.
    ring = insert(ring, jnp.arange(14.0, 19.0), jnp.ones(5, bool))
    assert (ring.rows.tolist(), int(ring.inserted)) == ([16, 17, 18], 9)
    ring = insert(ring, jnp.array([99.0]), jnp.array([False]))
    assert (ring.rows.tolist(), int(ring.inserted)) == ([16, 17, 18], 9)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_ring_holds_what_a_deque_would(size):
    """Oldest first, the deque of the last M valid rows; parts of a transition stay together."""
    ring, _ = empty_ring(size)
    expected = deque(maxlen=size)
    for transition, valid in stream(seed=size):
        ring = insert(ring, transition, valid)
        expected.extend(zip(*(part[valid] for part in transition), strict=True))
        oldest = max(0, int(ring.inserted) - size)
        slots = np.arange(oldest, int(ring.inserted)) % size
        for part, held in zip(ring.rows, zip(*expected, strict=True), strict=False):
            np.testing.assert_array_equal(np.asarray(part)[slots], np.array(held))
    assert int(ring.inserted) > size


def test_insert_leaves_the_given_ring_alone():
    """A state that was kept, as in a checkpoint, does not change."""
    ours, theirs = empty_ring(5)
    for transition, valid in stream(0, steps=2):
        insert(ours, transition, valid)
        twin.insert(theirs, tuple(map(torch.tensor, transition)), torch.tensor(valid))
    for ring in (ours, theirs):
        assert int(ring.inserted) == 0
        assert not any(np.asarray(rows).any() for rows in ring.rows)


def test_padding_never_enters_the_ring():
    ring, rows = empty(jnp.zeros(()), 4), jnp.array([jnp.nan, 1.0, jnp.nan, 2.0])
    ring = insert(ring, rows, jnp.isfinite(rows))
    assert ring.rows.tolist() == [1.0, 2.0, 0.0, 0.0]


# Sampling


def test_sample_worked_by_hand():
    """The smallest bits of 30, 10, 20, 40 stand in slots 1 and 2."""
    bits = jnp.array([30, 10, 20, 40], jnp.uint32)
    rows, real = sample(ring_of([5.0, 6.0, 7.0, 8.0], 4), bits, 2)
    assert rows.tolist() == [6.0, 7.0]
    assert real.tolist() == [True, True]
    # Slots 1 to 3 are empty, and come after slot 0 whatever their bits; one row is real.
    rows, real = sample(ring_of([5.0], 4), bits, 2)
    assert rows.tolist() == [5.0, 0.0]
    assert real.tolist() == [True, False]


def test_of_equal_bits_the_lower_slot_comes_first():
    bits = jnp.array([7, 7, 3, 7, LARGEST, LARGEST], jnp.uint32)
    rows, _ = sample(ring_of(jnp.arange(6.0), 6), bits, 6)
    assert rows.tolist() == [2, 0, 1, 3, 4, 5]
    twin_ring = twin.insert(
        twin.empty((torch.zeros(()),), 6), (torch.arange(6.0),), torch.ones(6, dtype=torch.bool)
    )
    (rows,), _ = twin.sample(twin_ring, np.asarray(bits), 6)
    assert rows.tolist() == [2, 0, 1, 3, 4, 5]


@pytest.mark.parametrize("filled", [1, 4, 6, 9])
def test_an_empty_slot_is_never_real_though_its_bits_be_smaller(filled):
    """Held rows are 1, 2, …; empty slots hold 0 and have bits 0, the held ones the largest."""
    held = jnp.arange(1.0, filled + 1)
    bits = np.where(np.arange(9) < filled, LARGEST, 0).astype(np.uint32)
    rows, real = sample(ring_of(held, 9), bits, 6)
    assert rows[real].tolist() == held.tolist()[:6]
    assert int(real.sum()) == min(filled, 6)


def test_samples_are_distinct_rows_of_the_ring():
    ring = ring_of(jnp.arange(37.0), 20)  # holds 17 … 36
    bits = torch_ref.noise.bits(torch_ref.noise.key(0), (500, 20))
    rows, real = jax.jit(jax.vmap(lambda bits: replay.sample(ring, bits, 12)))(bits)
    assert np.asarray(real).all()
    assert all(len(set(row.tolist())) == 12 for row in np.asarray(rows))
    assert set(np.unique(rows)) == set(range(17, 37))


@pytest.mark.parametrize("filled", [6, 10])
def test_every_pair_of_rows_is_as_likely(filled):
    """χ² over the pairs of 3,000 samples of 2, with fixed bits; the ring of 10 full or filling."""
    ring = ring_of(jnp.arange(float(filled)), 10)
    bits = torch_ref.noise.bits(torch_ref.noise.key(1), (3000, 10))
    rows, _ = jax.jit(jax.vmap(lambda bits: replay.sample(ring, bits, 2)))(bits)
    counts = Counter(tuple(sorted(row)) for row in np.asarray(rows).tolist())
    pairs = list(combinations(range(filled), 2))
    assert sum(counts[pair] for pair in pairs) == 3000
    assert scipy.stats.chisquare([counts[pair] for pair in pairs]).pvalue > 0.01


def test_order_of_a_sample_is_uniform_too():
    """Each row comes first as often: χ² over 3,000 samples."""
    ring = ring_of(jnp.arange(10.0), 10)
    bits = torch_ref.noise.bits(torch_ref.noise.key(2), (3000, 10))
    rows, _ = jax.jit(jax.vmap(lambda bits: replay.sample(ring, bits, 4)))(bits)
    counts = np.bincount(np.asarray(rows)[:, 0].astype(int), minlength=10)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


# Mean


def test_mean_worked_by_hand():
    """(1 + 5) / 2; and after 9 and 2 have wrapped around the first, (5 + 9 + 2) / 3."""
    ring = ring_of([1.0, 5.0], 3)
    assert mean(ring) == 3.0
    ring = insert(ring, jnp.array([9.0, 2.0]), jnp.ones(2, bool))
    assert mean(ring) == pytest.approx(16 / 3)
    assert np.isnan(mean(empty(jnp.zeros(()), 3)))


@pytest.mark.parametrize("values", [[], [1.5], [1.0, 5.0, 9.0, 2.0], list(range(11))])
def test_twin_has_the_same_mean(values):
    values = np.array(values, np.float32)
    valid = np.ones(len(values), bool)
    theirs = twin.empty((torch.zeros(()),), 4)
    theirs = twin.insert(theirs, (torch.tensor(values),), torch.tensor(valid))
    ours = ring_of(values, 4) if len(values) else empty(jnp.zeros(()), 4)
    np.testing.assert_array_equal(twin.mean(theirs), mean(ours))


# jit, vmap, and the twin


def test_twin_is_equal_to_the_bit_over_a_stream():
    ours, theirs = empty_ring(7)
    key = torch_ref.noise.key(0)
    for step, (transition, valid) in enumerate(stream(seed=1, steps=40)):
        ours = insert(ours, transition, valid)
        theirs = twin.insert(theirs, tuple(map(torch.tensor, transition)), torch.tensor(valid))
        assert_rings_equal(theirs, ours)
        bits = torch_ref.noise.bits(torch_ref.noise.fold_in(key, step), (7,))
        bits = bits >> np.uint32(30)  # seven slots share four numbers: ties
        rows, real = sample(ours, bits, 5)
        twin_rows, twin_real = twin.sample(theirs, bits, 5)
        np.testing.assert_array_equal(twin_real, real)
        for twin_part, part in zip(twin_rows, rows, strict=True):
            np.testing.assert_array_equal(twin_part.numpy(), part, strict=True)


def test_seeds_under_vmap_do_not_affect_one_another():
    """Rings that fill at different rates, in one program and alone."""
    rng = np.random.default_rng(0)
    rows, valid = rng.normal(size=(4, 5)).astype(np.float32), rng.random((4, 5)) < 0.6
    bits = torch_ref.noise.bits(torch_ref.noise.key(0), (4, 6))

    def insert_and_sample(rows, valid, bits):
        ring = replay.insert(empty(jnp.zeros(()), 6), rows, valid)
        return ring, replay.sample(ring, bits, 3), mean(ring)

    batched = jax.jit(jax.vmap(insert_and_sample))(rows, valid, bits)
    assert len(set(batched[0].inserted.tolist())) > 1
    for i in range(4):
        alone = insert_and_sample(rows[i], valid[i], bits[i])
        jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[i], one), batched, alone)
