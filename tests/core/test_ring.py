"""Replay: a ring against a deque, and samples that are uniform, distinct and never empty slots."""

from collections import Counter, deque
from itertools import combinations, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

import torch_ref.noise
import torch_ref.ring as twin
from jaxpg.core import ring as replay
from jaxpg.core.noise import ROUNDS
from jaxpg.core.ring import empty, mean

insert, permute = jax.jit(replay.insert), jax.jit(replay.permute)
sample = jax.jit(replay.sample, static_argnames="batch_size")


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
    assert (theirs.next_slot, theirs.filled) == (int(ours.next_slot), int(ours.filled))
    for their_rows, our_rows in zip(theirs.rows, ours.rows, strict=True):
        np.testing.assert_array_equal(their_rows.numpy(), our_rows, strict=True)


# Insertion


def test_insert_worked_by_hand():
    """Row i of the stream lives in slot i mod 3; slots that nothing reached are 0."""

    def held(ring):
        return ring.rows.tolist(), int(ring.next_slot), int(ring.filled)

    ring = empty(jnp.zeros(()), 3)
    ring = insert(ring, jnp.array([10.0, 11.0]), jnp.array([True, True]))
    assert held(ring) == ([10, 11, 0], 2, 2)
    # 13 is row 3 of the stream and wraps around; 99 is not valid and counts nowhere.
    ring = insert(ring, jnp.array([12.0, 99.0, 13.0]), jnp.array([True, False, True]))
    assert held(ring) == ([13, 11, 12], 1, 3)
    # Rows 4 to 8: only the last three fit, row 6 in slot 0.
    ring = insert(ring, jnp.arange(14.0, 19.0), jnp.ones(5, bool))
    assert held(ring) == ([16, 17, 18], 0, 3)
    ring = insert(ring, jnp.array([99.0]), jnp.array([False]))
    assert held(ring) == ([16, 17, 18], 0, 3)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_ring_holds_what_a_deque_would(size):
    """Oldest first, the deque of the last M valid rows; parts of a transition stay together."""
    ring, _ = empty_ring(size)
    expected, wrapped = deque(maxlen=size), False
    for transition, valid in stream(seed=size):
        ring = insert(ring, transition, valid)
        expected.extend(zip(*(part[valid] for part in transition), strict=True))
        slots = (int(ring.next_slot) - np.arange(len(expected))[::-1] - 1) % size
        for part, held in zip(ring.rows, zip(*expected, strict=True), strict=False):
            np.testing.assert_array_equal(np.asarray(part)[slots], np.array(held))
        assert int(ring.filled) == len(expected)
        wrapped = wrapped or (len(expected) == size and int(ring.next_slot) > 0)
    assert wrapped or size == 1


def test_insert_leaves_the_given_ring_alone():
    """A state that was kept, as in a checkpoint, does not change."""
    ours, theirs = empty_ring(5)
    for transition, valid in stream(0, steps=2):
        insert(ours, transition, valid)
        twin.insert(theirs, tuple(map(torch.tensor, transition)), torch.tensor(valid))
    for ring in (ours, theirs):
        assert (int(ring.next_slot), int(ring.filled)) == (0, 0)
        assert not any(np.asarray(rows).any() for rows in ring.rows)


def test_padding_never_enters_the_ring():
    ring, rows = empty(jnp.zeros(()), 4), jnp.array([jnp.nan, 1.0, jnp.nan, 2.0])
    ring = insert(ring, rows, jnp.isfinite(rows))
    assert ring.rows.tolist() == [1.0, 2.0, 0.0, 0.0]


# Sampling


def round_keys(seed, *shape):
    return torch_ref.noise.bits(torch_ref.noise.key(seed), (*shape, ROUNDS))


def test_a_feistel_network_worked_by_hand():
    """Four bits, high 01 and low 10; hash(x) = 3x + k instead of the real one, two rounds.

    Round 0, k = 1: high = 01 ^ (3 · 2 + 1 = 0111 → 11) = 10.
    Round 1, k = 2: low = 10 ^ (3 · 2 + 2 = 1000 → 00) = 10. Together 1010.
    """
    index, size, keys = np.array([0b0110], np.uint32), np.uint32(16), np.array([1, 2], np.uint32)
    for module in (replay, twin):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_mix", lambda x, key: 3 * x + key)
            assert np.asarray(module.permute(index, size, keys)).tolist() == [0b1010]


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 255, 256, 257, 5000])
def test_permute_is_a_permutation(size):
    for seed in range(3):
        index, keys = np.arange(size, dtype=np.uint32), round_keys(seed)
        order = permute(index, np.uint32(size), keys)
        assert sorted(order.tolist()) == list(range(size))
        theirs = twin.permute(np.arange(size, dtype=np.uint32), np.uint32(size), keys)
        np.testing.assert_array_equal(theirs, order, strict=True)


def test_two_permutations_have_little_in_common():
    """A random permutation keeps one element in its place, on average."""
    size = 5000
    index = np.arange(size, dtype=np.uint32)
    permuted = jax.vmap(lambda keys: permute(index, np.uint32(size), keys))
    kept = [int((a == b).sum()) for a, b in pairwise(np.array(permuted(round_keys(3, 100))))]
    assert 0.5 < np.mean(kept) < 1.5
    assert max(kept) < 10


@pytest.mark.parametrize("filled", [1, 4, 6, 9])
def test_an_empty_slot_is_never_real(filled):
    """Held rows are 1, 2, …; empty slots hold 0."""
    held = jnp.arange(1.0, filled + 1)
    for seed in range(5):
        rows, real = sample(ring_of(held, 9), round_keys(seed), 6)
        assert int(real.sum()) == min(filled, 6)
        assert set(rows[real].tolist()) <= set(held.tolist())
        assert len(set(rows[real].tolist())) == min(filled, 6)


def test_samples_are_distinct_rows_of_the_ring():
    ring = ring_of(jnp.arange(37.0), 20)  # holds 17 … 36
    rows, real = samples(ring, round_keys(0, 500), 12)
    assert real.all()
    assert all(len(set(row.tolist())) == 12 for row in rows)
    assert set(np.unique(rows)) == set(range(17, 37))


@pytest.mark.parametrize("filled", [3, 6, 10])
def test_every_pair_of_rows_is_as_likely(filled):
    """χ² over the pairs of 3,000 samples of 2, with fixed bits; the ring of 10 full or filling."""
    rows, _ = samples(ring_of(jnp.arange(float(filled)), 10), round_keys(1, 3000), 2)
    counts = Counter(tuple(sorted(row)) for row in rows.tolist())
    pairs = list(combinations(range(filled), 2))
    assert sum(counts[pair] for pair in pairs) == 3000
    assert scipy.stats.chisquare([counts[pair] for pair in pairs]).pvalue > 0.01


@pytest.mark.parametrize(("filled", "place"), [(10, 0), (10, 3), (100, 0), (100, 3)])
def test_order_of_a_sample_is_uniform_too(filled, place):
    """Each row comes first, and fourth, as often: χ² over 5,000 samples."""
    rows, _ = samples(ring_of(jnp.arange(float(filled)), 100), round_keys(2, 5000), 4)
    counts = np.bincount(rows[:, place].astype(int), minlength=filled)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_how_often_two_samples_meet_is_hypergeometric():
    """512 of 5,000 rows, twice: 52.4 rows in common on average, with variance 42.2."""
    ring = ring_of(jnp.arange(5000.0), 5000)
    rows, _ = samples(ring, round_keys(4, 400), 512)
    common = [len(np.intersect1d(a, b)) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    mean, variance = 512**2 / 5000, 512**2 / 5000 * (1 - 512 / 5000) * (5000 - 512) / 4999
    assert np.mean(common) == pytest.approx(mean, abs=4 * np.sqrt(variance / 200))
    assert np.var(common) == pytest.approx(variance, rel=0.5)


def samples(ring, keys, count):
    """`count` rows for each of many keys, as numpy."""
    draw = jax.jit(jax.vmap(lambda keys: replay.sample(ring, keys, count)))
    return jax.tree.map(np.asarray, draw(keys))


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


@pytest.mark.as_users_run(1)
def test_twin_is_equal_to_the_bit_over_a_stream():
    ours, theirs = empty_ring(7)
    key = torch_ref.noise.key(0)
    for step, (transition, valid) in enumerate(stream(seed=1, steps=40)):
        ours = insert(ours, transition, valid)
        theirs = twin.insert(theirs, tuple(map(torch.tensor, transition)), torch.tensor(valid))
        assert_rings_equal(theirs, ours)
        if not theirs.filled:
            continue
        bits = torch_ref.noise.bits(torch_ref.noise.fold_in(key, step), (ROUNDS,))
        rows, real = sample(ours, bits, 5)
        twin_rows, twin_real = twin.sample(theirs, bits, 5)
        np.testing.assert_array_equal(twin_real, real)
        for twin_part, part in zip(twin_rows, rows, strict=True):
            np.testing.assert_array_equal(twin_part.numpy(), part, strict=True)


def test_seeds_under_vmap_do_not_affect_one_another():
    """Rings that fill at different rates, in one program and alone."""
    rng = np.random.default_rng(0)
    rows, valid = rng.normal(size=(4, 5)).astype(np.float32), rng.random((4, 5)) < 0.6
    bits = round_keys(0, 4)

    def insert_and_sample(rows, valid, bits):
        ring = replay.insert(empty(jnp.zeros(()), 6), rows, valid)
        return ring, replay.sample(ring, bits, 3), mean(ring)

    batched = jax.jit(jax.vmap(insert_and_sample))(rows, valid, bits)
    assert len(set(batched[0].filled.tolist())) > 1
    for i in range(4):
        alone = insert_and_sample(rows[i], valid[i], bits[i])
        jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[i], one), batched, alone)
