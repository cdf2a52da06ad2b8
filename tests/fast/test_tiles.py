"""tiles: what is done for a tile of rows is what the function does with each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg.core.arithmetic import round_floats
from jaxpg.fast import lanes, tiles
from jaxpg.fast.tiles import Array, Tile, Unsupported
from tests.compare import assert_close

KEY = jax.random.key(0)
TILE = Tile(rows=4, columns=2)
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(4, 3))
RNG_KERNEL, BOTH = RNG.normal(size=(3, 2, 5)), RNG.normal(size=(16, 2))
KERNEL, BIAS, BACK = RNG.normal(size=(3, 16)), RNG.normal(size=16), RNG.normal(size=(16, 3))


def by_tile(function, tile, rows, *shared):
    """The function's outputs for these rows [B, ...], by the operations of a kernel."""
    one = jax.ShapeDtypeStruct((1, *rows.shape[1:]), rows.dtype)
    closed = jax.make_jaxpr(function)(one, *shared)
    inputs = [take_apart(tile, rows), *(take_apart(tile, jnp.asarray(x), False) for x in shared)]
    consts = [take_apart(tile, jnp.asarray(x), False) for x in closed.consts]
    return [put_together(tile, x) for x in tiles.evaluate(tile, closed.jaxpr, consts, inputs)]


def take_apart(tile, x, is_by_row=True):
    """The tensors of an array [B, ...], or of one that all rows share; or why there are none."""
    row, column = tile.seats()
    shape = (1, *x.shape[1:]) if is_by_row else x.shape
    long = tiles.long_axis(shape)
    tensors = []
    try:
        places = list(tiles.places(tile, shape))
    except Unsupported as reason:
        return reason
    for place in places:
        index = [at + column if axis == long else at for axis, at in enumerate(place)]
        if is_by_row:
            index[0] = row
        tensors.append(jnp.broadcast_to(x[tuple(index)], row.shape))
    return Array(shape, tensors)


def put_together(tile, x):
    """The rows [B, ...] of an Array, or why it is unsupported."""
    if isinstance(x, Unsupported):
        return str(x)
    row, column = tile.seats()
    long = tiles.long_axis(x.shape)
    result = np.full((tile.rows, *x.shape), np.nan)
    for place, tensor in zip(tiles.places(tile, x.shape), x.tensors, strict=True):
        index = [at + np.asarray(column) if axis == long else at for axis, at in enumerate(place)]
        result[(np.asarray(row), *index)] = tile.each(tensor)
    assert not np.isnan(result).any()
    return result


FUNCTIONS = {
    "arithmetic": lambda x: jnp.exp(-x) * 2.0 + jnp.where(x > 0.0, x**3, jnp.abs(x)) % 0.7,
    "integers": lambda x: (x.astype(int) << 2) // 3 + jnp.clip(x, -0.5, 0.5).astype(int),
    "softmax": jax.nn.softmax,
    "log_softmax": lambda x: jax.nn.log_softmax(x, axis=-1),
    "one hot": lambda x: jax.nn.one_hot(jnp.array([1]), 3) * x,
    "moves": lambda x: jnp.concatenate([x[:, 1:], x[:, :1], jnp.flip(x, 1)], axis=1).T[::2],
    "stack": lambda x: jnp.stack([x[0, 0], x[0, 2], *jnp.split(x, 3, axis=1)[1][0]]),
    "reshape": lambda x: (x.reshape(3, 1) + jnp.zeros((3, 2))).reshape(-1)[None],
    "small product": lambda x: x @ KERNEL[:, :3],
    "hidden": lambda x: x @ KERNEL + BIAS[None],
    "network": lambda x: jax.nn.relu(x @ KERNEL + BIAS[None]) @ BACK,
    "largest and smallest": lambda x: jnp.max(x, axis=1) - jnp.min(x),
    "parts of the hidden": lambda x: jnp.sum((x @ KERNEL)[:, 2:12]) - jnp.sum((x @ KERNEL)[:, 6:]),
    "places in the hidden": lambda x: jnp.sum((x @ KERNEL) * jnp.arange(16.0)[None]),
    "another order": lambda x: (
        jnp.stack([x[0], 2.0 * x[0]])[:, :, None] * jnp.arange(1.0, 5.0)[None, None]
    ).transpose(2, 0, 1),
    "by columns": lambda x: jnp.ravel(jnp.concatenate([x, 2.0 * x]), order="F"),
    "uneven parts": lambda x: jnp.concatenate(jnp.split(x, [1], axis=1)[::-1], axis=1),
    "unstacked": lambda x: jnp.unstack(jnp.concatenate([x, x * x]), axis=1)[1],
    "numbered rows": lambda x: jax.lax.broadcasted_iota(float, (4, 2), 0) + x[0, 0],
    "two axes": lambda x: jnp.tensordot(
        jnp.stack([x[0], 2.0 * x[0]]), RNG_KERNEL, axes=((1, 0), (0, 1))
    ),
    "two axes, the long one last": lambda x: jnp.tensordot(
        (x @ KERNEL).T * jnp.ones((16, 2)) * jnp.arange(1.0, 3.0)[None], BOTH, axes=((1, 0), (1, 0))
    ),
    "small integers": lambda x: jax.lax.dot(
        (100.0 * jnp.tanh(x)).astype(jnp.int8),
        (30 * KERNEL[:, :2]).astype(np.int8),
        preferred_element_type=jnp.int32,
    ),
    "clipped": lambda x: jnp.clip(x, -0.1, 0.2),
    "as columns": lambda x: (KERNEL.T @ x.T).T @ BACK,
    "nested": lambda x: jax.jit(jax.nn.silu)(lanes.rows(lambda y: 2.0 * y)(x)),
    "on the grid": lambda x: round_floats(x * np.array([[1.0, 1e-20, 1e-42]])),
    "gradient": lambda x: jax.grad(lambda x: jnp.sum(jnp.tanh(x @ KERNEL) @ BACK))(x),
    "constant": lambda x: jnp.ones(2),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile", [TILE, Tile(4, 1)], ids=["two columns", "one column"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_for_a_tile_is_the_function_for_each_row(name, tile):
    function = FUNCTIONS[name]
    (result,) = by_tile(function, tile, jnp.asarray(ROWS))
    row_by_row = jax.jit(lambda rows: jnp.stack([function(row[None]) for row in rows]))
    assert_close(result, row_by_row(ROWS), 1e-14)


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_one_row_in_the_parameters():
    """What `kernels.sum_rows` is given: outer products, of which none is computed by itself."""

    def gradient(x, kernel, bias, back):
        def loss(*params):
            kernel, bias, back = params
            return jnp.sum((jax.nn.relu(x @ kernel + bias[None]) @ back) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2))(kernel, bias, back)

    results = by_tile(gradient, TILE, jnp.asarray(ROWS), KERNEL, BIAS, BACK)
    by_row = [gradient(row[None], KERNEL, BIAS, BACK) for row in jnp.asarray(ROWS)]
    for result, expected in zip(results, zip(*by_row, strict=True), strict=True):
        assert_close(result, jnp.stack(expected), 1e-14)


def test_subnormals_and_midpoints_are_rounded_as_reduce_precision_does():
    with jax.enable_x64(True):
        tiny = float(jnp.finfo(jnp.float32).tiny)
        numbers = [1.0 + 2.0**-24, 1.0 + 3 * 2.0**-24, tiny / 2, -tiny / 4, 1e300, -0.0, jnp.nan]
        for x in numbers:
            rows = jnp.full((4, 1), x)
            expected = round_floats(rows)
            (result,) = tiles.evaluate(
                TILE,
                jax.make_jaxpr(round_floats)(rows[:1]).jaxpr,
                [],
                [take_apart(TILE, rows)],
            )
            actual = np.asarray(result.tensors[0])[::2, None]
            np.testing.assert_array_equal(actual, expected)
            np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jnp.sort, "the operation sort"),
        (lambda x: jnp.max(x @ KERNEL), "the max along an axis longer than 8"),
        (lambda x: jax.lax.reduce_precision(x, 5, 10), "the operation reduce_precision"),
        (lambda x: round_floats(x.astype(jnp.float32)), "the operation reduce_precision"),
        (lambda x: jnp.sum(x[:, :0]), "an array [1, 0]"),
        (lambda x: (x > 0.0) @ np.ones((3, 2), bool), "the operation dot_general"),
        (lambda x: jnp.any(x > 0.0, axis=1), "the operation reduce_or"),
        (lambda x: jnp.maximum(x > 0.0, x > 1.0), "the operation max"),
        (lambda x: jnp.abs(x + 1j), "complex numbers"),
        (lambda x: jax.lax.select_n(x.astype(jnp.int32), x, -x, x), "the operation select_n"),
        (lambda x: jax.jit(lambda x: x + jax.random.uniform(KEY))(x), "a constant key<fry> []"),
        (lambda x: x @ KERNEL @ np.ones((16, 16)), "an array [16, 16]"),
        (lambda x: (x @ KERNEL)[:, :7], "a part of an axis longer than 8"),
        (lambda x: (x @ KERNEL).reshape(4, 4), "a part of an axis longer than 8"),
        (lambda x: x @ np.ones((3, 9)), "an array [3, 9]"),
        (lambda x: jnp.einsum("bi,bi->b", x, x), "a product with a batch axis"),
        (
            lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y + 1, x),
            "the operation while",
        ),
    ],
)
def test_what_cannot_be_a_kernel_says_why(function, reason):
    (result,) = by_tile(function, TILE, jnp.asarray(ROWS))
    assert result == reason


def test_what_is_computed_in_vain_may_be_anything():
    def function(x):
        return x + 1.0, jnp.sort(x)

    fine, sorted_ = by_tile(function, TILE, jnp.asarray(ROWS))
    assert_close(fine, ROWS[:, None] + 1.0, 1e-6)
    assert sorted_ == "the operation sort"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("function", [jax.nn.relu, lambda x: jnp.clip(x, -1.0, 1.0), jnp.max])
@pytest.mark.parametrize("place", [0, 2])
def test_a_nan_is_not_lost(function, place):
    """Triton's own maximum drops it; then a seed that has diverged would go on."""
    rows = jnp.asarray(ROWS).at[:, place].set(jnp.nan)
    one = jax.ShapeDtypeStruct((1, 3), rows.dtype)
    closed = jax.make_jaxpr(function)(one)
    assert not any("max" in str(e) or "min" in str(e) for e in operations(closed, rows))
    (result,) = tiles.evaluate(TILE, closed.jaxpr, [], [take_apart(TILE, rows)])
    expected = np.asarray(function(rows[:1])).ravel()
    actual = [np.asarray(TILE.each(tensor))[0] for tensor in result.tensors]
    np.testing.assert_array_equal(actual, expected)


def operations(closed, rows):
    """What a tile's operations are."""

    def run(rows):
        (result,) = tiles.evaluate(TILE, closed.jaxpr, [], [take_apart(TILE, rows)])
        return result.tensors

    return [equation.primitive for equation in jax.make_jaxpr(run)(rows).jaxpr.eqns]
