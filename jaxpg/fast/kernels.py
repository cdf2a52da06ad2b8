"""Loops over rows as one GPU kernel each (Pallas, in Triton), from first input to last output.

XLA makes a kernel of every few operations, and each leaves what it computed in memory. These
kernels keep it on the chip: a tile of rows stays with one warp for all steps of a rollout, or for
its share of a batch. Under vmap the lanes are an axis of the kernel's grid.

The functions are traced for one row and done for a tile of them (`jaxpg.fast.tiles`). What cannot
be a kernel is left to XLA.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxpg.core import learner, rollout
from jaxpg.core.types import Algorithm, Env, EnvState, Noise, Trajectory
from jaxpg.fast.tiles import (
    SHORT,
    Array,
    Tile,
    Unsupported,
    Value,
    evaluate,
    is_key,
    long_axis,
    places,
)

logger = logging.getLogger(__name__)

WARP = 32  # threads of a tile
SHARE = 16  # entries of the longest axis that are one thread's, at most
SHARE_OF_SUM = 8  # the same where their gradients are kept beside them
TURNS = 128  # tiles of a batch that a warp takes one after the other


class Traced(NamedTuple):
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
        return [_supported(x) for x in evaluate(tile, self.jaxpr, consts, inputs)]


class Padded(NamedTuple):
    """Rows for a kernel: as many as its warps take."""

    arrays: list[jax.Array]  # [R, ...]
    turns: int  # tiles of a warp
    warps: int


def scan(step: Callable, state: Any, inputs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan` over T steps of N rows that do not affect one another.

    Args:
      step: (state, an entry of the inputs) -> (state, outputs), leaves [N, ...], row by row.
      state: leaves [N, ...].
      inputs: leaves [T, N, ...].
    """
    length = len(jax.tree.leaves(inputs)[0])
    try:
        return _scan(step, state, [(inputs, 1)], length, reverse)
    except Unsupported as reason:
        logger.info("a scan is left to XLA: %s", reason)
        return jax.lax.scan(step, state, inputs, reverse=reverse)


def collecting(algorithm: Algorithm) -> Algorithm:
    """The algorithm, whose rollouts are one kernel each as long as it acts with parts of its own.

    A kernel has one environment at a time, and a part of yours may look at all of them.
    """
    own = (learner.act, (algorithm.networks.policy, algorithm.distribution))

    def collect(env: Env, act: Any, *inputs: Any) -> tuple[EnvState, Trajectory]:
        acts_so = isinstance(act, partial) and (act.func, act.args) == own
        loop = over_time if acts_so and env == algorithm.env else rollout.over_time
        return rollout.collect_steps(env, act, *inputs, loop=loop)

    return algorithm._replace(collect=collect)


def over_time(step: Callable, state: Any, noise: Noise, block: int) -> tuple[Any, Any]:
    """`core.rollout.over_time`."""
    streams = [(noise.action, 1), (noise.env, 1), (noise.reset, block)]
    try:
        return _scan(step, state, streams, len(noise.action), reverse=False)
    except Unsupported as reason:
        logger.info("a rollout is left to XLA: %s", reason)
        return rollout.over_time(step, state, noise, block)


def network(of_rows: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A network that treats rows alike, (params, rows [..., D]) -> [..., K].

    Its outputs are one kernel, its gradients one each. It has no derivative in forward mode.
    """

    def of_row(ndim: int, params: Any, row: jax.Array) -> jax.Array:
        """The network for a row [1, D], which it sees as an array of so many axes."""
        outputs = of_rows(params, row.reshape(*[1] * (ndim - 1), -1))
        return outputs.reshape(1, *outputs.shape[ndim - 1 :])

    @jax.custom_vjp
    def in_kernels(params: Any, rows: jax.Array) -> jax.Array:
        try:
            flat = rows.reshape(-1, rows.shape[-1])
            outputs = map_rows(partial(of_row, rows.ndim, params), flat)
        except Unsupported as reason:
            logger.info("a network is left to XLA: %s", reason)
            return of_rows(params, rows)
        return outputs.reshape(*rows.shape[:-1], *outputs.shape[1:])

    def forward(params: Any, rows: jax.Array) -> tuple:
        return in_kernels(params, rows), (params, rows)

    def backward(residuals: tuple, cotangent: jax.Array) -> tuple:
        params, rows = residuals

        def in_params(row: jax.Array, slope: jax.Array) -> Any:
            return jax.vjp(lambda params: of_row(rows.ndim, params, row), params)[1](slope)[0]

        flat = rows.reshape(-1, rows.shape[-1])
        slopes = cotangent.reshape(-1, *cotangent.shape[rows.ndim - 1 :])
        try:
            total = sum_rows(in_params, flat, slopes)
        except Unsupported as reason:
            logger.info("a gradient is left to XLA: %s", reason)
            total = jax.vjp(lambda params: of_rows(params, rows), params)[1](cotangent)[0]
        # In the rows hardly anybody asks for one: XLA leaves it out.
        return total, jax.vjp(lambda rows: of_rows(params, rows), rows)[1](cotangent)[0]

    def network(params: Any, rows: jax.Array) -> jax.Array:
        """Without steps of several environments it is part of a kernel already, or small."""
        return of_rows(params, rows) if rows.ndim < 3 else in_kernels(params, rows)

    in_kernels.defvjp(forward, backward)
    return network


def _scan(
    step: Callable, state: Any, streams: Sequence[tuple[Any, int]], length: int, reverse: bool
) -> tuple[Any, Any]:
    """A loop over so many steps, in one kernel.

    Args:
      step: (state, an entry of each stream) -> (state, outputs), leaves [N, ...], row by row.
      streams: (leaves [⌈T/k⌉, N, ...], k) each; an entry serves k steps.

    Raises:
      Unsupported: if there can be none.
    """
    rows = _rows_of_scan(state, streams, length)
    inputs = [tree for tree, _ in streams]
    every = [k for tree, k in streams for _ in jax.tree.leaves(tree)]
    start = _one_row(state, 0)
    program = _trace(step, start, *_one_row(inputs, 1))
    next_state, outputs = program.outputs
    kind = jax.tree.map(lambda x: (x.shape, str(x.dtype)), (start, next_state))
    if kind[0] != kind[1]:
        raise Unsupported("a step whose next state is of another shape or type")
    _check_rows(outputs)
    state, structure = jax.tree.flatten(state)
    outputs, of_outputs = jax.tree.flatten(outputs)
    size = len(state)
    tile = program.tile(SHARE)
    tile = tile._replace(rows=min(tile.rows, rows & -rows))  # the last tile is full, too

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        first = [_supported(_load(tile, ref)) for ref in sources[:size]]

        def body(i: jax.Array, carry: list[list[jax.Array]]) -> list[list[jax.Array]]:
            t = length - 1 - i if reverse else i
            now: list[Value] = [
                x._replace(tensors=tensors) for x, tensors in zip(first, carry, strict=True)
            ]
            new = zip(sources[size:], every, strict=True)
            now += [_load(tile, ref, (t // k,)) for ref, k in new]
            found = program.run(tile, consts, now)
            for ref, x in zip(targets[size:], found[size:], strict=True):
                _store(tile, ref, x, (t,))
            return [list(map(tile.each, x.tensors)) for x in found[:size]]

        carry = jax.lax.fori_loop(0, length, body, [x.tensors for x in first])
        for ref, x, tensors in zip(targets[:size], first, carry, strict=True):
            _store(tile, ref, x._replace(tensors=tensors))

    operands = [(x, 0) for x in state] + [(x, 1) for x in jax.tree.leaves(inputs)]
    results = [(x.shape, x.dtype, 0) for x in state]
    results += [((length, rows, *x.shape[1:]), x.dtype, 1) for x in outputs]
    found = _call(tile, kernel, program.consts, operands, results, rows // tile.rows)
    return jax.tree.unflatten(structure, found[:size]), jax.tree.unflatten(of_outputs, found[size:])


def map_rows(function: Callable, rows: jax.Array) -> Any:
    """function(rows), [R, ...] -> leaves [R, ...], in one kernel.

    Raises:
      Unsupported: if there can be none.
    """
    program = _trace(function, _one_row(rows, 0))
    _check_rows(program.outputs)
    outputs, structure = jax.tree.flatten(program.outputs)
    tile = program.tile(SHARE)
    batch = _batch(tile, [(rows, "edge")])

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        def turn(i: jax.Array, _: None) -> None:
            first = i * tile.rows
            found = program.run(tile, consts, [_load(tile, ref, (), first) for ref in sources])
            for ref, x in zip(targets, found, strict=True):
                _store(tile, ref, x, (), first)

        jax.lax.fori_loop(0, batch.turns, turn, None)

    results = [((len(batch.arrays[0]), *x.shape[1:]), x.dtype, 0) for x in outputs]
    operands = [(x, 0) for x in batch.arrays]
    found = _call(tile, kernel, program.consts, operands, results, batch.warps)
    return jax.tree.unflatten(structure, [x[: len(rows)] for x in found])


def sum_rows(function: Callable, rows: jax.Array, slopes: jax.Array) -> Any:
    """The sum over all rows of function(row, slope), in one kernel.

    Args:
      function: row [1, ...], slope [1, ...] -> leaves [...], linear in the slope.
      rows, slopes: [R, ...].

    Raises:
      Unsupported: if there can be none.
    """
    program = _trace(function, _one_row(rows, 0), _one_row(slopes, 0))
    outputs, structure = jax.tree.flatten(program.outputs)
    tile = program.tile(SHARE_OF_SUM)
    batch = _batch(tile, [(rows, "edge"), (slopes, "constant")])

    def kernel(consts: list[Value], sources: list[Any], targets: list[Any]) -> None:
        def turn(i: jax.Array, totals: list[list[jax.Array]]) -> list[list[jax.Array]]:
            first = i * tile.rows
            found = program.run(tile, consts, [_load(tile, ref, (), first) for ref in sources])
            return [
                list(map(tile.add, old, x.tensors)) for old, x in zip(totals, found, strict=True)
            ]

        zeros = [[tile.each(x.dtype.type(0)) for _ in places(tile, x.shape)] for x in outputs]
        totals = jax.lax.fori_loop(0, batch.turns, turn, zeros)
        columns = jax.lax.iota(jnp.int32, tile.columns)
        for ref, x, tensors in zip(targets, outputs, totals, strict=True):
            for place, tensor in zip(places(tile, x.shape), tensors, strict=True):
                total = jnp.sum(tile.table(tensor), axis=0)
                if long_axis(x.shape) is None:
                    total = jnp.max(total)  # all columns have the same, and Triton has no index
                ref[(0, *_spread(x.shape, place, columns))] = total

    results = [((batch.warps, *x.shape), x.dtype, 0) for x in outputs]
    operands = [(x, 0) for x in batch.arrays]
    found = _call(tile, kernel, program.consts, operands, results, batch.warps)
    return jax.tree.unflatten(structure, [jnp.sum(x, axis=0) for x in found])


def _rows_of_scan(state: Any, streams: Sequence[tuple[Any, int]], length: int) -> int:
    """N, if every leaf has it."""
    leaves = [(x, -(-length // k)) for tree, k in streams for x in jax.tree.leaves(tree)]
    sizes = {x.shape[1:2] for x, _ in leaves} | {x.shape[:1] for x in jax.tree.leaves(state)}
    whole = all(len(x) == entries for x, entries in leaves)
    if not (length and whole and len(sizes) == 1 and sizes.isdisjoint({(), (0,)})):
        raise Unsupported("rows that are not as many everywhere, or none")
    return max(sizes.pop())


def _trace(function: Callable, *inputs: Any) -> Traced:
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(*inputs)
    if closed.jaxpr.effects:
        raise Unsupported("side effects")
    return Traced(closed.jaxpr, closed.consts, outputs)


def _check_rows(outputs: Any) -> None:
    """Of one row there must be one row: else the function closes over something by row."""
    if any(x.shape[:1] != (1,) for x in jax.tree.leaves(outputs)):
        raise Unsupported("outputs that are not by row")


def _one_row(tree: Any, axis: int) -> Any:
    """The shapes of one row, without the axes before the rows."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (1, *x.shape[axis + 1 :]), x.dtype, weak_type=getattr(x, "weak_type", False)
        ),
        tree,
    )


def _batch(tile: Tile, arrays: list[tuple[jax.Array, str]]) -> Padded:
    """Each array, with as many rows more as the last warp wants: its last one, or zeros."""
    size = len(arrays[0][0])
    if not size:
        raise Unsupported("no rows")
    tiles = pl.cdiv(size, tile.rows)
    turns = min(tiles, TURNS)
    warps = pl.cdiv(tiles, turns)
    missing = warps * turns * tile.rows - size
    padded = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode=mode) for x, mode in arrays]
    return Padded(padded, turns, warps)


def _call(
    tile: Tile,
    kernel: Callable,
    consts: list[Any],
    operands: list[tuple[jax.Array, int]],
    results: list[tuple[tuple[int, ...], Any, int]],
    warps: int,
) -> list[jax.Array]:
    """Run a kernel on so many warps, which share the rows.

    Args:
      kernel: (consts, sources, targets); of random keys the source is None.
      operands: arrays, and which axis is that of the rows.
      results: shapes, dtypes, and which axis is that of the rows.
    """
    arrays = [(x, None) for x in consts] + operands
    passed = [(jnp.atleast_1d(x), axis) for x, axis in arrays if not is_key(x.dtype)]

    def body(*refs: Any) -> None:
        left = iter(refs)
        found = [None if is_key(x.dtype) else next(left) for x, _ in arrays]
        shared = [
            _load_shared(tile, ref, jnp.shape(x))
            for ref, x in zip(found[: len(consts)], consts, strict=True)
        ]
        kernel(shared, found[len(consts) :], list(left))

    def block(shape: tuple[int, ...], rows: int | None) -> pl.BlockSpec:
        part = [n // warps if axis == rows else n for axis, n in enumerate(shape)]
        return pl.BlockSpec(part, lambda i: tuple(i * (axis == rows) for axis in range(len(shape))))

    call = pl.pallas_call(
        body,
        grid=(warps,),
        in_specs=[block(x.shape, axis) for x, axis in passed],
        out_specs=[block(shape, axis) for shape, _, axis in results],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in results],
        name=f"{kernel.__qualname__.split('.')[0].strip('_')}_{tile.rows}x{tile.columns}",
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=jax.default_backend() != "gpu",
    )
    return call(*(x for x, _ in passed))


def _supported(value: Value) -> Array:
    """The array, or the reason raised."""
    if isinstance(value, Unsupported):
        raise value
    return value


def _load(tile: Tile, ref: Any, before: tuple = (), first: Any = 0) -> Value:
    """Rows from `first` on, of an array [*before, rows, ...]."""
    if ref is None:
        return Unsupported("random keys")
    row, column = tile.seats()
    shape = (1, *ref.shape[len(before) + 1 :])
    return _read(
        tile, ref, shape, lambda at: (*before, first + row, *_spread(shape, at, column)[1:])
    )


def _load_shared(tile: Tile, ref: Any, shape: tuple[int, ...]) -> Value:
    """An array that all rows share."""
    if ref is None:
        return Unsupported("random keys")
    _, column = tile.seats()
    return _read(tile, ref, shape, lambda at: _spread(shape, at, column) or (0,))


def _read(tile: Tile, ref: Any, shape: tuple[int, ...], index: Callable) -> Value:
    try:
        return Array(shape, [tile.each(ref[index(at)]) for at in places(tile, shape)])
    except Unsupported as reason:
        return reason


def _store(tile: Tile, ref: Any, x: Array, before: tuple = (), first: Any = 0) -> None:
    """To the rows from `first` on, of an array [*before, rows, ...]."""
    row, column = tile.seats()
    for place, tensor in zip(places(tile, x.shape), x.tensors, strict=True):
        ref[(*before, first + row, *_spread(x.shape, place, column)[1:])] = tile.each(tensor)


def _spread(shape: tuple[int, ...], place: tuple[int, ...], column: jax.Array) -> tuple:
    """A tensor's place in an array, for each thread of a row."""
    long = long_axis(shape)
    return tuple(at + column if axis == long else at for axis, at in enumerate(place))
