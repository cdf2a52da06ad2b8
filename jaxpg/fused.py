"""Loops over rows as one GPU kernel each (Pallas, in Triton), from first input to last output.

XLA makes a kernel of every few operations, and each leaves what it computed in memory. These
kernels keep it on the chip: a tile of rows stays with one program of the kernel's grid for all
steps of a rollout, or its share of a batch. Under vmap the lanes are an axis of that grid.

The functions are traced for one row and done for a tile of them (`jaxpg.tiles`). `jaxpg.lanes`
chooses between these loops and XLA's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxpg.tiles import SHORT, Array, Tile, Unsupported, Value, evaluate, long_axis, places

WARP = 32  # threads of a tile
SHARE = 16  # entries of the longest axis that are one thread's, at most
SHARE_OF_SUM = 8  # the same where their gradients are kept beside them
TURNS = 128  # tiles of a batch that a program takes one after the other


class Program(NamedTuple):
    """What a function does with one row."""

    jaxpr: Any
    consts: list[Any]  # arrays that it closes over, the same for all rows
    outputs: Any  # a tree of their shapes, for one row

    def tile(self, share: int) -> Tile:
        """A warp, with as many threads for a row as the longest axis needs."""
        long = [n for x in self.consts for n in jnp.shape(x) if n > SHORT]
        wanted = pl.next_power_of_2(pl.cdiv(max(long, default=1), share))
        columns = math.gcd(min(WARP, wanted), *long)  # which share each of them evenly
        return Tile(WARP // columns, columns)

    def run(self, tile: Tile, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Array]:
        """Its outputs for a tile.

        Raises:
          Unsupported: if one of them is.
        """
        return list(map(_array, evaluate(tile, self.jaxpr, consts, inputs)))


def scan(
    step: Callable, state: Any, streams: Sequence[tuple[Any, int]], length: int, reverse: bool
) -> tuple[Any, Any]:
    """`lanes.scan`, in one kernel.

    Raises:
      Unsupported: if there can be none.
    """
    inputs = [tree for tree, _ in streams]
    every = [k for tree, k in streams for _ in jax.tree.leaves(tree)]
    program = _trace(step, _one_row(state, 0), *_one_row(inputs, 1))
    state, structure = jax.tree.flatten(state)
    size, rows = len(state), len(state[0])
    tile = program.tile(SHARE)
    tile = tile._replace(rows=min(tile.rows, rows & -rows))  # the last tile is full

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        start = [_array(_load(tile, ref)) for ref in sources[:size]]

        def body(i: jax.Array, carry: list[list[jax.Array]]) -> list[list[jax.Array]]:
            t = length - 1 - i if reverse else i
            now: list[Value] = [
                x._replace(tensors=tensors) for x, tensors in zip(start, carry, strict=True)
            ]
            new = zip(sources[size:], every, strict=True)
            now += [_load(tile, ref, (t // k,)) for ref, k in new]
            found = program.run(tile, consts, now)
            for ref, x in zip(targets[size:], found[size:], strict=True):
                _store(tile, ref, x, (t,))
            return [list(map(tile.each, x.tensors)) for x in found[:size]]

        carry = jax.lax.fori_loop(0, length, body, [x.tensors for x in start])
        for ref, x, tensors in zip(targets, start, carry, strict=False):
            _store(tile, ref, x._replace(tensors=tensors))

    outputs, of_outputs = jax.tree.flatten(program.outputs[1])
    operands = [(x, 0) for x in state] + [(x, 1) for x in jax.tree.leaves(inputs)]
    results = [(x.shape, x.dtype, 0) for x in state]
    results += [((length, rows, *x.shape[1:]), x.dtype, 1) for x in outputs]
    found = _call(tile, kernel, program.consts, operands, results, rows // tile.rows)
    return jax.tree.unflatten(structure, found[:size]), jax.tree.unflatten(of_outputs, found[size:])


def map_rows(function: Callable, rows: Any) -> Any:
    """function(rows), leaves [R, ...] -> [R, ...], in one kernel.

    Raises:
      Unsupported: if there can be none.
    """
    program = _trace(function, _one_row(rows, 0))
    tile = program.tile(SHARE)
    inputs, turns, count = _shares(tile, rows)

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        def turn(i: jax.Array, _: None) -> None:
            first = i * tile.rows
            found = program.run(tile, consts, [_load(tile, ref, (), first) for ref in sources])
            for ref, x in zip(targets, found, strict=True):
                _store(tile, ref, x, (), first)

        jax.lax.fori_loop(0, turns, turn, None)

    outputs, structure = jax.tree.flatten(program.outputs)
    results = [((len(inputs[0]), *x.shape[1:]), x.dtype, 0) for x in outputs]
    found = _call(tile, kernel, program.consts, [(x, 0) for x in inputs], results, count)
    size = len(jax.tree.leaves(rows)[0])
    return jax.tree.unflatten(structure, [x[:size] for x in found])


def sum_rows(function: Callable, rows: Any) -> Any:
    """The sum over all rows of function(row), leaves [R, ...] -> [...], in one kernel.

    Args:
      function: of one row, leaves [1, ...] -> [...]; 0 of a row of zeros.

    Raises:
      Unsupported: if there can be none.
    """
    program = _trace(function, _one_row(rows, 0))
    tile = program.tile(SHARE_OF_SUM)
    inputs, turns, count = _shares(tile, rows)
    outputs, structure = jax.tree.flatten(program.outputs)

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        def turn(i: jax.Array, totals: list[list[jax.Array]]) -> list[list[jax.Array]]:
            first = i * tile.rows
            found = program.run(tile, consts, [_load(tile, ref, (), first) for ref in sources])
            return [
                list(map(tile.add, old, x.tensors)) for old, x in zip(totals, found, strict=True)
            ]

        zeros = [[tile.each(x.dtype.type(0)) for _ in places(tile, x.shape)] for x in outputs]
        totals = jax.lax.fori_loop(0, turns, turn, zeros)
        columns = jax.lax.iota(jnp.int32, tile.columns)
        for ref, x, tensors in zip(targets, outputs, totals, strict=True):
            for place, tensor in zip(places(tile, x.shape), tensors, strict=True):
                total = jnp.sum(tile.table(tensor), axis=0)  # of each column
                same = long_axis(x.shape) is None
                ref[(0, *_spread(x.shape, place, columns))] = jnp.max(total) if same else total

    results = [((count, *x.shape), x.dtype, 0) for x in outputs]
    found = _call(tile, kernel, program.consts, [(x, 0) for x in inputs], results, count)
    return jax.tree.unflatten(structure, [jnp.sum(x, axis=0) for x in found])


def _trace(function: Callable, *inputs: Any) -> Program:
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(*inputs)
    return Program(closed.jaxpr, closed.consts, outputs)


def _one_row(tree: Any, axis: int) -> Any:
    """The shapes of one row, without the axes before the rows."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[axis + 1 :]), x.dtype), tree)


def _shares(tile: Tile, rows: Any) -> tuple[list[jax.Array], int, int]:
    """The leaves, with rows of zeros at the end; tiles of a program, and programs."""
    leaves = jax.tree.leaves(rows)
    tiles = pl.cdiv(len(leaves[0]), tile.rows)
    turns = min(tiles, TURNS)
    count = pl.cdiv(tiles, turns)
    missing = count * turns * tile.rows - len(leaves[0])
    padded = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in leaves]
    return padded, turns, count


def _call(
    tile: Tile,
    kernel: Callable,
    consts: list[Any],
    operands: list[tuple[jax.Array, int]],
    results: list[tuple[tuple[int, ...], Any, int]],
    count: int,
) -> list[jax.Array]:
    """Run a kernel of so many programs, which share the rows.

    Args:
      kernel: (consts, sources, targets); of random keys the source is None.
      operands: arrays, and which axis is that of the rows.
      results: shapes, dtypes, and which axis is that of the rows.
    """
    arrays = [(x, None) for x in consts] + operands
    passed = [(jnp.atleast_1d(x), axis) for x, axis in arrays if not _is_key(x)]

    def body(*refs: Any) -> None:
        left = iter(refs)
        found = [None if _is_key(x) else next(left) for x, _ in arrays]
        shared = [
            _load_shared(tile, ref, jnp.shape(x)) for ref, x in zip(found, consts, strict=False)
        ]
        kernel(shared, found[len(consts) :], list(left))

    def block(shape: tuple[int, ...], rows: int | None) -> pl.BlockSpec:
        part = [n // count if axis == rows else n for axis, n in enumerate(shape)]
        return pl.BlockSpec(part, lambda i: tuple(i * (axis == rows) for axis in range(len(shape))))

    call = pl.pallas_call(
        body,
        grid=(count,),
        in_specs=[block(x.shape, axis) for x, axis in passed],
        out_specs=[block(shape, axis) for shape, _, axis in results],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in results],
        name=f"{kernel.__qualname__.split('.')[0]}_{tile.rows}x{tile.columns}",
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=jax.default_backend() != "gpu",
    )
    return call(*(x for x, _ in passed))


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _array(value: Value) -> Array:
    if isinstance(value, Unsupported):
        raise value
    return value


def _load(tile: Tile, ref: Any, before: tuple = (), first: Any = 0) -> Value:
    """Rows from `first` on, of an array [*before, rows, ...]."""
    if ref is None:
        return Unsupported("random keys")
    shape = (1, *ref.shape[len(before) + 1 :])
    row, column = tile.seats()
    try:
        at = [
            (*before, first + row, *_spread(shape, place, column)[1:])
            for place in places(tile, shape)
        ]
    except Unsupported as reason:
        return reason
    return Array(shape, [ref[index] for index in at])


def _load_shared(tile: Tile, ref: Any, shape: tuple[int, ...]) -> Value:
    """An array that all rows share."""
    if ref is None:
        return Unsupported("random keys")
    _, column = tile.seats()
    try:
        at = [_spread(shape, place, column) for place in places(tile, shape)]
    except Unsupported as reason:
        return reason
    return Array(shape, [tile.each(ref[index or (0,)]) for index in at])


def _store(tile: Tile, ref: Any, x: Array, before: tuple = (), first: Any = 0) -> None:
    """To the rows from `first` on, of an array [*before, rows, ...]."""
    row, column = tile.seats()
    for place, tensor in zip(places(tile, x.shape), x.tensors, strict=True):
        ref[(*before, first + row, *_spread(x.shape, place, column)[1:])] = tile.each(tensor)


def _spread(shape: tuple[int, ...], place: tuple[int, ...], column: jax.Array) -> tuple:
    """A tensor's place in an array, for each thread of a row."""
    long = long_axis(shape)
    return tuple(at + column if axis == long else at for axis, at in enumerate(place))
