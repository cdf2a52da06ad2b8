"""What lanes of a vmap share: the same numbers as without, and no more work than is needed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from jaxpg.core import algorithms, learner, training
from jaxpg.core.config import PRESETS
from jaxpg.fast import dense, lanes
from tests.compare import assert_close, assert_same_training


def test_max_lane_is_one_number_for_all_lanes_of_all_vmaps():
    x = jnp.array([[3, 1, 2], [5, 4, 0]])
    assert lanes.max_lane(x[0, 1]) == 1
    assert jax.vmap(lanes.max_lane)(x[0]).tolist() == [3, 3, 3]
    assert jax.vmap(jax.vmap(lanes.max_lane))(x).tolist() == [[5] * 3] * 2


def test_a_loop_with_a_shared_count_does_not_select():
    """Without it, vmap selects over the whole carry at each step."""

    def run(limit, x, share):
        def go(carry):
            return share(carry[0] < limit)

        return jax.lax.while_loop(go, lambda carry: (carry[0] + 1, carry[1] * 2.0), (0, x))[1]

    limits, x = jnp.array([2, 5, 3]), jnp.ones((3, 7))
    for share, selects in ((lanes.max_lane, False), (lambda alive: alive, True)):
        program = jax.jit(jax.vmap(partial(run, share=share))).lower(limits, x).as_text()
        assert ("stablehlo.select" in program) is selects
    # Every lane goes on for as long as the longest.
    assert jax.vmap(partial(run, share=lanes.max_lane))(limits, x)[:, 0].tolist() == [32.0] * 3


def test_one_by_one_is_a_vmap():
    def f(x, y):
        return x @ y, {"sum": jnp.sum(x)}

    x, y = jnp.arange(24.0).reshape(4, 2, 3), jnp.arange(3.0)
    expected = jax.vmap(f, in_axes=(0, None))(x, y)
    result = jax.jit(jax.vmap(lanes.one_by_one(f), in_axes=(0, None)))(x, y)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def network(params, rows):
    return jnp.tanh(rows @ params["kernel"] + params["bias"])


def masked(valid, params, rows):
    """What `in_blocks` computes, without saving any work."""
    if valid is None:
        return network(params, rows)
    last = jnp.max(jnp.where(valid, jnp.arange(1, len(valid) + 1)[:, None], 0))
    steps = min(lanes.BLOCK // rows.shape[1], lanes.STEPS)
    inside = jnp.arange(len(valid))[:, None, None] < -(-last // steps) * steps
    return jnp.where(inside, network(params, rows), 0.0)


@pytest.mark.parametrize("columns", [3, dense.FEW_INPUTS + 1])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 77, None])
def test_in_blocks_is_the_network_and_its_gradient(length, columns):
    with jax.enable_x64(True):
        rng = np.random.default_rng(length)
        params = {"kernel": rng.normal(size=(columns, 2)), "bias": rng.normal(size=(1, 1, 2))}
        rows, weight = (jnp.asarray(rng.normal(size=(77, 8, size))) for size in (columns, 2))
        valid = length and jnp.arange(77)[:, None] < jnp.array([[length] + [1] * 7])

        def loss(evaluate, params):
            return jnp.sum(weight * evaluate(params, rows) ** 2)

        fast = jax.jit(jax.value_and_grad(partial(loss, lanes.in_blocks(network, valid))))
        plain = jax.value_and_grad(partial(loss, partial(masked, valid)))
        result, expected = fast(params), plain(params)
        assert_close(result[0], expected[0], 1e-12)
        for name in params:
            assert_close(result[1][name], expected[1][name], 1e-12, name)


def test_known_outputs_are_taken_and_have_the_networks_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=(1, 1, 2))}
        rows, weight, outputs = (jnp.asarray(rng.normal(size=(77, 8, size))) for size in (3, 2, 2))

        def loss(params, network):
            return jnp.sum(weight * network(params, rows))

        in_blocks = lanes.in_blocks(network, known=outputs)
        value, gradient = jax.jit(jax.value_and_grad(partial(loss, network=in_blocks)))(params)
        expected = jax.grad(loss)(params, network)
        assert_close(value, jnp.sum(weight * outputs), 1e-12)
        for name in params:
            assert_close(gradient[name], expected[name], 1e-12, name)


def test_a_block_is_never_empty():
    """More environments than rows in a block, and rows with no environment axis."""
    for shape in ((3, lanes.BLOCK + 1, 3), (2 * lanes.BLOCK + 5, 3)):
        rows = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) / np.prod(shape)
        params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros((1,) * (len(shape) - 1) + (2,))}
        assert_close(lanes.in_blocks(network)(params, rows), network(params, rows), 1e-6)


def test_in_blocks_costs_what_the_longest_lane_costs():
    """The trip count is the lanes' largest: rows after it are not even looked at."""
    rows = jnp.ones((2, 320, 4, 3)).at[:, 64:].set(jnp.nan)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros((1, 1, 2))}
    valid = jnp.arange(320)[None, :, None] < jnp.array([[[40]], [[60]]])

    def total(valid, rows):
        return lanes.in_blocks(network, valid)(params, rows)

    outputs = jax.jit(jax.vmap(total))(valid, rows)
    assert np.isfinite(outputs).all()
    assert np.all(outputs[:, :64] != 0.0)
    assert not np.any(outputs[:, 64:])


def test_row_by_row_is_a_vmap_over_one_batch():
    seen = []

    def f(x, y):
        seen.append(x.shape)
        return {"sum": x[:, 0] + y, "twice": 2.0 * x}

    x, y = jnp.arange(48.0).reshape(2, 4, 3, 2), jnp.arange(3.0)
    expected = {"sum": x[..., 0] + y[None, None], "twice": 2.0 * x}
    over_lanes = jax.vmap(jax.vmap(lanes.row_by_row(f), in_axes=(0, None)), in_axes=(0, None))
    jax.tree.map(np.testing.assert_array_equal, over_lanes(x, y), expected)
    assert seen[-1] == (2 * 4 * 3, 2)


@pytest.mark.thin(5)
@pytest.mark.parametrize("arithmetic", ["float64", "float32_grid"])
@pytest.mark.parametrize("name", ["vpg", "reinforce", "article"])
def test_an_update_on_a_cpu_is_the_plain_one(name, arithmetic, monkeypatch):
    """Three lanes, two updates; to the bit on the float32 grid."""
    small = {"max_episode_steps": 70} if PRESETS[name].collect == "episodes" else {"num_steps": 20}
    config = dataclasses.replace(PRESETS[name], arithmetic=arithmetic, **small)
    with jax.enable_x64(True):
        fast = run(config)
        monkeypatch.setattr(lanes, "one_by_one", lambda f: f)
        monkeypatch.setattr(lanes, "in_blocks", lambda network, *_: network)
        monkeypatch.setattr(lanes, "row_by_row", lambda f: f)
        monkeypatch.setattr(dense, "dot_general", jax.lax.dot_general)
        plain = run(config)
        assert_same_training(fast, plain, arithmetic)


def run(config):
    config, algorithm = training.as_arrays(config), algorithms.build(config)

    @jax.jit
    @jax.vmap
    def two_updates(key):
        state = learner.init(config, key, algorithm)
        state, _ = learner.update(config, state, algorithm)
        return learner.update(config, state, algorithm)[0].params

    return two_updates(jaxpg.keys(range(3)))
