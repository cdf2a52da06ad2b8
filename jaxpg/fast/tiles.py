"""A function of one row, done for a tile of rows with the operations that a GPU kernel may have.

Triton, in which such kernels are written, has tensors and hardly a way to take one apart. So a
tensor here has one element for each thread of a tile, which are B rows of W threads, and arrays are
taken apart in tracing: an entry of a row is a tensor, the same for the row's W threads. Only an
axis of more than `SHORT` entries, that of a hidden layer, is shared out among them: of 64 entries
the first of 4 threads has entries 0, 4, 8, …, one in each of 16 tensors. A sum along such an axis
adds up tensors first and threads last; nothing else passes from thread to thread.

A function may consist of elementwise operations, of sums and products, and of whatever only moves
entries. What needs any other operation is `Unsupported`.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton
from jax.extend.core import Literal

SHORT = 8  # entries of an axis of which each thread of a row has all

CALLS = {  # and the parameter that is the program
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}
ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan2", "convert_element_type", "cos", "div", "eq",
    "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "mul", "ne", "neg", "not", "one_minus_square", "or", "pow", "rem",
    "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign",
    "sin", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
# What an operation does to the places of entries, in numpy.
MOVES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": lambda x, shape, broadcast_dimensions, sharding: np.broadcast_to(
        np.expand_dims(x, [i for i in range(len(shape)) if i not in broadcast_dimensions]), shape
    ),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "copy": lambda x: x,
    "reshape": lambda x, new_sizes, dimensions, sharding: (
        x if dimensions is None else x.transpose(dimensions)
    ).reshape(new_sizes),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "slice": lambda x, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))
    ],
    "split": lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "stop_gradient": lambda x: x,
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "unstack": lambda x, axis: list(np.moveaxis(x, axis, 0)),
}
REDUCTIONS = {"reduce_sum": "add", "reduce_max": "max", "reduce_min": "min"}


class Unsupported(Exception):
    """No kernel can be made of this; why."""


class Product(NamedTuple):
    """x · y, not computed yet: what it is added to may take it in."""

    x: jax.Array
    y: jax.Array


class Tile(NamedTuple):
    """The threads of a warp; those of a row are next to one another."""

    rows: int  # B
    columns: int  # W

    def each(self, tensor: Any) -> jax.Array:
        """A number, product or tensor as a tensor [B · W]."""
        if isinstance(tensor, Product):
            return tensor.x * tensor.y
        return jnp.broadcast_to(tensor, (self.rows * self.columns,))

    def add(self, total: jax.Array, tensor: Any) -> jax.Array:
        """total + tensor."""
        return _multiply_add(*tensor, total) if isinstance(tensor, Product) else total + tensor

    def seats(self) -> tuple[jax.Array, jax.Array]:
        """Each thread's row and column, int32 [B · W]."""
        thread = jax.lax.iota(jnp.int32, self.rows * self.columns)
        return thread // self.columns, thread % self.columns

    def table(self, tensor: Any) -> jax.Array:
        """A tensor as [B, W]."""
        return self.each(tensor).reshape(self.rows, self.columns)


class Array(NamedTuple):
    """An array of one row, for each row of a tile."""

    shape: tuple[int, ...]  # for one row
    tensors: list[Any]  # one for each of its `places`: a number, product, or [B · W]


Value = Array | Unsupported  # what is computed in vain may be unsupported


def long_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that the threads of a row share."""
    longest = max(shape, default=0)
    return shape.index(longest) if longest > SHORT else None


def grid(tile: Tile, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many tensors an array has along each axis.

    Raises:
      Unsupported: if it is empty, two axes are long, or the threads cannot share one evenly.
    """
    long = long_axis(shape)
    if not math.prod(shape) or any(
        size > SHORT and (axis != long or size % tile.columns) for axis, size in enumerate(shape)
    ):
        raise Unsupported(f"an array {list(shape)}")
    return tuple(size // tile.columns if i == long else size for i, size in enumerate(shape))


def places(tile: Tile, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where in an array each tensor's first entry is."""
    long = long_axis(shape)
    steps = [tile.columns if axis == long else 1 for axis in range(len(shape))]
    for place in np.ndindex(*grid(tile, shape)):
        yield tuple(map(operator.mul, place, steps))


def evaluate(
    tile: Tile, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """The outputs of a program that was traced for one row."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        kind: Any = atom.aval
        return _constant(atom.val, kind.dtype)

    for equation in jaxpr.eqns:
        results = _apply(tile, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(x: Any, dtype: Any) -> Value:
    """Known in tracing; its entries become part of the kernel's code."""
    known = not isinstance(x, jax.core.Tracer) and not is_key(dtype)
    if not known or max(np.shape(x), default=0) > SHORT:
        return Unsupported(f"a constant {dtype} {list(np.shape(x))}")
    return Array(np.shape(x), list(np.asarray(x, dtype).flat))


def is_key(dtype: Any) -> bool:
    """Whether it is that of random keys."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _apply(tile: Tile, equation: Any, inputs: list[Value]) -> Sequence[Value]:
    """The results of one operation; of one that is unsupported the reason."""
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        inner = params[CALLS[name]]
        consts = [_constant(x, x.dtype) for x in inner.consts]
        return evaluate(tile, inner.jaxpr, consts, inputs)
    results = [result.aval for result in equation.outvars]
    reasons = [x for x in inputs if isinstance(x, Unsupported)]
    arrays = [x for x in inputs if isinstance(x, Array)]
    try:
        if not reasons and name in MOVES:
            return _move(tile, functools.partial(MOVES[name], **params), results, arrays)
        if not reasons:
            return [_compute(tile, equation, results[0].shape, results[0].dtype, arrays)]
    except Unsupported as reason:
        reasons.append(reason)
    return reasons[:1] * len(results)


def _compute(
    tile: Tile, equation: Any, shape: tuple[int, ...], dtype: Any, arrays: list[Array]
) -> Array:
    name, params = equation.primitive.name, equation.params
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise Unsupported("complex numbers")
    if name in ELEMENTWISE and not (name == "select_n" and len(arrays) > 3):
        bind = functools.partial(equation.primitive.bind, **params)
        return _elementwise(tile, bind, shape, arrays)
    if name in ("max", "min") and dtype != jnp.bool_:
        return _elementwise(tile, functools.partial(_extreme, name), shape, arrays)
    if name == "clamp":
        low, x, high = arrays
        above = _elementwise(tile, functools.partial(_extreme, "max"), shape, [x, low])
        return _elementwise(tile, functools.partial(_extreme, "min"), shape, [above, high])
    if name in REDUCTIONS:
        return _reduce(tile, REDUCTIONS[name], shape, arrays[0], params["axes"])
    if name == "dot_general" and dtype != jnp.bool_:
        return _dot(tile, shape, dtype, arrays, params["dimension_numbers"])
    if name == "iota":
        return _iota(tile, shape, dtype, params["dimension"])
    to_float32 = params.get("exponent_bits") == 8 and params.get("mantissa_bits") == 23
    if name == "reduce_precision" and to_float32 and dtype == jnp.float64:
        return _elementwise(tile, _round, shape, arrays)
    raise Unsupported(f"the operation {name}")


def _elementwise(
    tile: Tile, function: Callable, shape: tuple[int, ...], arrays: list[Array]
) -> Array:
    """A tensor after the other; an axis of one entry goes with a longer one."""
    sizes = grid(tile, shape)
    columns = []
    for x in arrays:
        index = np.arange(len(x.tensors)).reshape(grid(tile, x.shape))
        columns.append([tile.each(x.tensors[i]) for i in np.broadcast_to(index, sizes).flat])
    return Array(shape, [function(*operands) for operands in zip(*columns, strict=True)])


def _extreme(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger or smaller of two; NaN if one of them is, which Triton would drop."""
    if _has_ptx(x):
        return _ptx(f"{name}.NaN.f32 $0, $1, $2;", x, y)
    takes_y = x < y if name == "max" else y < x
    return jnp.where(jnp.logical_or(takes_y, y != y), y, x)


def _round(x: jax.Array) -> jax.Array:
    """To float32 and back; what is subnormal there becomes 0."""
    near = x.astype(jnp.float32).astype(x.dtype)
    return jnp.where(jnp.abs(near) < jnp.finfo(jnp.float32).tiny, 0.0 * near, near)


def _reduce(
    tile: Tile, name: str, shape: tuple[int, ...], x: Array, axes: tuple[int, ...]
) -> Array:
    groups = _groups(tile, x, axes)
    if name == "add":
        tensors = [_sum(tile, group) for group in groups]
        return _over_columns(tile, shape, tensors, long_axis(x.shape) in axes)
    if long_axis(x.shape) in axes:
        raise Unsupported(f"the {name} along an axis longer than {SHORT}")
    of_two = functools.partial(_extreme, name)
    return Array(shape, [functools.reduce(of_two, map(tile.each, group)) for group in groups])


def _dot(
    tile: Tile, shape: tuple[int, ...], dtype: Any, factors: list[Array], dimensions: tuple
) -> Array:
    a, b = factors
    (axes_a, axes_b), batch = dimensions
    if any(batch):
        raise Unsupported("a product with a batch axis")
    grid(tile, shape)
    tensors = []
    for xs, ys in itertools.product(_groups(tile, a, axes_a), _groups(tile, b, axes_b)):
        pairs = [(tile.each(x).astype(dtype), tile.each(y).astype(dtype))
                 for x, y in zip(xs, ys, strict=True)]  # fmt: skip
        tensors.append(_sum(tile, [Product(x, y) for x, y in pairs]))
    return _over_columns(tile, shape, tensors, long_axis(a.shape) in axes_a)


def _sum(tile: Tile, tensors: list[Any]) -> Any:
    """Of one alone, itself."""
    first, *rest = tensors
    return functools.reduce(tile.add, rest, tile.each(first)) if rest else first


def _multiply_add(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """x · y + z, which Triton would make two operations."""
    return _ptx("fma.rn.f32 $0, $1, $2, $3;", x, y, z) if _has_ptx(x) else x * y + z


def _has_ptx(x: jax.Array) -> bool:
    return jax.default_backend() == "gpu" and x.dtype == jnp.float32


def _ptx(code: str, *operands: jax.Array) -> jax.Array:
    """What an instruction of NVIDIA's GPUs computes of float32."""
    (result,) = triton.elementwise_inline_asm(
        code,
        args=operands,
        constraints=",".join(["=f"] + ["f"] * len(operands)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)],
    )
    return result


def _groups(tile: Tile, x: Array, axes: Sequence[int]) -> list[list[Any]]:
    """Of each entry along the other axes, the tensors along these, in their order."""
    sizes = grid(tile, x.shape)
    others = [axis for axis in range(len(sizes)) if axis not in axes]
    index = np.arange(len(x.tensors)).reshape(sizes).transpose([*others, *axes])
    index = index.reshape(math.prod(sizes[axis] for axis in others), -1)
    return [[x.tensors[i] for i in group] for group in index]


def _over_columns(tile: Tile, shape: tuple[int, ...], tensors: list[Any], is_shared: bool) -> Array:
    """Sums, added up over the threads of a row if these share what was summed."""
    if not is_shared:
        return Array(shape, tensors)
    tables = [tile.table(tensor) for tensor in tensors]
    sums = [jnp.sum(table, axis=1, keepdims=True, dtype=table.dtype) for table in tables]
    return Array(shape, [jnp.broadcast_to(x, tables[0].shape).reshape(-1) for x in sums])


def _iota(tile: Tile, shape: tuple[int, ...], dtype: Any, axis: int) -> Array:
    counts = [dtype.type(place[axis]) for place in places(tile, shape)]
    if axis == long_axis(shape):
        _, column = tile.seats()
        counts = [x + column.astype(dtype) for x in counts]
    return Array(shape, counts)


def _move(tile: Tile, move: Callable, results: list[Any], arrays: list[Array]) -> list[Value]:
    """Number all entries, move the numbers, and see which tensor's have come where."""
    numbers: list[np.ndarray] = []
    tensors: dict[tuple[int, ...], Any] = {}  # by the numbers of its entries
    for x in arrays:
        start = sum(map(np.size, numbers))
        numbers.append(start + np.arange(math.prod(x.shape)).reshape(x.shape))
        tensors |= dict(zip(_shares(tile, numbers[-1]), x.tensors, strict=True))
    moved = move(*numbers)
    found: list[Value] = []
    for x, result in zip(moved if isinstance(moved, list) else [moved], results, strict=True):
        # Where all threads of a row take the same entry, that has been a tensor of its own.
        shares = [share[:1] if len(set(share)) == 1 else share for share in _shares(tile, x)]
        if any(share not in tensors for share in shares):
            found.append(Unsupported(f"a part of an axis longer than {SHORT}"))
        else:
            found.append(Array(result.shape, [tensors[share] for share in shares]))
    return found


def _shares(tile: Tile, numbers: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The entries of each tensor of an array."""
    long = long_axis(numbers.shape)
    for place in places(tile, numbers.shape):
        if long is None:
            yield (int(numbers[place]),)
        else:
            along = [
                (*place[:long], place[long] + i, *place[long + 1 :]) for i in range(tile.columns)
            ]
            yield tuple(int(numbers[one]) for one in along)
