"""dense: the outputs and slopes of an MLP are those of flax's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg.core import networks, noise
from jaxpg.fast import dense
from tests.compare import assert_close


@pytest.mark.as_users_run(4)
@pytest.mark.thin(5)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)])
@pytest.mark.parametrize("inputs", [1, 9])
@pytest.mark.parametrize("outputs", [1, 3, 5, None])
def test_an_mlp_and_all_its_slopes_are_flaxs(inputs, hidden, outputs, activation):
    """In parameters and inputs, in reverse and forward."""
    if not hidden and outputs is None:
        pytest.skip("nothing is left of it")
    assert_alike(networks.MLP(hidden, outputs, activation), inputs)


@pytest.mark.as_users_run(6)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("hidden", "outputs"), [((), 2), ((5,), None), ((6, 5), 3)])
@pytest.mark.parametrize("features", [(3,), (2, 4)])
def test_so_are_those_of_convolutions(features, hidden, outputs, activation):
    """Of images of another height than width."""
    image = (6, 5, 2)
    assert_alike(networks.MLP(hidden, outputs, activation, features, image), math.prod(image))


@pytest.mark.parametrize("activation", ["elu", "silu"])
def test_so_are_those_of_other_activations(activation):
    assert_alike(networks.MLP((6, 5), 3, activation, (2,), (6, 5, 2)), 6 * 5 * 2)


def assert_alike(mlp, inputs):
    """What dense and flax make of an MLP, and the slopes in parameters and inputs."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(inputs).normal(size=(2, 7, inputs)))
        params = jax.jit(networks.init_mlp, static_argnums=(1, 2))(noise.key(0), mlp, inputs)
        params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)

        def everything(apply):
            def loss(params, x):
                return jnp.sum(jnp.sin(apply(mlp, params, x)))

            @jax.jit
            def run(*arguments):
                slopes = jax.value_and_grad(loss, argnums=(0, 1))(*arguments)
                return apply(mlp, *arguments), slopes, jax.jvp(loss, arguments, arguments)

            return run(params, x)

        pairs = map(jax.tree.leaves, (everything(dense.apply), everything(networks.apply)))
        for mine, other in zip(*pairs, strict=True):
            assert_close(mine, other, 1e-12)


@pytest.mark.as_users_run(5)
@pytest.mark.parametrize("inputs", [1, 4])
@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_a_relu_network_and_its_slopes_are_those_of_its_layers(inputs, outputs):
    """In reverse, forward, and forward over reverse."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(outputs)
        shapes = ((9, inputs), (inputs, 5), (5,), (5, outputs), (outputs,))
        arguments = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        tangents = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        weight = jnp.asarray(rng.normal(size=(9, outputs)))

        def layers(x, kernel, bias, kernel_out, bias_out):
            return jax.nn.relu(x @ kernel + bias[None]) @ kernel_out + bias_out[None]

        def everything(network):
            def loss(*arguments):
                return jnp.sum(weight * network(*arguments) ** 2)

            @jax.jit
            def run(arguments, tangents):
                slopes = jax.grad(loss, argnums=(0, 1, 2, 3, 4))
                return (
                    network(*arguments),
                    slopes(*arguments),
                    jax.jvp(network, arguments, tangents),
                    jax.jvp(slopes, arguments, tangents),
                )

            return run(tuple(arguments), tuple(tangents))

        results = everything(dense.relu_network), everything(layers)
        for mine, other in zip(*map(jax.tree.leaves, results), strict=True):
            assert_close(mine, other, 1e-12)


def test_a_relu_network_has_no_slope_at_zero():
    """As jax.nn.relu, and torch's."""
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    slopes = jax.grad(lambda *a: dense.relu_network(*a)[0, 0], argnums=(1, 2))
    assert [float(s.sum()) for s in slopes(one, zero, jnp.zeros(1), one, jnp.zeros(1))] == [0, 0]


def test_a_relu_network_shows_a_nan():
    """A maximum does too; z > 0 would make it a 0, and a seed that has diverged would go on."""
    kernels = jnp.ones((2, 3)), jnp.ones(3), jnp.ones((3, 1)), jnp.ones(1)
    rows = jnp.array([[jnp.nan, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(dense.relu_network(rows, *kernels), [[jnp.nan], [10.0]])
