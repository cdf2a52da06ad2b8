"""Prove a port: compare any two trees of arrays, and find where two runs part. numpy only.

A tree is nested dicts, lists, tuples, NamedTuples or dataclasses, a list of (name, array), or
anything with a `state_dict()`, such as a torch module. Its leaves are numbers and arrays of jax,
torch or numpy. What cannot be compared is a failure, never a pass. `docs/parity.md` shows it used.
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

STRADDLE_TOLERANCE = 1e-12
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex"}
_NARROW = ("bfloat16", "float8", "float4", "float6")  # float32 holds them exactly, numpy does not

Patterns = str | Iterable[str]  # names of leaves, or shell patterns such as "*.kernel"
Names = Mapping[str, str] | Callable[[str], str] | None


class Leaf(NamedTuple):
    """How one leaf compares."""

    name: str  # in a; in b if a has no such leaf
    dtype: str  # "float64", or "float32, float64" where the sides differ
    shape: tuple[int, ...]
    error: float  # ||a - b|| / ||b||, or over the scale; inf where there is no such number
    difference: float  # the largest |a - b|
    index: tuple[int, ...] | None  # of the largest difference, or of the first NaN or inf
    a: Any  # the values at the index
    b: Any
    reason: str  # why it fails; empty for a leaf that passes


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
        bound = f"within {self.tolerance:g}" if self.tolerance else "exactly"
        failing = sum(bool(leaf.reason) for leaf in self.leaves)
        if not self.leaves:
            return "DIFFERENT: no leaves on either side, nothing was compared"
        if self.ok:
            title = f"EQUAL: {len(self.leaves)} leaves agree {bound}"
        else:
            title = f"DIFFERENT: {failing} of {len(self.leaves)} leaves do not agree {bound}"
        header = ("leaf", "dtype", "shape", "error", "max|a-b|", "at", "a", "b", "verdict")
        return "\n".join([title, *_align([header, *map(_row, self._worst_first())])])

    def _worst_first(self) -> list[Leaf]:
        return sorted(self.leaves, key=lambda leaf: (not leaf.reason, -leaf.error))


class Split(NamedTuple):
    """Where two runs part; prints as a sentence or two."""

    update: int  # counted from 0
    tensor: str  # name in a; empty where a whole run ended
    step: int | None  # for the tensors named in `steps`
    index: tuple[int, ...] | None  # of the first entry that differs, in row-major order
    a: Any  # the values at the index
    b: Any
    error: float  # ||a - b|| / ||b|| of the tensor; inf where there is no such number
    before: tuple[Any, Any] | None  # the values at the index before rounding, where given
    verdict: str  # "different", "straddle", "fault", or "incomparable"
    reason: str

    def __str__(self) -> str:
        tensor = f", tensor {self.tensor!r}" if self.tensor else ""
        step = "" if self.step is None else f", step {self.step}"
        place = f"update {self.update}{step}{tensor}"
        if self.index is None:
            return f"{place}: {self.reason}."
        values = f"a = {_exact(self.a)}, b = {_exact(self.b)}"
        text = f"{place}, index {self.index}: {values}; {self.reason}."
        if self.before is None:
            return text
        before = f"before rounding, a = {_exact(self.before[0])}, b = {_exact(self.before[1])}"
        if self.verdict == "straddle":
            return f"{text} A straddle: {before}, on either side of a float32 midpoint."
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
    tolerance = _checked_tolerance(tolerance)
    pairs = _pairs(a, b, names, transpose)
    scales = _scales(scale, [pair.name for pair in pairs if pair.a is not None])
    patterns = "*" if allow_zero is True else allow_zero or ()
    zeros = _matching(patterns, [pair.name for pair in pairs], "allow_zero") if pairs else {}
    leaves = (
        _compare_leaf(pair, tolerance, scales.get(pair.name), pair.name in zeros, same_dtype)
        for pair in pairs
    )
    return Report(tuple(leaves), tolerance)


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
) -> Split | None:
    """The first update, tensor and index at which two runs differ; None if they are equal.

    The runs are consumed side by side and only up to the split, so that generators may train as
    they go. The tensor is the first, in a's order, that `compare` would fail at this tolerance
    (zeros are allowed); the index is the first entry whose |a - b| exceeds tolerance times the
    root mean square of b, which some entry then does.

    A tensor on a float32 grid may have a companion, named the same but for `:before_rounding` at
    the end (or in the middle: "params:before_rounding.w" for "params.w"). Companions are not
    compared; they judge. A split is a *straddle* if every entry that differs is two neighbouring
    float32 values, each the rounding of its companion, and the companions agree within 1e-12 of
    their norm. Otherwise it is a *fault*.

    Args:
      run_a, run_b: one tree of tensors per update, best in the order of computation.
      tolerance, names, transpose: as in `compare`.
      steps: tensors of a whose axis 0 is time. If the first tensor that differs is one of them, the
        earliest step of all of them counts.

    Raises:
      ValueError: if there is nothing to compare (no updates, an update without tensors, or
        nothing but zeros), and as `compare` does.
    """
    tolerance = _checked_tolerance(tolerance)
    updates_a, updates_b = iter(run_a), iter(run_b)
    if updates_a is updates_b:
        raise ValueError("the two runs are one and the same iterator")
    end, count, nonzero = object(), 0, False
    for a, b in itertools.zip_longest(updates_a, updates_b, fillvalue=end):
        if a is end or b is end:
            reason = f"{'a' if a is end else 'b'} has ended and the other run goes on"
            return Split(count, "", None, None, None, None, math.inf, None, "incomparable", reason)
        pairs = _pairs(a, b, names, transpose)
        if not pairs:
            raise ValueError(f"update {count} has no tensors on either side")
        split = _split(count, pairs, tolerance, steps)
        if split is not None:
            return split
        nonzero = nonzero or any(pair.a is not None and pair.a.values.any() for pair in pairs)
        count += 1
    if not nonzero:
        what = "nothing but zeros was" if count else "no update was"
        raise ValueError(f"the runs show nothing: {what} compared")
    return None


class _Array(NamedTuple):
    values: np.ndarray
    dtype: str  # before `values` was made float32 for numpy's sake


class _Pair(NamedTuple):
    name: str  # in a; in b if a has no such leaf
    missing: str  # what to say if one side is None
    a: _Array | None
    b: _Array | None


def _pairs(a: Any, b: Any, names: Names, transpose: Any) -> list[_Pair]:
    """The leaves of both trees, matched by name and with axes in b's order."""
    left, right = _transposed(_read(a), transpose), _read(b)
    other = _other_names(list(left), names)
    both = [
        _Pair(n, f"missing in b as {other[n]!r}", x, right.get(other[n])) for n, x in left.items()
    ]
    extra = right.keys() - other.values()
    return both + [_Pair(n, "missing in a", None, y) for n, y in right.items() if n in extra]


def _other_names(mine: list[str], names: Names) -> dict[str, str]:
    """{name in a: name in b}."""
    if isinstance(names, Mapping):
        if unknown := [name for name in names if name not in mine]:
            raise ValueError(f"names: a has no leaf {unknown[0]!r}; it has {_some(mine)}")
        given = names
        names = lambda name: given.get(name, name)  # noqa: E731
    other = {name: names(name) if names else name for name in mine}
    taken: dict[str, str] = {}
    for name, target in other.items():
        if target in taken:
            raise ValueError(f"names: {taken[target]!r} and {name!r} are both mapped to {target!r}")
        taken[target] = name
    return other


def _transposed(arrays: dict[str, _Array], transpose: Any) -> dict[str, _Array]:
    for name, pattern in _matching(transpose, list(arrays), "transpose").items():
        values, dtype = arrays[name]
        last_two = (*range(values.ndim - 2), values.ndim - 1, values.ndim - 2)
        axes = transpose[pattern] if isinstance(transpose, Mapping) else last_two
        if values.ndim < 2 or sorted(axes) != list(range(values.ndim)):
            raise ValueError(f"transpose: {name!r} of shape {values.shape} has no axes {axes}")
        arrays[name] = _Array(values.transpose(axes), dtype)
    return arrays


def _matching(patterns: Patterns, names: list[str], argument: str) -> dict[str, str]:
    """{name: the first pattern that it matches}."""
    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"{argument}: {pattern!r} matches no leaf of {_some(names)}")
        for name in matches:
            found.setdefault(name, pattern)
    return found


def _scales(scale: Any, names: list[str]) -> dict[str, float]:
    if scale is None:
        return {}
    if isinstance(scale, numbers.Real):
        scales = dict.fromkeys(names, float(scale))
    else:
        scales = {k: float(np.linalg.norm(array.values)) for k, array in _read(scale).items()}
    if missing := [name for name in names if name not in scales]:
        raise ValueError(f"scale: lacks the leaf {missing[0]!r}; it has {_some(list(scales))}")
    if unknown := [name for name in scales if name not in names]:
        raise ValueError(f"scale: a has no leaf {unknown[0]!r}; it has {_some(names)}")
    for name, value in scales.items():
        if not 0 < value < math.inf:
            raise ValueError(f"scale: must be positive and finite; it is {value:g} for {name!r}")
    return scales


def _checked_tolerance(tolerance: float) -> float:
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance: must be in [0, inf); got {tolerance}")
    return float(tolerance)


def _compare_leaf(
    pair: _Pair, tolerance: float, scale: float | None, allow_zero: bool, same_dtype: bool
) -> Leaf:
    """The checks in their order; the first that fails is the leaf's verdict."""
    if pair.a is None or pair.b is None:
        (values, dtype), *_ = (array for array in (pair.a, pair.b) if array is not None)
        return _failed(pair.name, dtype, values.shape, pair.missing)
    (a, dtype_a), (b, dtype_b) = pair.a, pair.b
    dtype = dtype_a if dtype_a == dtype_b else f"{dtype_a}, {dtype_b}"
    kind_a, kind_b = _KINDS[a.dtype.kind], _KINDS[b.dtype.kind]
    if a.shape != b.shape:
        return _failed(pair.name, dtype, a.shape, f"shape {a.shape} is not {b.shape}")
    if kind_a != kind_b:
        return _failed(pair.name, dtype, a.shape, f"kind {kind_a} is not {kind_b}")
    if same_dtype and dtype_a != dtype_b:
        return _failed(pair.name, dtype, a.shape, f"dtype {dtype_a} is not {dtype_b}")
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    if not (finite_a & finite_b).all():
        sides = "a" if finite_b.all() else "b" if finite_a.all() else "a and b"
        at = _first(~(finite_a & finite_b))
        return _failed(pair.name, dtype, a.shape, f"not finite in {sides}", at, a, b)
    if not (a.any() or b.any()):
        what = "all zero" if a.size else "empty"
        reason = "" if allow_zero else f"{what} on both sides: nothing was compared"
        return Leaf(pair.name, dtype, a.shape, 0.0, 0.0, None, None, None, reason)

    difference = _difference(a, b)
    error = _relative_error(difference, b, scale)
    allowed = tolerance if kind_a in ("float", "complex") else 0.0
    equal = not difference.any() if allowed == 0 else error <= allowed
    at = tuple(int(i) for i in np.unravel_index(np.argmax(difference), a.shape))
    reason = "" if equal else f"error exceeds {allowed:g}" if allowed else "not equal"
    largest, x, y = float(difference[at]), a[at].item(), b[at].item()
    return Leaf(pair.name, dtype, a.shape, error, largest, at, x, y, reason)


def _failed(
    name: str, dtype: str, shape: tuple[int, ...], reason: str, at: Any = None, *sides: np.ndarray
) -> Leaf:
    """A leaf whose values cannot be compared."""
    values = [side[at].item() for side in sides] or [None, None]
    return Leaf(name, dtype, shape, math.inf, math.inf, at, *values, reason)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| as floats; positive wherever the two are not equal, for large integers too."""
    if a.dtype.kind in "biu":
        difference, unequal = np.zeros(a.shape), a != b
        exact = np.abs(a[unequal].astype(object) - b[unequal].astype(object))
        difference[unequal] = exact.astype(float)
        return difference
    wide = np.result_type(a, b, np.float64)
    with np.errstate(over="ignore"):
        return np.abs(a.astype(wide) - b.astype(wide))


def _relative_error(difference: np.ndarray, b: np.ndarray, scale: float | None) -> float:
    """||difference|| / ||b|| or / scale, times 2^k / 2^k so that no square over- or underflows."""
    if not difference.any():
        return 0.0
    exponent = np.frexp(max(difference.max(), np.abs(b).max().astype(difference.dtype)))[1]
    unit = 2.0 ** -int(np.clip(exponent, -1000, 1000))
    with np.errstate(all="ignore"):
        size = np.linalg.norm(b.astype(np.result_type(b, np.float64)) * unit)
        error = np.linalg.norm(difference * unit) / (size if scale is None else scale * unit)
    return float(error) if error <= math.inf else math.inf  # NaN is no small error


def _split(count: int, pairs: list[_Pair], tolerance: float, steps: Patterns) -> Split | None:
    """The first difference in one update."""
    by_name = {pair.name: pair for pair in pairs}
    companion = _companions(by_name)
    timed = _matching(steps, list(by_name), "steps")
    found = []
    for pair in pairs:
        bound = math.inf if pair in companion.values() else tolerance  # shape, kind, NaN only
        leaf = _compare_leaf(pair, bound, None, allow_zero=True, same_dtype=False)
        if leaf.reason:
            found.append(_at_first_difference(leaf, pair, tolerance))
    if not found:
        return None
    leaf = found[0]
    if leaf.name in timed:  # min keeps the given order among equal steps
        leaf = min(
            (x for x in found if x.name in timed), key=lambda x: x.index[0] if x.index else -1
        )
    step = leaf.index[0] if leaf.index and leaf.name in timed else None
    place = (count, leaf.name, step, leaf.index, leaf.a, leaf.b, leaf.error)
    if math.isinf(leaf.difference):
        return Split(*place, None, "incomparable", leaf.reason)
    reason = f"the tensor differs by {leaf.error:.2g} of its norm"
    if leaf.name not in companion:
        return Split(*place, None, "different", reason)
    pair, before = by_name[leaf.name], companion[leaf.name]
    values = before.a.values[leaf.index].item(), before.b.values[leaf.index].item()
    return Split(*place, values, "straddle" if _straddles(pair, before) else "fault", reason)


def _companions(by_name: dict[str, _Pair]) -> dict[str, _Pair]:
    """{tensor: the pair of its values before rounding}."""
    companion = {}
    for name, pair in by_name.items():
        if (rounded := name.replace(BEFORE_ROUNDING, "")) != name:
            if rounded not in by_name:
                raise ValueError(f"{name!r} has no rounded tensor {rounded!r} beside it")
            companion[rounded] = pair
    return companion


def _at_first_difference(leaf: Leaf, pair: _Pair, tolerance: float) -> Leaf:
    """The leaf with the first entry that differs in place of the one that differs most."""
    if pair.a is None or pair.b is None or math.isinf(leaf.difference):
        return leaf
    a, b = pair.a.values, pair.b.values
    difference = _difference(a, b)
    exceeds = difference > tolerance * np.linalg.norm(b) / math.sqrt(b.size)
    at = _first(exceeds if exceeds.any() else difference > 0)
    return leaf._replace(index=at, a=a[at].item(), b=b[at].item())


def _straddles(rounded: _Pair, before: _Pair) -> bool:
    """Whether rounding to float32 alone explains the difference."""
    if rounded.a is None or rounded.b is None or before.a is None or before.b is None:
        return False
    a, b = rounded.a.values, rounded.b.values
    if not (a.shape == b.shape == before.a.values.shape == before.b.values.shape):
        return False
    x, y = before.a.values.astype(np.float32), before.b.values.astype(np.float32)
    neighbours = (a == b) | (np.nextafter(x, y) == y)
    close = _compare_leaf(before, STRADDLE_TOLERANCE, None, allow_zero=True, same_dtype=False)
    return bool((x == a).all() and (y == b).all() and neighbours.all() and not close.reason)


def _read(tree: Any) -> dict[str, _Array]:
    """The leaves by their dotted names."""
    arrays: dict[str, _Array] = {}
    for name, leaf in _walk(tree, ()):
        if name in arrays:
            raise ValueError(f"two leaves are named {name!r}")
        arrays[name] = _as_array(leaf, name)
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


def _as_array(leaf: Any, name: str) -> _Array:
    """A jax, torch or numpy array, or a number, as numpy, and the name of its own dtype."""
    try:
        dtype = str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
        dtype = dtype.removeprefix("torch.")
        narrow = dtype.startswith(_NARROW)
        if hasattr(leaf, "detach"):  # torch
            leaf = (leaf.float() if narrow else leaf).detach().cpu().resolve_conj().resolve_neg()
            values = leaf.numpy()
        else:
            values = np.asarray(leaf).astype(np.float32) if narrow else np.asarray(leaf)
    except Exception as error:
        message = f"leaf {name!r}, a {type(leaf).__name__}, cannot be read as numbers: {error}"
        raise ValueError(message) from error
    if values.dtype.kind not in _KINDS:
        raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}, not an array of numbers")
    return _Array(values, dtype)


def _first(mask: np.ndarray) -> tuple[int, ...]:
    """The index of the first True, in row-major order."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(mask), mask.shape))


def _row(leaf: Leaf) -> tuple[str, ...]:
    """One line of the table; where a leaf passes, its largest difference is noise and left out."""
    error = "" if math.isinf(leaf.error) else f"{leaf.error:.1e}"
    start = (leaf.name, leaf.dtype, str(leaf.shape), error)
    if not leaf.reason:
        return (*start, "", "", "", "", "ok")
    if leaf.index is None:
        return (*start, "", "", "", "", leaf.reason)
    difference = "" if math.isinf(leaf.difference) else f"{leaf.difference:.1e}"
    sides = (_short(leaf.a), _short(leaf.b))
    return (*start, difference, str(leaf.index), *sides, leaf.reason)


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _short(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float | complex) else str(value)


def _exact(value: Any) -> str:
    return f"{value:.17g}" if isinstance(value, float | complex) else str(value)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", …" if len(names) > 6 else "") or "none"
