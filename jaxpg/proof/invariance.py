"""Does a seed's result depend on what is trained beside it?

It should not: seed 17 of a run of 64 is to be found again in a run of 1,024, and alone. Under
`jit(vmap(train))` it mostly does depend on it, in the last bits first. Each number of seeds is
another program, whose sums are taken in another order, and training amplifies that until the
returns differ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Train = Callable[[Sequence[int]], Mapping[str, Any]]  # seeds -> arrays [S, U, ...] by name
History = dict[str, np.ndarray]  # of one seed, [U, ...] by name

ALONE = 4  # seeds that are trained one by one


class Arrangement(NamedTuple):
    """The same seeds, trained in another way, against all of them at once in their order."""

    name: str
    seeds: tuple[int, ...]  # that were compared
    parted: np.ndarray  # int [seeds], the first update whose bits differ; -1 where none does
    array: str  # what differed first, in the first seed to part; "" if none did
    difference: float  # the largest, of any array and seed, in parts of its largest entry

    @property
    def differ(self) -> int:
        """How many of the seeds are not what they were, bit by bit."""
        return int((self.parted >= 0).sum())

    def __str__(self) -> str:
        if not self.differ:
            return f"{self.name}: equal, {len(self.seeds)} of {len(self.seeds)} seeds"
        first = int(self.parted[self.parted >= 0].min())
        return (
            f"{self.name}: {self.differ} of {len(self.seeds)} seeds differ, from update {first} "
            f"on, in {self.array!r} first; by {self.difference:.0e} at most"
        )


class Invariance(NamedTuple):
    """What came out of every arrangement."""

    arrangements: tuple[Arrangement, ...]

    @property
    def holds(self) -> bool:
        """Whether every seed was the same in all of them."""
        return not any(one.differ for one in self.arrangements)

    def __str__(self) -> str:
        return "\n".join(map(str, self.arrangements))


def invariance(train: Train, seeds: Sequence[int]) -> Invariance:
    """Train the same seeds in several arrangements, and compare each one's history bit by bit.

    They are trained all at once, and then: again, in reverse order, half of them beside other seeds
    (as many in all), in two halves, and some of them one by one.

    Args:
      train: seeds -> what each of their updates was, arrays [S, U, ...] by name: losses, returns,
        parameters; of any framework. At each call from the start.
      seeds: different integers, 4 or more, an even number.

    Raises:
      ValueError: if the seeds are not that, or `train` gives arrays of other shapes.
    """
    seeds = tuple(map(int, seeds))
    count = len(seeds)
    if count < 4 or count % 2 or len(set(seeds)) < count:
        raise ValueError(f"seeds must be an even number of different ones, at least 4; got {seeds}")
    half, most = count // 2, max(seeds)
    others = tuple(range(most + 1, most + 1 + half))
    together = _histories(train, seeds)
    ways: dict[str, list[tuple[int, ...]]] = {
        "again": [seeds],
        "in reverse order": [seeds[::-1]],
        "beside other seeds": [seeds[:half] + others],
        "in two halves": [seeds[:half], seeds[half:]],
        "one by one": [(seed,) for seed in seeds[:ALONE]],
    }
    arrangements = []
    for way, groups in ways.items():
        apart: dict[int, History] = {}
        for group in groups:
            apart |= _histories(train, group)
        arrangements.append(_compared(way, together, apart))
    return Invariance(tuple(arrangements))


def _histories(train: Train, seeds: Sequence[int]) -> dict[int, History]:
    """What `train` gives, by seed."""
    arrays = {name: np.asarray(array) for name, array in train(seeds).items()}
    shapes = {array.shape[:2] for array in arrays.values()}
    if len(shapes) != 1 or (shape := shapes.pop())[:1] != (len(seeds),) or len(shape) < 2:
        given = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"train must give arrays [{len(seeds)}, updates, ...]; got {given}")
    return {seed: {name: x[i] for name, x in arrays.items()} for i, seed in enumerate(seeds)}


def _compared(way: str, together: dict[int, History], apart: dict[int, History]) -> Arrangement:
    """Those seeds that are in both."""
    seeds = tuple(seed for seed in together if seed in apart)
    parted, first, largest = [], (np.inf, ""), 0.0
    for seed in seeds:
        found = {name: _first_other(x, apart[seed][name]) for name, x in together[seed].items()}
        moments = [(update, name) for name, update in found.items() if update >= 0]
        earliest = min(moments, key=lambda moment: moment[0], default=None)
        parted.append(-1 if earliest is None else earliest[0])
        if earliest is not None and earliest[0] < first[0]:
            first = earliest
        largest = max([largest, *map(_difference, together[seed].values(), apart[seed].values())])
    return Arrangement(way, seeds, np.array(parted), first[1], largest)


def _first_other(a: np.ndarray, b: np.ndarray) -> int:
    """The first update in which any bit differs; -1 where none does."""
    same = [x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)]
    return -1 if all(same) else same.index(False)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference in parts of the largest entry; NaN counts as 0 beside NaN."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    scale = np.nanmax(np.abs(a), initial=0.0)
    return float(np.nanmax(np.abs(a - b), initial=0.0) / scale) if scale else 0.0
