"""Prove a port: compare any two trees of arrays, and find where two runs part. numpy only.

A tree is nested dicts, lists, tuples, NamedTuples or dataclasses, a list of (name, array), or
anything with a `state_dict()`, such as a torch module (whose other buffers are not seen). Its
leaves are numbers and arrays of jax, torch or numpy. What cannot be compared is a failure, never a
pass. `docs/parity.md` shows it used.
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

BEFORE_ROUNDING = ":before_rounding"
"""Ends the name of a tensor that holds another one's values before they were rounded."""

WHOLE = 1e-12  # of its norm: by how much what was rounded apart may have differed before
ENTRY = 1e-10  # of one entry
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex"}
_NARROW = {  # numpy does not have them; what holds them
    "bfloat16": np.float32, "float8_": np.float32, "float6_": np.float32, "float4_": np.float32,
    "int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8,
}  # fmt: skip

Patterns = str | Iterable[str]  # names of leaves, or shell patterns such as "*.kernel"
Names = Mapping[str, str] | Callable[[str], str] | None


class Leaf(NamedTuple):
    """How one leaf compares."""

    name: str  # in a; in b if a has no such leaf
    dtype: str  # "float64", or "float32, float64" where the sides differ
    shape: tuple[int, ...]
    reason: str  # why it fails; empty for a leaf that passes
    error: float = math.inf  # ||a - b|| / ||b||, or over the scale; inf if there is no such number
    difference: float = math.inf  # the largest |a - b|
    at: tuple[int, ...] | None = None  # index of the largest difference, or of a NaN or infinity
    a: Any = None  # the values there
    b: Any = None


@dataclasses.dataclass(frozen=True)
class Report:
    """How two trees compare; true if they are close, and prints as a table, worst leaf first."""

    leaves: tuple[Leaf, ...]  # in a's order, then those that only b has
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether there are leaves and each one passes."""
        return bool(self.leaves) and not any(leaf.reason for leaf in self.leaves)

    @property
    def worst(self) -> Leaf | None:
        """The leaf with the largest error of those that fail, else of all; None without leaves."""
        return next(iter(self._worst_first()), None)

    def raise_if_different(self) -> None:
        """Raise an AssertionError whose text is the report, unless it is `ok`."""
        __tracebackhide__ = True
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if not self.leaves:
            return "DIFFERENT: no leaves on either side, nothing was compared"
        count = sum(bool(leaf.reason) != self.ok for leaf in self.leaves)
        verdict = "EQUAL" if self.ok else "DIFFERENT"
        title = f"{verdict}: {count} of {len(self.leaves)} leaves, tolerance {self.tolerance:g}"
        header = ("leaf", "dtype", "shape", "error", "max|a-b|", "at", "a", "b", "verdict")
        return "\n".join([title, *_align([header, *map(_row, self._worst_first())])])

    def _worst_first(self) -> list[Leaf]:
        return sorted(self.leaves, key=lambda leaf: (not leaf.reason, -leaf.error))


class Split(NamedTuple):
    """Where two runs part; prints as a sentence or two."""

    update: int  # counted from 0
    step: int | None  # for the tensors named in `steps`
    leaf: Leaf  # the tensor; `at` is the first entry that differs. Nameless if a whole run ended
    before: tuple[Any, Any] | None  # the values at that entry before rounding, where given
    verdict: str  # "different", "incomparable", or where `before` is given "straddle" or "fault"

    def __str__(self) -> str:
        leaf = self.leaf
        step = "" if self.step is None else f", step {self.step}"
        place = f"update {self.update}{step}" + (f", tensor {leaf.name!r}" if leaf.name else "")
        if leaf.at is None:
            return f"{place}: {leaf.reason}."
        text = f"{place}, index {leaf.at}: a = {leaf.a!r}, b = {leaf.b!r}; {leaf.reason}."
        if self.before is None:
            return text
        before = "before rounding a = {!r}, b = {!r}".format(*self.before)
        if self.verdict == "straddle":
            return f"{text} A straddle: {before}, on either side of the middle between a and b."
        return f"{text} A fault, not a straddle: {before}."


def compare(
    a: Any,
    b: Any,
    *,
    tolerance: float = 1e-12,
    names: Names = None,
    transpose: Patterns | Mapping[str, tuple[int, ...]] = (),
    scale: Any = None,
    allow_zero: bool | Patterns = False,
    same_dtype: bool = False,
) -> Report:
    """Compare two trees leaf by leaf: names, shapes and kinds first, then values.

        error = ||a - b|| / ||b||  <=  tolerance        (Euclidean norm of the leaf)

    A leaf fails if it is missing on one side; if its shapes, or its kinds (float, int, bool,
    complex) differ; if there is a NaN or an infinity on either side, or on both; or if it is empty
    or all zero on both sides, because then nothing was compared. Two trees without leaves fail.

    Args:
      a, b: the trees; b is the reference.
      tolerance: in [0, inf). Integers and bools are always compared exactly. 0 asks for equal
        values: bit-equal, except that 0.0 equals -0.0 and that widths may differ.
      names: {name in a: name in b}, where names that are left out stay the same; or a function.
      transpose: leaves of a whose last two axes are swapped before anything is compared; or
        {pattern: axes} as in `np.transpose`, of which the first that matches counts.
      scale: what to divide by instead of ||b||, for sums that cancel: a positive number, or a tree
        with the leaves of a, whose norms are taken (sums of absolute terms, or the norms).
      allow_zero: True, or the leaves of a, which may be zero or empty on both sides.
      same_dtype: whether dtypes must be the same too, float32 or float64.

    Raises:
      ValueError: for an argument that has no meaning: a tolerance that is negative or not finite,
        a name that is not in a, two names mapped to one, a pattern that matches nothing, a scale
        that lacks a leaf or is not positive, a leaf that is no array of numbers.
    """
    _check_tolerance(tolerance)
    pairs, missing = _match(a, b, names, transpose)
    mine = [pair.name for pair in pairs]
    zeros = _zeros(allow_zero, mine + [leaf.name for leaf in missing])
    scales = _scales(scale, mine, zeros)
    compared = [
        _compare_leaf(pair, tolerance, scales.get(pair.name), pair.name in zeros, same_dtype)
        for pair in pairs
    ]
    return Report((*compared, *missing), tolerance)


def assert_close(a: Any, b: Any, **options: Any) -> None:
    """`compare`, and raise an AssertionError whose text is the report if the trees differ."""
    __tracebackhide__ = True
    compare(a, b, **options).raise_if_different()


def assert_equal(a: Any, b: Any, **options: Any) -> None:
    """`assert_close` with tolerance 0."""
    __tracebackhide__ = True
    compare(a, b, tolerance=0.0, **options).raise_if_different()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Copies of a tree's leaves by their dotted names, in order; None is no leaf.

    Args:
      tree: see the module. An array or a number alone is named "array".

    Raises:
      ValueError: if two leaves have one name, or a leaf is no array of numbers.
    """
    return {name: np.array(array.values) for name, array in _read(tree).items()}


def gradients(module: Any) -> dict[str, np.ndarray]:
    """Copies of the gradients of a torch module's parameters, by name; frozen ones left out.

    Raises:
      ValueError: if a parameter has no gradient, because `backward` has not reached it.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, parameter in named.items():
        if parameter.grad is None:
            raise ValueError(f"parameter {name!r} has no gradient: backward() has not reached it")
    return leaves({name: parameter.grad for name, parameter in named.items()})


def bisect(
    run_a: Iterable[Any],
    run_b: Iterable[Any],
    *,
    tolerance: float = 0.0,
    names: Names = None,
    transpose: Patterns | Mapping[str, tuple[int, ...]] = (),
    steps: Patterns = (),
    only: Patterns = (),
    same_dtype: bool = False,
) -> Split | None:
    """The first update, tensor and index at which two runs differ; None if they are equal.

    The runs are consumed side by side and only up to the split, so that generators may train as
    they go. The tensor is the first, in a's order, that `compare` would fail at this tolerance
    (zeros are allowed); the index is the first entry whose |a - b| exceeds tolerance times the
    root mean square of b, which some entry then does.

    A tensor that is rounded to a grid may have a companion, named the same but for
    `:before_rounding` at the end (or in the middle: "params:before_rounding.w" for "params.w").
    Companions are not compared; they judge, and have their tensor's place in `transpose` and `only`
    and, where their name ends so, in a mapping `names`. A split is a *straddle* if every entry that
    differs is two neighbours on the grid (all numbers of as many bits as the tensor's longest has,
    none of them subnormal), each the rounding of its companion, and the companions agree within
    1e-12 of their norm and, in these entries, within 1e-10 of the larger of what the entry is and
    was an update ago: a small number may be what is left of larger ones, and of what was 0, or is
    new, nobody knows. Otherwise it is a *fault*. Of the tensors named in `steps` the step that is
    named is judged, and for "an update" read "a step".

    Args:
      run_a, run_b: one tree of tensors per update, best a list of (name, tree) in the order of
        computation: jax sorts the keys of a dict that passes through `jit`. A module is read when
        it is compared: in a list of updates each must be a copy.
      tolerance, names, transpose, same_dtype: as in `compare`.
      steps: tensors of a whose axis 0 is time, of those that are computed forwards in it. If the
        first tensor that differs is one of them, the earliest step of all of them counts.
      only: tensors of a that are compared; b need not have the others, nor a the others of b.
        Without any, both must have the same.

    Raises:
      ValueError: if there is nothing to compare (no updates, an update without tensors, or
        nothing but zeros), and as `compare` does.
    """
    _check_tolerance(tolerance)
    updates_a, updates_b = iter(run_a), iter(run_b)
    if updates_a is updates_b:
        raise ValueError("the two runs are one and the same iterator")
    transpose = _patterns(transpose, "transpose")
    steps, only = _patterns(steps, "steps"), _patterns(only, "only")
    end, count, nonzero, last = object(), 0, False, dict[str, np.ndarray]()
    for a, b in itertools.zip_longest(updates_a, updates_b, fillvalue=end):
        if a is end or b is end:
            reason = f"{'a' if a is end else 'b'} has ended, the other run goes on"
            return Split(count, None, Leaf("", "", (), reason), None, "incomparable")
        try:
            pairs, missing = _match(a, b, names, transpose, only)
        except ValueError as problem:
            raise ValueError(f"update {count}: {problem}") from None
        if missing:
            return Split(count, None, missing[0], None, "incomparable")
        if not pairs:
            raise ValueError(f"update {count} has no tensors on either side")
        companions = _companions(pairs)
        split = _split(count, pairs, companions, last, tolerance, steps, same_dtype)
        if split is not None:
            return split
        last |= {pair.name: pair.b.copy() for pair in pairs if pair.name in companions}
        nonzero = nonzero or any(pair.b.any() for pair in pairs)
        count += 1
    if not nonzero:
        what = "nothing but zeros was" if count else "no update was"
        raise ValueError(f"the runs show nothing: {what} compared")
    return None


class _Array(NamedTuple):
    """A leaf as numpy."""

    values: np.ndarray
    dtype: str  # its own, where numpy needed another


class _Pair(NamedTuple):
    """A leaf that both trees have."""

    name: str
    dtypes: tuple[str, str]
    a: np.ndarray
    b: np.ndarray


def _match(
    a: Any, b: Any, names: Names, transpose: Any, only: Patterns = ()
) -> tuple[list[_Pair], list[Leaf]]:
    """The leaves that both trees have, with a's axes in b's order; and those that one lacks."""
    left, right = _transposed(_read(a, " of a"), transpose), _read(b, " of b")
    other = _other_names(list(left), names)
    if only:
        left = {name: left[name] for name in _matching(only, [*left], "only")}
        right = {name: right[name] for name in map(other.get, left) if name in right}
    pairs, missing = [], []
    for name, (values, dtype) in left.items():
        if other[name] in right:
            values_b, dtype_b = right.pop(other[name])
            pairs.append(_Pair(name, (dtype, dtype_b), values, values_b))
        else:
            alias = "" if other[name] == name else f" as {other[name]!r}"
            missing.append(Leaf(name, dtype, values.shape, f"missing in b{alias}"))
    missing += [Leaf(name, x.dtype, x.values.shape, "missing in a") for name, x in right.items()]
    return pairs, missing


def _other_names(mine: list[str], names: Names) -> dict[str, str]:
    """{name in a: name in b}."""
    if isinstance(names, Mapping):
        if unknown := names.keys() - mine:
            raise ValueError(f"names: a has no leaf {min(unknown)!r}; it has {_some(mine)}")
        other = {name: names.get(name, name) for name in mine}
        for name in mine:
            rounded = name.removesuffix(BEFORE_ROUNDING)
            if rounded in names and name not in names:
                other[name] = names[rounded] + BEFORE_ROUNDING
    else:
        other = {name: names(name) if names else name for name in mine}
    taken: dict[str, str] = {}
    for name, target in other.items():
        if taken.setdefault(target, name) != name:
            raise ValueError(f"names: {taken[target]!r} and {name!r} are both mapped to {target!r}")
    return other


def _transposed(arrays: dict[str, _Array], transpose: Any) -> dict[str, _Array]:
    for name, pattern in _matching(transpose, list(arrays), "transpose").items():
        values, dtype = arrays[name]
        last_two = (*range(values.ndim - 2), values.ndim - 1, values.ndim - 2)
        axes = transpose[pattern] if isinstance(transpose, Mapping) else last_two
        try:
            if values.ndim < 2:
                raise ValueError
            arrays[name] = _Array(values.transpose(axes), dtype)
        except (TypeError, ValueError):
            message = f"transpose: {name!r} of shape {values.shape} has no axes {axes}"
            raise ValueError(message) from None
    return arrays


def _matching(patterns: Patterns, names: list[str], argument: str) -> dict[str, str]:
    """{name: the first pattern that it matches}; a companion matches what its tensor does."""
    found: dict[str, str] = {}
    known = set(names)
    for pattern in _patterns(patterns, argument):
        one = pattern in known
        matches = [pattern] if one else [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"{argument}: {pattern!r} matches no leaf; there are {_some(names)}")
        for name in matches:
            found.setdefault(name, pattern)
    for name in names:
        rounded = name.replace(BEFORE_ROUNDING, "")
        if rounded in found:
            found.setdefault(name, found[rounded])
    return found


def _patterns(given: Any, argument: str) -> Any:
    """A mapping as it is, or a tuple: an iterator can be gone through once."""
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Iterable):
        raise ValueError(f"{argument}: must be names of leaves, and is {given!r}")
    return tuple(given)


def _zeros(allow_zero: bool | Patterns, names: list[str]) -> set[str]:
    """The leaves that may be zero on both sides."""
    if isinstance(allow_zero, bool):
        return set(names) if allow_zero else set()
    return set(_matching(allow_zero, names, "allow_zero"))


def _scales(scale: Any, names: list[str], zeros: set[str]) -> dict[str, float]:
    """What the leaves are divided by; 0 is for one of zeros."""
    if scale is None:
        return {}
    if isinstance(scale, numbers.Real):
        scales = dict.fromkeys(names, float(scale))
    else:
        given = _read(scale, " of scale")
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"scale: lacks the leaf {missing[0]!r}; it has {_some(list(given))}")
        scales = {name: _norm(given[name].values) for name in names}
    for name, value in scales.items():
        if not 0 < value < math.inf and not (value == 0 and name in zeros):
            raise ValueError(f"scale: must be positive and finite, and is {value:g} for {name!r}")
    return scales


def _check_tolerance(tolerance: Any) -> None:
    if not isinstance(tolerance, int | float | np.number) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance: must be in [0, inf), and is {tolerance}")


def _compare_leaf(
    pair: _Pair,
    tolerance: float,
    scale: float | None = None,
    allow_zero: bool = True,
    same_dtype: bool = False,
) -> Leaf:
    """The checks in their order; the first that fails is the leaf's verdict."""
    name, dtypes, a, b = pair
    leaf = Leaf(name, dtypes[0] if dtypes[0] == dtypes[1] else ", ".join(dtypes), a.shape, "")
    kinds = _KINDS[a.dtype.kind], _KINDS[b.dtype.kind]
    if a.shape != b.shape:
        return leaf._replace(reason=f"shape {a.shape} is not {b.shape}")
    if kinds[0] != kinds[1]:
        return leaf._replace(reason="kind {} is not {}".format(*kinds))
    if same_dtype and dtypes[0] != dtypes[1]:
        return leaf._replace(reason="dtype {} is not {}".format(*dtypes))
    if not a.any() and not b.any():
        what = "all zero" if a.size else "empty"
        reason = "" if allow_zero else f"{what} on both sides: nothing was compared"
        return leaf._replace(reason=reason, error=0.0, difference=0.0)
    finite = np.isfinite(a), np.isfinite(b)
    if not np.all(finite):
        sides = " and ".join(
            side for side, fine in zip("ab", finite, strict=True) if not fine.all()
        )
        return _at(leaf, pair, ~np.logical_and(*finite))._replace(reason=f"not finite in {sides}")

    difference = _difference(a, b)
    error = _relative_error(difference, b, scale)
    allowed = _allowed(pair, tolerance)
    equal = error <= allowed if allowed else not difference.any()
    reason = "" if equal else f"error exceeds {allowed:g}" if allowed else "not equal"
    largest = difference.max()
    leaf = leaf._replace(reason=reason, error=error, difference=float(largest))
    return _at(leaf, pair, difference == largest)


def _at(leaf: Leaf, pair: _Pair, mask: np.ndarray) -> Leaf:
    """The leaf with the index and the values of the mask's first True, in row-major order."""
    at = tuple(int(i) for i in np.unravel_index(np.argmax(mask), mask.shape))
    return leaf._replace(at=at, a=pair.a[at].item(), b=pair.b[at].item())


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| as floats; positive wherever the two are not equal, for large integers too."""
    if a.dtype.kind in "biu":
        difference, unequal = np.zeros(a.shape), a != b
        difference[unequal] = np.abs(a[unequal].astype(object) - b[unequal].astype(object))
        return difference
    wide = np.result_type(a, b, np.float64)
    with np.errstate(over="ignore"):
        return np.abs(a.astype(wide) - b.astype(wide))


def _relative_error(difference: np.ndarray, b: np.ndarray, scale: float | None) -> float:
    """||difference|| / ||b|| or / scale; both times 2^k, so that no square over- or underflows."""
    if not difference.any():
        return 0.0
    size = np.abs(b).astype(difference.dtype)
    unit = _unit(max(difference.max(), size.max()))
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(size * unit) if scale is None else scale * unit
        error = float(np.linalg.norm(difference * unit) / norm)
    return math.inf if math.isnan(error) else error


def _norm(x: np.ndarray) -> float:
    """Euclidean; no square over- or underflows."""
    size = np.abs(x).astype(np.result_type(x.real, np.float64))
    unit = _unit(size.max(initial=0.0))
    return float(np.linalg.norm(size * unit) / unit)


def _unit(largest: float) -> float:
    """The power of 2 that brings numbers up to this one to about 1."""
    _, exponent = np.frexp(largest)
    return 2.0 ** -int(np.clip(exponent, -1000, 1000))


def _split(
    count: int,
    pairs: list[_Pair],
    companions: dict[str, _Pair],
    last: dict[str, np.ndarray],
    tolerance: float,
    steps: Patterns,
    same_dtype: bool,
) -> Split | None:
    """The first difference in one update; `last` are b's rounded tensors of the one before."""
    by_name = {pair.name: pair for pair in pairs}
    timed = _matching(steps, list(by_name), "steps")
    found = []
    for pair in pairs:
        judge_only = BEFORE_ROUNDING in pair.name  # but shapes, kinds and NaN are checked
        allowed = math.inf if judge_only else tolerance
        leaf = _compare_leaf(pair, allowed, same_dtype=same_dtype)
        if leaf.reason:
            found.append(_at_first_difference(leaf, pair, tolerance))
    if not found:
        return None
    leaf = found[0]
    if leaf.name in timed:  # min keeps the given order among equal steps
        leaf = min((x for x in found if x.name in timed), key=lambda x: x.at[0] if x.at else -1)
    step = leaf.at[0] if leaf.at and leaf.name in timed else None
    if math.isinf(leaf.difference):
        return Split(count, step, leaf, None, "incomparable")
    leaf = leaf._replace(reason=f"the tensor differs by {leaf.error:.2g} of its norm")
    if leaf.name not in companions:
        return Split(count, step, leaf, None, "different")
    pair, before = by_name[leaf.name], companions[leaf.name]
    values = before.a[leaf.at].item(), before.b[leaf.at].item()
    straddles = _straddles(pair, before, last.get(leaf.name), step)
    return Split(count, step, leaf, values, "straddle" if straddles else "fault")


def _companions(pairs: list[_Pair]) -> dict[str, _Pair]:
    """{tensor: its values before rounding}."""
    by_name = {pair.name: pair for pair in pairs}
    companions = {}
    for name, pair in by_name.items():
        rounded = name.replace(BEFORE_ROUNDING, "")
        if rounded != name:
            if rounded not in by_name or _shapes(by_name[rounded]) != _shapes(pair):
                raise ValueError(f"{name!r} has no rounded tensor {rounded!r} of its shape")
            companions[rounded] = pair
    return companions


def _shapes(pair: _Pair) -> tuple:
    return pair.a.shape, pair.b.shape


def _at_first_difference(leaf: Leaf, pair: _Pair, tolerance: float) -> Leaf:
    """The leaf with the first entry that differs in place of the one that differs most."""
    if math.isinf(leaf.difference):
        return leaf
    difference = _difference(pair.a, pair.b)
    root_mean_square = _norm(pair.b) / math.sqrt(pair.b.size)
    exceeds = difference > _allowed(pair, tolerance) * root_mean_square
    return _at(leaf, pair, exceeds if exceeds.any() else difference == difference.max())


def _allowed(pair: _Pair, tolerance: float) -> float:
    """Integers and bools are compared exactly."""
    return tolerance if pair.b.dtype.kind in "fc" else 0.0


def _straddles(rounded: _Pair, before: _Pair, last: np.ndarray | None, step: int | None) -> bool:
    """Whether rounding to the nearest number of the grid alone explains every difference.

    Args:
      last: b's tensor an update before, if there is one.
      step: the only one that counts, of axis 0: what differs there moves all that follow.
    """
    a, b, before_a, before_b = map(_real, (rounded.a, rounded.b, before.a, before.b))
    bits = max(_mantissa_bits(a), _mantissa_bits(b))
    was = np.zeros_like(b) if last is None or last.shape != rounded.b.shape else _real(last)
    if step is not None:
        was = np.concatenate([was[-1:], b[:-1]])[step]
        a, b, before_a, before_b = a[step], b[step], before_a[step], before_b[step]
    explained = np.array_equal(_nearest(before_a, bits), a) and np.array_equal(
        _nearest(before_b, bits), b
    )
    between = _nearest(a + (b - a) / 2, bits)
    neighbours = np.all((between == a) | (between == b))
    close = not _compare_leaf(before._replace(a=before_a, b=before_b), WHOLE).reason
    size = np.where(was == 0, math.inf, np.maximum(np.abs(before_b), np.abs(was)))
    own = np.all((a == b) | (np.abs(before_a - before_b) <= ENTRY * size))
    return bool(explained and neighbours and close and own)


def _real(x: np.ndarray) -> np.ndarray:
    """As float64; of complex numbers the parts, on a last axis of their own."""
    parts = np.stack([x.real, x.imag], -1) if np.iscomplexobj(x) else x
    return parts.astype(np.float64)


def _mantissa_bits(x: np.ndarray) -> int:
    """The fewest bits of mantissa that hold all these numbers."""
    mantissa, _ = np.frexp(np.abs(x))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = (whole & -whole)[whole != 0].min(initial=2**52)
    return 53 - int(lowest).bit_length()


def _nearest(x: np.ndarray, bits: int) -> np.ndarray:
    """Each number's nearest of so many bits of mantissa; ties go to the even one."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)


def _read(tree: Any, side: str = "") -> dict[str, _Array]:
    """The leaves by their dotted names."""
    arrays: dict[str, _Array] = {}
    for name, leaf in _walk(tree, ()):
        if name in arrays:
            raise ValueError(f"two leaves{side} are named {name!r}")
        arrays[name] = _as_array(leaf, f"leaf {name!r}{side}")
    return arrays


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if tree is None:
        return
    children = _children(tree)
    if children is None:
        yield ".".join(path) or "array", tree
        return
    for name, child in children:
        yield from _walk(child, (*path, str(name)))


def _children(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    """(name, child) of a node; None for a leaf."""
    if hasattr(tree, "state_dict"):
        tree = tree.state_dict()
    if isinstance(tree, Mapping):
        return tree.items()
    if hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    if isinstance(tree, list | tuple):
        pairs = all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in tree)
        return tree if pairs else enumerate(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return None


def _as_array(leaf: Any, what: str) -> _Array:
    """A jax, torch or numpy array, or a number, as numpy, and the name of its own dtype."""
    if isinstance(leaf, np.ma.MaskedArray):
        raise ValueError(f"{what} is masked: hand over its data, and compare the masks too")
    try:
        dtype = str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
        dtype = dtype.removeprefix("torch.")
        wider = next((wide for name, wide in _NARROW.items() if dtype.startswith(name)), None)
        if hasattr(leaf, "detach"):  # torch
            leaf = (leaf.float() if wider else leaf).detach().cpu().resolve_conj().resolve_neg()
            values = leaf.numpy()
        else:
            values = np.asarray(leaf).astype(wider) if wider else np.asarray(leaf)
    except Exception as error:
        message = f"{what}, a {type(leaf).__name__}, cannot be read as numbers: {error}"
        raise ValueError(message) from error
    if values.dtype.kind not in _KINDS:
        kind = f"a {type(leaf).__name__}, not an array of numbers"
        raise ValueError(f"{what} is {kind} (numpy has it as {dtype})")
    return _Array(values, dtype)


def _row(leaf: Leaf) -> tuple[str, ...]:
    """One line of the table; of a leaf that passes, the largest difference is noise."""
    start = (leaf.name, leaf.dtype, str(leaf.shape))
    if not leaf.reason:
        return (*start, f"{leaf.error:.1e}", "", "", "", "", "ok")
    if leaf.at is None:
        return (*start, "", "", "", "", "", leaf.reason)
    sides = (_number(leaf.a), _number(leaf.b))
    return (
        *start,
        f"{leaf.error:.1e}",
        f"{leaf.difference:.1e}",
        str(leaf.at),
        *sides,
        leaf.reason,
    )


def _number(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float | complex) else str(value)


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _some(names: list[str]) -> str:
    return (", ".join(map(repr, names[:6])) or "none") + (", …" if len(names) > 6 else "")
