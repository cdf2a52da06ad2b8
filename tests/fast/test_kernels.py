"""kernels: one computes what XLA's loops do; here interpreted, so as to run on a CPU.

That Triton accepts them is tested by lowering an update for CUDA, which needs no GPU.
"""

import dataclasses
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import jaxpg
from jaxpg import fast
from jaxpg.core import advantages, learner, noise, training
from jaxpg.core.config import ConfigError
from jaxpg.core.distributions import categorical
from jaxpg.core.presets import PRESETS
from jaxpg.fast import backend, kernels
from jaxpg.population import devices
from tests.compare import assert_close, assert_same_training

RNG = np.random.default_rng(0)
KERNEL, BIAS, BACK = RNG.normal(size=(3, 16)), RNG.normal(size=(1, 16)), RNG.normal(size=(16, 2))


@pytest.fixture
def two_turns(monkeypatch, x64):
    """Four threads a row share a kernel, two turns each."""
    monkeypatch.setattr(kernels, "SHARE", 4)
    monkeypatch.setattr(kernels, "SHARE_OF_SUM", 4)
    monkeypatch.setattr(kernels, "TURNS", 2)


def network(params, rows):
    """A hidden layer of 16."""
    kernel, bias, back = params
    flat = rows.reshape(-1, 3)
    return (jax.nn.relu(flat @ kernel + bias) @ back).reshape(*rows.shape[:-1], 2)


PARAMS = (KERNEL, BIAS, BACK)


def walk(state, inputs, key, reset):
    """A step of some walkers: a network says where to, and some of them begin again."""
    place, count = state
    towards = network(PARAMS, place)
    place = place + jnp.concatenate([towards, inputs["push"][:, None]], axis=1) * 0.1
    over = place[:, 0] > 0.5
    row = {"place": place, "over": over, "action": categorical.sample(towards, inputs["u"])}
    return (jnp.where(over[:, None], reset, place), jnp.where(over, 0, count + 1)), row


def walkers(rows, steps=10):
    """Start and streams for 2 lanes of so many walkers."""
    rng = np.random.default_rng(rows)
    inputs = {"push": rng.normal(size=(2, steps, rows)), "u": rng.random((2, steps, rows))}
    keys = jax.vmap(lambda key: noise.split(key, (steps, rows)))(noise.keys(range(2)))
    resets = rng.random((2, 4, rows, 3))  # each good for three steps
    start = (jnp.asarray(rng.normal(size=(2, rows, 3))), jnp.zeros((2, rows), jnp.int32))
    return start, inputs, keys, resets


@pytest.mark.parametrize(
    ("rows", "reverse"),
    [
        *((rows, False) for rows in (1, 3, 8, 12)),
        (3, True),
        *(pytest.param(rows, True, marks=pytest.mark.slow) for rows in (1, 8, 12)),
    ],
)
def test_a_scan_is_the_scan_of_xla(two_turns, rows, reverse):
    def run(scan, start, inputs, keys, resets):
        def step(state, entries):
            return walk(state, *entries)

        return scan(step, start, (inputs, keys, jnp.repeat(resets, 3, axis=0)[:10]),
                    reverse=reverse)  # fmt: skip

    fast, plain = (jax.jit(jax.vmap(partial(run, scan))) for scan in (kernels.scan, jax.lax.scan))
    assert kernels_of(fast, *walkers(rows)) == ["scan"]
    result, expected = fast(*walkers(rows)), plain(*walkers(rows))
    assert np.any(expected[1]["over"])
    assert np.any(expected[1]["action"] != expected[1]["action"][0, 0, 0])
    for mine, other in zip(*map(jax.tree.leaves, (result, expected)), strict=True):
        assert mine.dtype == other.dtype
        assert_close(mine, other, 1e-13)


def kernels_of(function, *arguments):
    """The names of the kernels that a function calls, without their tiles."""
    found = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                found.append(str(equation.params["name"]).rpartition("_")[0])
            for inner in jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (10, 30)])
def test_outputs_and_gradient_in_kernels_are_the_networks(two_turns, shape):
    rng = np.random.default_rng(len(shape))
    rows, weight = (jnp.asarray(rng.normal(size=(*shape, size))) for size in (3, 2))

    def loss(network, params):
        return jnp.sum(weight * network(params, rows) ** 2)

    fast = jax.jit(jax.value_and_grad(partial(loss, kernels.network(network))))
    assert kernels_of(fast, PARAMS) == ["map_rows", "sum_rows"]
    result, expected = fast(PARAMS), jax.jit(jax.value_and_grad(partial(loss, network)))(PARAMS)
    for mine, other in zip(*map(jax.tree.leaves, (result, expected)), strict=True):
        assert_close(mine, other, 1e-13)


@pytest.mark.parametrize("hidden", [16, (16, 16)])
def test_a_slope_in_the_rows_is_the_networks(two_turns, hidden):
    """Also where there is no kernel: a zero is never given instead."""
    rng = np.random.default_rng(0)
    rows, weight = (jnp.asarray(rng.normal(size=(6, 4, size))) for size in (3, 2))

    def deep(params, rows):
        square = jnp.asarray(np.random.default_rng(1).normal(size=(16, 16)))
        return jnp.tanh(jnp.tanh(rows @ KERNEL) @ square) @ BACK

    given = network if hidden == 16 else deep

    def slope(network):
        return jax.jit(jax.grad(lambda rows: jnp.sum(weight * network(PARAMS, rows) ** 2)))(rows)

    expected = slope(given)
    assert np.abs(expected).min() > 0
    assert_close(slope(kernels.network(given)), expected, 1e-13)


def test_a_derivative_in_forward_mode_is_refused(two_turns):
    rows = jnp.ones((6, 4, 3))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda rows: kernels.network(network)(PARAMS, rows), (rows,), (rows,))


MASK = jnp.array([1.0, 0.0, 2.0, 0.5])
STEPS = {
    "sorts": lambda s, x: (s + jnp.sort(x, axis=-1), s),
    "closes over the rows": lambda s, x: (s, x * MASK[:, None]),
    "closes over the rows' state": lambda s, x: (s * MASK[:, None], x),
    "says one thing of all": lambda s, x: (s, jnp.arange(3.0)),
    "prints": lambda s, x: (jax.debug.callback(lambda: None) or s + x, s),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_cannot_be_a_kernel_is_left_to_xla(two_turns, name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)))
    result = kernels.scan(STEPS[name], x[0], x)
    expected = jax.lax.scan(STEPS[name], x[0], x)
    jax.tree.map(partial(assert_close, tolerance=1e-13), result, expected)


def test_a_network_that_cannot_be_a_kernel_is_left_to_xla(two_turns):
    rng = np.random.default_rng(0)
    params, rows = (KERNEL, rng.normal(size=(16, 16)), BACK), rng.normal(size=(5, 2, 3))

    def deep(params, rows):
        first, second, last = params
        return jnp.tanh(jnp.tanh(rows @ first) @ second) @ last

    def loss(network):
        total = jax.value_and_grad(lambda params: jnp.sum(network(params, rows) ** 2))
        return jax.jit(total)(params)

    result, expected = loss(kernels.network(deep)), loss(deep)
    jax.tree.map(partial(assert_close, tolerance=1e-13), result, expected)


def test_what_xla_refuses_is_refused(two_turns):
    """A state that changes its shape; inputs of different lengths."""
    x = jnp.ones((5, 4, 3))
    with pytest.raises(TypeError):
        kernels.scan(lambda s, x: (s[:, None], x), x[0], x)
    with pytest.raises(ValueError, match="different leading axis sizes"):
        kernels.scan(lambda s, x: (s, x[0]), x[0], (x, x[:2]))


def test_estimates_of_a_single_trajectory(two_turns):
    """[T], without rows."""
    reward, value = jnp.arange(6.0), jnp.ones(6)
    ends = jnp.zeros(6, bool).at[3].set(True), jnp.zeros(6, bool)
    returns = advantages.discounted_return(reward, value, *ends, gamma=0.5, scan=kernels.scan)
    expected = advantages.discounted_return(reward, value, *ends, gamma=0.5)
    assert_close(returns, expected, 1e-13)


def test_a_slope_that_is_infinite_at_zero_spoils_nothing(two_turns):
    """Rows that are added to fill the last tile are not zeros."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(20, 1, 3)))

    def distance(kernel, rows):
        return jnp.sqrt(jnp.sum((rows @ kernel) ** 2, axis=-1))

    def slope(network):
        return jax.jit(jax.grad(lambda kernel: jnp.sum(network(kernel, rows))))(KERNEL)

    expected = slope(distance)
    assert_close(slope(kernels.network(distance)), expected, 1e-13)


@pytest.mark.parametrize("hidden", [12, 20])
def test_threads_share_any_number_of_hidden_units(two_turns, hidden):
    rng = np.random.default_rng(hidden)
    rows, kernel, back = (
        jnp.asarray(rng.normal(size=s)) for s in ((7, 2, 3), (3, hidden), (hidden,))
    )

    def one_number(params, rows):
        return jnp.einsum("tni,ij->tnj", rows, params[0]) @ params[1]

    def loss(network, params):
        return jnp.sum(network(params, rows) ** 2)

    fast = jax.jit(jax.value_and_grad(partial(loss, kernels.network(one_number))))
    assert kernels_of(fast, (kernel, back)) == ["map_rows", "sum_rows"]
    expected = jax.jit(jax.value_and_grad(partial(loss, one_number)))((kernel, back))
    jax.tree.map(partial(assert_close, tolerance=1e-13), fast((kernel, back)), expected)


def test_what_the_lanes_share_is_not_theirs(two_turns):
    """Of a vmap over parameters, over rows, and over both."""
    rng = np.random.default_rng(0)
    kernel, rows = (jnp.asarray(rng.normal(size=size)) for size in ((2, 3, 16), (2, 9, 1, 3)))

    def total(network, kernel, rows):
        return jax.grad(lambda kernel: jnp.sum(network(kernel, rows) ** 2))(kernel)

    def plain(kernel, rows):
        return jnp.tanh(rows @ kernel)

    for axes in ((0, None), (None, 0), (0, 0)):
        given = [x if axis == 0 else x[0] for x, axis in zip((kernel, rows), axes, strict=True)]
        result, expected = (
            jax.jit(jax.vmap(partial(total, network), in_axes=axes))(*given)
            for network in (kernels.network(plain), plain)
        )
        assert_close(result, expected, 1e-13)


@pytest.mark.parametrize(
    ("env", "arithmetic"),
    [
        ("Pendulum-v1", "float32_grid"),
        pytest.param("CartPole-v1", "float32_grid", marks=pytest.mark.slow),
        pytest.param("CartPole-v1", "float64", marks=pytest.mark.slow),
        pytest.param("Pendulum-v1", "float64", marks=pytest.mark.slow),
    ],
)
def test_an_update_in_kernels_is_the_plain_one(two_turns, monkeypatch, env, arithmetic):
    """To the bit on the float32 grid."""
    config = dataclasses.replace(
        PRESETS["vpg"],
        env=env,
        squash=env == "Pendulum-v1",
        num_steps=20,
        hidden_sizes=(16,),
        value_steps=2,
        arithmetic=arithmetic,
    )
    arrays = training.as_arrays(config)

    def two_updates(form):
        monkeypatch.setenv("JAXPG_FORM", form)
        algorithm = fast.build(config)

        def update(state):
            return learner.update(arrays, state, algorithm)[0]

        init = jax.jit(jax.vmap(partial(learner.init, arrays, algorithm=algorithm)))
        start, step = init(jaxpg.keys(range(2))), jax.jit(jax.vmap(update))
        return step(step(start)).params, kernels_of(step, start)

    kernels, found = two_updates("fused")
    # The rollout, Ψ and its target; V(s), V(s'), and of the policy and of the critic's first and
    # further steps outputs and gradient.
    assert sorted(found) == ["map_rows"] * 5 + ["scan"] * 3 + ["sum_rows"] * 3
    plain, found = two_updates("plain")
    assert not found
    assert_same_training(kernels, plain, arithmetic)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # by jax 0.11
def test_triton_takes_the_kernels_of_an_update(monkeypatch):
    """As they are for an H100, with 16 of 64 hidden units in a thread."""
    monkeypatch.setenv("JAXPG_FORM", "fused")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = training.as_arrays(PRESETS["vpg"])
    algorithm = fast.build(config)
    h100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")

    def update(key):
        state = learner.init(config, key, algorithm)
        return learner.update(config, state, algorithm)[0].params

    with use_abstract_mesh(AbstractMesh((), (), abstract_device=h100)):
        traced = jax.jit(jax.vmap(update)).trace(jaxpg.keys(range(2)))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @\S*triton", program)) == 11


CUDA, ROCM = "PJRT C API\ncuda 13000", "PJRT C API\nrocm 60100"


@pytest.mark.parametrize(
    ("platform", "version", "capability", "form"),
    [("gpu", CUDA, "8.0", "fused"), ("gpu", CUDA, "10.3", "fused"), ("gpu", CUDA, "7.5", "plain"),
     ("gpu", ROCM, "gfx942", "plain"), ("tpu", "PJRT C API\nTFRT TPU v5", None, "plain"),
     ("cpu", "cpu", None, "cpu")],
)  # fmt: skip
def test_an_nvidia_gpu_gets_the_kernels_by_itself(monkeypatch, platform, version, capability, form):
    """Not one that is too old for Triton, as the T4."""
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(platform=platform, client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    assert backend.form() == form
    device.compute_capability = "9.0"
    old = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device, old])
    assert backend.form() == form


def test_the_default_device_decides_the_form(monkeypatch):
    """A CPU's of a machine with a GPU; by itself, or by its name."""
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    here, local_devices = jax.devices("cpu")[0], jax.local_devices
    gpu = SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version=ROCM))
    monkeypatch.setattr(
        jax, "local_devices", lambda backend: local_devices(backend=backend) if backend else [gpu]
    )
    assert backend.form() == "plain"
    for device in (here, "cpu"):
        with jax.default_device(device):
            assert backend.form() == "cpu"
            assert {one.platform for one in devices.workers()} == {"cpu"}


def test_a_form_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("JAXPG_FORM", "triton")
    with pytest.raises(ConfigError, match="JAXPG_FORM must be one of cpu, plain, fused; got 'tri"):
        backend.form()
