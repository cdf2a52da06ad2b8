"""blocks: a network on blocks of rows is the network, and so are all its derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg.fast import blocks, dense
from tests.compare import assert_close

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.as_users_run(3)]


def network(params, rows):
    return jnp.tanh(rows @ params["kernel"] + params["bias"])


def arrays(shape, columns, length=None):
    """Parameters, rows of which those after `length` are zeros, and a weight for each output."""
    rng = np.random.default_rng(columns)
    params = {"kernel": rng.normal(size=(columns, 2)), "bias": rng.normal(size=(1, 1, 2))}
    rows, weight = (rng.normal(size=(*shape, size)) for size in (columns, 2))
    if length is not None:
        rows[length:] = 0.0
    return jax.tree.map(jnp.asarray, (params, rows, weight))


def assert_same_network(made, params, rows, weight):
    """Outputs, and slopes in the parameters and in the rows."""

    def loss(network, params, rows):
        return jnp.sum(weight * network(params, rows) ** 2)

    def everything(network):
        slopes = jax.value_and_grad(partial(loss, network), argnums=(0, 1))
        return jax.jit(lambda *inputs: (network(*inputs), slopes(*inputs)))(params, rows)

    pairs = map(jax.tree.leaves, (everything(made), everything(network)))
    for mine, other in zip(*pairs, strict=True):
        assert_close(mine, other, 1e-12)


@pytest.mark.parametrize("columns", [3, dense.FEW_INPUTS + 1])
@pytest.mark.parametrize("shape", [(1, 8), (77, 8), (5, blocks.BLOCK + 1)])
def test_a_network_of_rows(shape, columns):
    assert_same_network(blocks.of_rows(network), *arrays(shape, columns))


@pytest.mark.parametrize("columns", [3, dense.FEW_INPUTS + 1])
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 77])
def test_a_network_of_whole_episodes(length, columns):
    assert_same_network(blocks.of_whole_episodes(network), *arrays((77, 8), columns, length))


@pytest.mark.parametrize("make", [blocks.of_rows, blocks.of_whole_episodes])
def test_rows_that_are_no_steps_of_environments_are_the_networks(make):
    """[N, D], as in a rollout; one block would be one loop of one step."""
    params, rows, _ = arrays((9,), 3)
    program = str(jax.make_jaxpr(make(lambda p, x: network(p, x[None])[0]))(params, rows))
    assert "while" not in program
    assert "scan" not in program


def test_padding_costs_next_to_nothing():
    """Blocks of zeros are not looked at: the network is given one row for all of them."""
    seen = []

    def counting(params, rows):
        jax.debug.callback(lambda: seen.append(rows.shape))
        return network(params, rows)

    params, rows, _ = arrays((10 * blocks.STEPS, 4), 3, length=blocks.STEPS + 1)
    jax.jit(blocks.of_whole_episodes(counting))(params, rows)
    jax.effects_barrier()
    assert sorted(seen) == [(1, 1, 3)] + [(blocks.STEPS, 4, 3)] * 2


def test_a_slope_that_is_infinite_at_zero_spoils_nothing():
    """Rows that fill up the last block are not zeros."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(77, 8, 3)))

    def distance(kernel, rows):
        return jnp.sqrt(jnp.sum((rows @ kernel) ** 2, axis=-1))

    def slope(network):
        return jax.jit(jax.grad(lambda kernel: jnp.sum(network(kernel, rows))))(np.ones((3, 4)))

    assert_close(slope(blocks.of_rows(distance)), slope(distance), 1e-12)


@pytest.mark.parametrize("make", [blocks.of_rows, blocks.of_whole_episodes])
def test_a_derivative_in_forward_mode_is_right_or_refused(make):
    params, rows, _ = arrays((77, 8), 3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda rows: make(network)(params, rows), (rows,), (rows,))
