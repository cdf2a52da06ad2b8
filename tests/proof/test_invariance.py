"""A loop that depends on a seed's neighbours is found out, and one that does not is not."""

import itertools

import numpy as np
import pytest

from jaxpg.proof.invariance import invariance

SEEDS = (3, 1, 4, 5, 9, 2)
WAYS = ("again", "in reverse order", "beside other seeds", "in two halves", "one by one")


def history(seeds, spoiled=0.0, at=2):
    """A loss and a return of 5 updates; from update `at` on the loss is spoiled."""
    seeds = np.array(seeds, float)[:, None]
    update = np.arange(5.0)[None]
    loss = np.sin(seeds + update)
    spoiled = np.where(update >= at, np.reshape(spoiled, (-1, 1)), 0.0)
    return {"loss": loss + spoiled, "return": np.stack([seeds * update, seeds + update], -1)}


def differing(train):
    return {one.name: one.differ for one in invariance(train, SEEDS).arrangements if one.differ}


def test_a_loop_of_seeds_apart_holds():
    found = invariance(history, SEEDS)
    assert found.holds
    assert tuple(one.name for one in found.arrangements) == WAYS
    assert [len(one.seeds) for one in found.arrangements] == [6, 6, 3, 6, 4]
    assert str(found).splitlines()[0] == "again: equal, 6 of 6 seeds"


def test_what_the_number_of_seeds_changes_is_found_in_halves_and_alone():
    found = differing(lambda seeds: history(seeds, 1e-12 * len(seeds)))
    assert found == {"in two halves": 6, "one by one": 4}


def test_what_the_neighbours_change_is_found_beside_others():
    found = differing(lambda seeds: history(seeds, 1e-12 * np.mean(seeds)))
    assert found.keys() == {"beside other seeds", "in two halves", "one by one"}


def test_what_the_place_changes_is_found_in_another_order():
    assert "in reverse order" in differing(lambda seeds: history(seeds, np.arange(len(seeds))))


def test_what_is_never_the_same_is_found_again():
    calls = itertools.count()
    assert differing(lambda seeds: history(seeds, float(next(calls)))).keys() == set(WAYS)


def test_it_says_when_where_and_by_how_much():
    found = invariance(lambda seeds: history(seeds, 1e-3 if len(seeds) == 1 else 0.0), SEEDS)
    *others, alone = found.arrangements
    assert not any(one.differ for one in others)
    assert alone.parted.tolist() == [2, 2, 2, 2]
    assert alone.array == "loss"
    assert alone.difference == pytest.approx(1e-3, rel=0.1)
    assert str(alone).startswith(
        "one by one: 4 of 4 seeds differ, from update 2 on, in 'loss' first"
    )


def test_equal_values_in_other_bits_differ():
    signed = lambda seeds: {"loss": np.full((len(seeds), 1), -0.0 if len(seeds) == 1 else 0.0)}  # noqa: E731
    assert differing(signed) == {"one by one": 4}


@pytest.mark.parametrize("seeds", [(), (1, 2), (1, 2, 3, 4, 5), (1, 2, 3, 3)])
def test_seeds_that_cannot_be_arranged_are_refused(seeds):
    with pytest.raises(ValueError, match="even number of different ones"):
        invariance(history, seeds)


@pytest.mark.parametrize(
    "given",
    [
        lambda seeds: {"loss": np.zeros(len(seeds))},
        lambda seeds: {"loss": np.zeros((1, 5))},
        lambda seeds: {},
    ],
)
def test_arrays_of_another_shape_are_refused(given):
    with pytest.raises(ValueError, match=r"arrays \[6, updates"):
        invariance(given, SEEDS)
