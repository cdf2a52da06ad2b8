"""What lanes of a vmap share: the same numbers as without, and no more work than is needed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg.core.distributions import categorical, gaussian
from jaxpg.fast import lanes

pytestmark = pytest.mark.as_users_run(2)


def test_rows_is_a_vmap_over_one_batch():
    seen = []

    def f(x, y):
        seen.append(x)
        return {"sum": x[0] + y, "twice": 2.0 * x}

    x, y = jnp.arange(48.0).reshape(2, 4, 3, 2), jnp.arange(3.0)
    expected = {"sum": x[..., 0] + y[None, None], "twice": 2.0 * x}
    over_lanes = jax.vmap(jax.vmap(lanes.rows(f), in_axes=(0, None)), in_axes=(0, None))
    jax.tree.map(np.testing.assert_array_equal, over_lanes(x, y), expected)
    program = jax.make_jaxpr(over_lanes)(x, y)
    assert f"f32[{2 * 4 * 3},2]" in str(program)


def test_rows_may_have_arrays_without_an_element():
    """As the state of MuJoCo's physics has them: the contacts of a world without any."""
    none = jnp.zeros((2, 4, 0, 3))
    over_lanes = jax.vmap(lanes.rows(lambda x, y: (x, jnp.tile(y, 2))))
    ours, twice = over_lanes(none, jnp.arange(8.0).reshape(2, 4, 1))
    assert ours.shape == none.shape
    assert twice[1, 3].tolist() == [7.0, 7.0]


def doubling(loop, limit, x):
    """x, doubled until the count reaches the limit; a lane that is over stays as it is."""

    def body(carry):
        i, x = carry
        return i + 1, jnp.where(i < limit, 2.0 * x, x)

    return loop(lambda carry: carry[0] < limit, body, (0, x))[1]


def test_a_while_loop_over_lanes_ends_with_the_last_and_does_not_select():
    """A plain one under vmap selects over its whole carry at each step: once more than its body."""
    limits, x = jnp.array([2, 5, 3]), jnp.ones((3, 7))
    selects = {}
    for loop in (lanes.while_loop, jax.lax.while_loop):
        run = jax.jit(jax.vmap(partial(doubling, loop)))
        assert run(limits, x)[:, 0].tolist() == [4.0, 32.0, 8.0]
        selects[loop] = run.lower(limits, x).as_text().count("stablehlo.select")
    assert selects[lanes.while_loop] < selects[jax.lax.while_loop]


def test_a_while_loop_over_lanes_of_lanes():
    limits, x = jnp.array([[2, 5], [3, 4]]), jnp.ones((2, 2))
    run = jax.jit(jax.vmap(jax.vmap(partial(doubling, lanes.while_loop))))
    assert run(limits, x).tolist() == [[4.0, 32.0], [8.0, 16.0]]


@pytest.mark.parametrize(
    ("outputs", "uniform"),
    [
        ((5, 2), (5,)),  # rows
        ((6, 5, 2), (6, 5)),
        ((2,), ()),  # one distribution, one draw
        ((2,), (2,)),  # one distribution, as many draws as actions
        ((5, 2), (6, 5)),  # draws that are broadcast
    ],
)
def test_a_sample_is_the_same_whatever_its_shapes(outputs, uniform):
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.normal(size=(3, *outputs)))
    draws = jnp.asarray(rng.random((3, *uniform)), jnp.float32)
    with jax.numpy_rank_promotion("allow"):  # the last is broadcast on purpose
        fast, plain = (jax.vmap(f)(given, draws) for f in
                       (lanes.sample(categorical.sample), categorical.sample))  # fmt: skip
    np.testing.assert_array_equal(fast, plain)


def test_a_gaussian_sample_is_the_same():
    rng = np.random.default_rng(0)
    given, draws = jnp.asarray(rng.normal(size=(3, 5, 4))), jnp.asarray(rng.random((3, 5, 2)))
    for depth in (1, 2):  # [N, 2A] and [N, A] in lanes; then one of each in lanes of lanes
        fast, plain = lanes.sample(gaussian.sample), gaussian.sample
        for _ in range(depth):
            fast, plain = jax.vmap(fast), jax.vmap(plain)
        np.testing.assert_array_equal(fast(given, draws), plain(given, draws))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("inputs", [None, "rows"])
def test_the_first_step_apart_is_a_scan(length, inputs):
    rows = None if inputs is None else jnp.arange(float(length))

    def step(carry, row):
        carry = 2.0 * carry + (0.0 if row is None else row)
        return carry, {"square": carry**2}

    result = jax.jit(partial(lanes.first_apart, step, length=length))(1.0, rows)
    expected = jax.lax.scan(step, 1.0, rows, length=length)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_in_turns_is_a_vmap():
    """Whatever the function, and whichever of its inputs have lanes."""

    def learn(config, algorithm, learned, rows):
        assert algorithm == "as it is"
        return learned @ rows + config["rate"], {"sum": jnp.sum(rows)}

    learned, rows = jnp.arange(24.0).reshape(4, 2, 3), jnp.arange(3.0)
    config = {"rate": jnp.arange(4.0)}

    def over_lanes(learn):
        each = jax.vmap(lambda config, learned, rows: learn(config, "as it is", learned, rows),
                        in_axes=(0, 0, None))  # fmt: skip
        return jax.jit(each)(config, learned, rows)

    result, expected = over_lanes(lanes.in_turns(learn)), over_lanes(learn)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize("compiled", [True, False])
def test_in_turns_hands_on_what_differs_from_lane_to_lane(compiled):
    """A number, or a whole one, that the algorithm closes over, beside a constant."""

    def learn(config, algorithm, rows):
        return {"of it": config["rate"] * algorithm(rows)}

    def over_lanes(learn):
        def one(scale, power, rate):
            constant = jnp.array([1.0, 2.0, 3.0])
            return learn({"rate": rate}, lambda rows: scale * rows**power + constant, constant)

        each = jax.vmap(one, in_axes=(0, 0, None))
        each = jax.jit(each) if compiled else each
        return each(jnp.array([0.5, 2.0]), jnp.array([1, 2]), jnp.float32(3.0))

    result, expected = over_lanes(lanes.in_turns(learn)), over_lanes(learn)
    jax.tree.map(np.testing.assert_array_equal, result, expected)
