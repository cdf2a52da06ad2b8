"""Networks: initial weights bit-equal with the twin, outputs and gradients equal, conversion."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from compare import assert_close, assert_trees_close

import jaxpg.core.networks
import jaxpg.core.noise
import torch_ref.config
import torch_ref.networks
import torch_ref.noise
from jaxpg import names
from jaxpg.core.distributions import NEVER
from jaxpg.core.types import Config, EnvSpec
from jaxpg.fast import dense
from torch_ref.convert import to_flax, to_torch

SPECS = {
    discrete: EnvSpec(4, 3, discrete, time_limit=10, min_episode_steps=1, reset_uniforms=4)
    for discrete in (True, False)
}
IMAGES = {discrete: spec._replace(obs_size=60, image=(6, 5, 2)) for discrete, spec in SPECS.items()}
SHARED = {"networks": "shared", "value_steps": 1}
NO_CRITIC = {"baseline": "none", "collect": "episodes", "estimator": "reward_to_go"}

ORTHOGONAL = {"init": "orthogonal"}
TWO_LAYERS = {"hidden_sizes": (16, 8)}
CONVOLVED = {"conv_features": (4, 3), "hidden_sizes": (6,)}

# name: (discrete actions, fields of the config, outputs K of the policy)
CASES = {
    "separate, categorical": (True, {}, 3),
    "separate, free sigma, two layers, tanh": (
        False,
        TWO_LAYERS | {"activation": "tanh", "log_std_init": -0.7},
        6,
    ),
    "separate, state sigma": (False, {"sigma": "state"}, 6),
    "shared, categorical, two layers": (True, SHARED | TWO_LAYERS, 3),
    "shared, free sigma, elu": (False, SHARED | {"activation": "elu"}, 6),
    "shared, state sigma": (False, SHARED | {"sigma": "state"}, 6),
    "no critic, free sigma": (False, NO_CRITIC, 6),
    "separate, orthogonal, silu": (True, ORTHOGONAL | TWO_LAYERS | {"activation": "silu"}, 3),
    "shared, orthogonal": (False, ORTHOGONAL | SHARED | {"hidden_sizes": (3,)}, 6),
    "convolutions, free sigma, tanh": (False, CONVOLVED | {"activation": "tanh"}, 6),
    "shared convolutions, orthogonal": (True, CONVOLVED | SHARED | ORTHOGONAL, 3),
}


def build(case, **fields):
    """The networks of both packages."""
    _, given, _ = CASES[case]
    config, spec = Config(**{"hidden_sizes": (16,)} | given | fields), spec_of(case)
    return jaxpg.core.networks.make(config, spec), torch_ref.networks.make(config, spec)


def spec_of(case):
    discrete, given, _ = CASES[case]
    return (IMAGES if "conv_features" in given else SPECS)[discrete]


def initial(case, **fields):
    """Initial parameters of jaxpg."""
    key_policy, key_value, _ = jaxpg.core.noise.streams(jaxpg.core.noise.key(0))
    return jax.jit(build(case, **fields)[0].init)(key_policy, key_value)


def twin_initial(case, seed=0, **fields):
    """Initial parameters of torch_ref."""
    key_policy, key_value, _ = torch_ref.noise.streams(torch_ref.noise.key(seed))
    return build(case, **fields)[1].init(key_policy, key_value)


def converted(case, **fields):
    """Initial parameters of torch_ref, for jaxpg: nothing to compile."""
    state_dict = twin_initial(case, **fields).state_dict()
    return jax.tree.map(jnp.asarray, to_flax(state_dict))


def flat(params):
    """{"network.layer.kernel": array} of a flax tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def shapes(params):
    return {name: leaf.shape for name, leaf in flat(params).items()}


# Initial parameters


@pytest.mark.as_users_run(5)
@pytest.mark.parametrize("case", CASES)
def test_initial_parameters_are_bit_equal_with_the_twin(case):
    init = jax.jit(build(case)[0].init)
    for seed in (0, 2**32 - 1):
        key_policy, key_value, _ = jaxpg.core.noise.streams(jaxpg.core.noise.key(seed))
        ours = to_torch(init(key_policy, key_value))
        theirs = twin_initial(case, seed).state_dict()
        assert sorted(ours) == sorted(theirs)
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype == torch.float32
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("case", ["no critic, free sigma", "separate, orthogonal, silu"])
def test_initial_parameters_are_those_of_float32_in_float64(case, x64):
    wide = to_torch(initial(case, arithmetic="float64"))
    twin_wide = twin_initial(case, arithmetic="float64").state_dict()
    with jax.enable_x64(False):
        narrow = to_torch(initial(case))
    for name in narrow:
        assert narrow[name].dtype == torch.float32
        assert wide[name].dtype == twin_wide[name].dtype == torch.float64
        assert torch.equal(wide[name], narrow[name].double())
        assert torch.equal(wide[name], twin_wide[name])


@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
def test_initial_parameters_do_not_depend_on_jit_or_vmap(init):
    mlp = jaxpg.core.networks.MLP((), 3, "relu")
    keys = jaxpg.core.noise.keys([0, 2**31, 5])
    start = partial(jaxpg.core.networks.init_mlp, mlp=mlp, inputs=16, init=init)
    batched = jax.jit(jax.vmap(start))(keys)
    for i, key in enumerate(keys):
        single = flat(start(key))
        for name in single:
            np.testing.assert_array_equal(flat(batched)[name][i], single[name])


@pytest.mark.parametrize(
    ("hidden_sizes", "outputs", "seen"),
    [
        ((16,), 3, ()),
        ((), 3, ()),
        ((16, 8), None, ()),
        ((16,), 3, ((5, 4), (6, 5, 2))),
        ((16,), None, ((5,), (3, 3, 1))),
    ],
)
def test_initial_tree_is_the_one_that_flax_would_make(hidden_sizes, outputs, seen):
    mlp = jaxpg.core.networks.MLP(hidden_sizes, outputs, "relu", *seen)
    size = math.prod(seen[1]) if seen else 4
    expected = jax.eval_shape(mlp.init, jax.random.key(0), jnp.zeros((1, size)))["params"]
    ours = jax.eval_shape(
        lambda key: jaxpg.core.networks.init_mlp(key, mlp, size), jaxpg.core.noise.key(0)
    )
    assert shapes(ours) == shapes(expected)


def test_initial_weights_are_uniform_as_in_torchs_linear():
    """U(-1/√fan_in, 1/√fan_in); a bias takes the fan-in of its layer, not its own width."""
    draws = np.concatenate(scaled_draws(initial("separate, categorical")))
    assert len(draws) == (4 + 1) * 16 + (16 + 1) * 3 + (4 + 1) * 16 + (16 + 1) * 1
    assert np.abs(draws).max() <= 1.0
    assert scipy.stats.kstest(draws, "uniform", (-1.0, 2.0)).pvalue > 0.01


def test_a_convolution_starts_as_torchs_does():
    """U(-1/√fan_in, 1/√fan_in), a fan-in of 9 times the channels that it sees."""
    params = converted("convolutions, free sigma, tanh")
    for network in ("policy", "value"):
        for name, fan_in in (("conv_0", 9 * 2), ("conv_1", 9 * 4), ("hidden_0", 2 * 1 * 3)):
            for leaf in params[network][name].values():
                largest = float(np.abs(leaf).max()) * math.sqrt(fan_in)
                assert 0.5 < largest <= 1.0, (network, name)
    assert params["policy"]["conv_0"]["kernel"].shape == (3, 3, 2, 4)


def test_no_two_parameters_share_a_key():
    """Leaves drawn from one key would begin with the same draw."""
    cases = ("separate, free sigma, two layers, tanh", "shared, categorical, two layers")
    for case in (*cases, "convolutions, free sigma, tanh"):
        starts = np.sort([draws[0] for draws in scaled_draws(converted(case))])
        assert np.diff(starts).min() > 1e-5


def scaled_draws(params):
    """Every kernel and bias times √fan_in: the draws from U(-1, 1) that they were made of."""
    return [
        np.asarray(leaf, np.float64).ravel() * math.sqrt(math.prod(layer["kernel"].shape[:-1]))
        for network in params.values()
        for name, layer in network.items()
        if name != "log_std"
        for leaf in layer.values()
    ]


def test_orthogonal_worked_by_hand():
    """Rows (3, 4) and (1, 0): the first over 5; of the second is left
    (1, 0) - 3/5 · (3/5, 4/5) = (16, -12)/25, which is 4/5 long: (4/5, -3/5). A tall one by columns.
    """
    noise = np.array([[3.0, 4.0], [1.0, 0.0]])
    tall = np.array([[3.0], [4.0], [0.0]])
    for networks in (jaxpg.core.networks, torch_ref.networks):
        with jax.enable_x64(True):
            square, column = (np.asarray(networks.orthogonal(x)) for x in (noise, tall))
        np.testing.assert_allclose(square, [[0.6, 0.8], [0.8, -0.6]], rtol=0, atol=2.0**-25)
        np.testing.assert_allclose(column, [[0.6], [0.8], [0.0]], rtol=0, atol=2.0**-25)


@pytest.mark.parametrize("shape", [(4, 64), (64, 64), (64, 2), (300, 300), (1, 1), (3, 5)])
def test_orthogonal_is_the_q_of_a_qr_decomposition(shape):
    """Whose R has a positive diagonal; also where the last row is all but one of the others."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-(2**19), 2**19, shape) / 2.0**17
    if min(shape) > 2:
        noise[-1] = noise[0]
        noise[:, -1] = noise[:, 0]
        noise[-1, -1] += 2.0**-6
    wide = shape[0] <= shape[1]
    q, r = np.linalg.qr(noise.T if wide else noise)
    q = q * np.sign(np.diag(r))
    ours = np.asarray(torch_ref.networks.orthogonal(noise))
    rows = ours if wide else ours.T
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), rtol=0, atol=2e-6)
    accurate = slice(0, -1) if min(shape) > 2 else slice(None)
    np.testing.assert_allclose(rows[accurate], q.T[accurate], rtol=0, atol=1e-5)


@pytest.mark.as_users_run(2)
@pytest.mark.parametrize("shape", [(4, 64), (64, 64), (300, 7)])
def test_orthogonal_layers_are_bit_equal_with_the_twin(shape):
    """As lanes are trained: jit of vmap, in a process without float64."""
    layers = [module.LAYERS["orthogonal"] for module in (jaxpg.core.networks, torch_ref.networks)]
    ours = jax.jit(jax.vmap(partial(layers[0], inputs=shape[0], outputs=shape[1], gain=0.01)))
    kernels, biases = ours(jaxpg.core.noise.keys(range(20)))
    assert kernels.dtype == jnp.float32
    assert not biases.any()
    for key, kernel in zip(torch_ref.noise.keys(range(20)), kernels, strict=True):
        np.testing.assert_array_equal(kernel, layers[1](key, *shape, gain=0.01)[0])


def test_orthogonal_layers_have_their_gains():
    """|kernel · v| = gain · |v| where a layer narrows, or √2, 0.01 and 1 for every row of it."""
    params = converted("separate, orthogonal, silu")
    expected = {"hidden_0": (2.0, 2.0), "hidden_1": (2.0, 2.0), "output": (1e-4, 1.0)}
    for (name, gains), (i, network) in itertools.product(
        expected.items(), enumerate(("policy", "value"))
    ):
        kernel = np.asarray(params[network][name]["kernel"], np.float64)
        rows = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
        np.testing.assert_allclose(rows @ rows.T, gains[i] * np.eye(len(rows)), rtol=0, atol=1e-6)
        assert not np.any(params[network][name]["bias"])


def test_orthogonal_kernels_have_no_preferred_direction():
    """The angle of a vector of two numbers is uniform to what 2,000 of them can show."""
    keys = torch_ref.noise.keys(range(2_000))
    layer = partial(torch_ref.networks.orthogonal_layer, inputs=1, outputs=2, gain=1.0)
    kernels = np.concatenate([layer(key)[0] for key in keys])
    angles = np.arctan2(kernels[:, 1], kernels[:, 0])
    assert scipy.stats.kstest(angles % (np.pi / 2), "uniform", (0, np.pi / 2)).pvalue > 0.01


def test_free_log_sigma_starts_where_it_is_said():
    free = {"no critic, free sigma": 0.0, "separate, free sigma, two layers, tanh": -0.7}
    for case, expected in free.items():
        log_std = initial(case)["policy"]["log_std"]
        np.testing.assert_array_equal(log_std, np.full(3, np.float32(expected)))


def test_policy_starts_the_same_with_and_without_a_critic():
    with_critic = initial("separate, categorical")
    without = initial("separate, categorical", **NO_CRITIC)
    assert sorted(with_critic) == ["policy", "value"]
    assert sorted(without) == ["policy"]
    jax.tree.map(np.testing.assert_array_equal, without["policy"], with_critic["policy"])


# Outputs


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu"])
def test_outputs_worked_by_hand(activation):
    """Two inputs, two hidden units, one output of each head.

    hidden = f((1, 2) @ ((1, 0), (0, -1)) + (½, 1)) = f(3/2, -1)
    policy = hidden @ (2, 10) + 1;  value = hidden @ (4, 10) - 1
    relu: (3/2, 0) -> 4 and 5; tanh: (0.905148, -0.761594) -> -4.805644 and -4.995348
    elu: (3/2, e^-1 - 1) -> -2.321206 and -1.321206
    silu: (1.226362, -0.268941) -> 0.763309 and 1.216033
    """
    spec = EnvSpec(2, 1, False, time_limit=10, min_episode_steps=1, reset_uniforms=0)
    fields = SHARED | {"hidden_sizes": (2,), "activation": activation}
    hidden = {"kernel": [[1.0, 0.0], [0.0, -1.0]], "bias": [0.5, 1.0]}
    policy, value = ({"kernel": [[w], [10.0]], "bias": [b]} for w, b in ((2.0, 1.0), (4.0, -1.0)))
    params = jax.tree.map(
        lambda leaf: jnp.array(leaf, jnp.float32),
        {
            "torso": {"hidden_0": hidden},
            "policy": {"output": policy, "log_std": [0.25]},
            "value": {"output": value},
        },
        is_leaf=lambda leaf: isinstance(leaf, list),
    )
    obs = jnp.array([1.0, 2.0])
    shared = jaxpg.core.networks.make(Config(**fields), spec)
    expected = {
        "relu": (4.0, 5.0),
        "tanh": (-4.805644, -4.995348),
        "elu": (-2.321206, -1.321206),
        "silu": (0.763309, 1.216033),
    }[activation]
    assert_close(shared.policy(params, obs), [expected[0], 0.25], 1e-6)
    assert_close(shared.value(params, obs), expected[1], 1e-6)

    # Two separate networks with the same torso say the same.
    torso = params["torso"]
    apart = {"policy": torso | params["policy"], "value": torso | params["value"]}
    separate = jaxpg.core.networks.make(Config(**fields | {"networks": "separate"}), spec)
    np.testing.assert_array_equal(separate.policy(apart, obs), shared.policy(params, obs))
    np.testing.assert_array_equal(separate.value(apart, obs), shared.value(params, obs))


def test_convolutions_worked_by_hand():
    """An image of three rows and four columns, two features, at two places.

     1  2  3  4      kernel of the first    0   0  1      of the second 0, with a bias of ½
     5  6  7  8                             0 100  0
     9 10 11 12                            10   0  0

    3 + 100 · 6 + 10 · 9 = 693 and 4 + 100 · 7 + 10 · 10 = 804, so (693, ½, 804, ½), features last;
    times (1, 0, 10, 1000), as one hidden unit: 693 + 8040 + 500 = 9233; times 2: 18466.
    """
    spec = SPECS[True]._replace(obs_size=12, num_actions=1, image=(3, 4, 1))
    config = Config(**SHARED, conv_features=(2,), hidden_sizes=(1,))
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[0, 2, 0, 0], kernel[1, 1, 0, 0], kernel[2, 0, 0, 0] = 1, 100, 10
    hidden = np.array([[1.0], [0.0], [10.0], [1000.0]], np.float32)
    head = {"output": {"kernel": np.array([[2.0]], np.float32), "bias": np.zeros(1, np.float32)}}
    params = {
        "torso": {
            "conv_0": {"kernel": kernel, "bias": np.array([0.0, 0.5], np.float32)},
            "hidden_0": {"kernel": hidden, "bias": np.zeros(1, np.float32)},
        },
        "policy": head,
        "value": head,
    }
    obs = np.arange(1, 13, dtype=np.float32)
    for apply in (jaxpg.core.networks.apply, dense.apply):
        ours = jaxpg.core.networks.make(config, spec, apply)
        assert ours.policy(jax.tree.map(jnp.asarray, params), jnp.asarray(obs)).tolist() == [18466]
    theirs = torch_ref.networks.make(config, spec)
    twin_params = theirs.init(*torch_ref.noise.keys([0, 1]))
    twin_params.load_state_dict(to_torch(params))
    assert theirs.policy(twin_params, torch.tensor(obs)).tolist() == [18466]


@pytest.mark.parametrize("module", [jaxpg.core.networks, torch_ref.networks])
@pytest.mark.parametrize(
    ("image", "words"),
    [
        ((), r"conv_features needs an environment that observes an image, .* a vector of 60"),
        ((6, 3, 1), r"takes 2 off an image's height and width; got 2 of them, .*\[6, 3, 1\]"),
    ],
)
def test_what_cannot_be_convolved_is_refused(module, image, words):
    config = Config(conv_features=(4, 4))
    with pytest.raises(ValueError, match=words):
        module.make(config, IMAGES[True]._replace(image=image))


@pytest.mark.parametrize("case", CASES)
def test_shapes_of_the_outputs(case):
    """[..., K] for the policy and [...] for the value, with any batch axes."""
    ours, _ = build(case)
    params = converted(case)
    for batch in ((), (5,), (2, 5)):
        obs = jnp.ones((*batch, spec_of(case).obs_size))
        assert jax.eval_shape(ours.policy, params, obs).shape == (*batch, CASES[case][2])
        if "value" in params:
            assert jax.eval_shape(ours.value, params, obs).shape == batch


def test_free_sigma_is_the_same_in_every_state():
    ours, _ = build("separate, free sigma, two layers, tanh")
    params = converted("separate, free sigma, two layers, tanh")
    params["policy"]["log_std"] = jnp.array([0.1, 0.2, 0.3])
    outputs = ours.policy(params, jax.random.normal(jax.random.key(0), (7, 4)))
    np.testing.assert_array_equal(outputs[:, 3:], np.tile(params["policy"]["log_std"], (7, 1)))
    assert np.ptp(outputs[:, :3], axis=0).min() > 0.01


@pytest.mark.parametrize("normalize_obs", [False, True])
def test_a_policy_takes_its_mask_from_the_observation_as_it_is(normalize_obs):
    """Whatever the moments are that the networks see it with; the value knows of no mask."""
    spec = EnvSpec(5, 3, True, 10, 1, 0, masked=True)
    config = Config(hidden_sizes=(4,), normalize_obs=normalize_obs)
    made = jaxpg.core.networks.make
    plain, masked = (made(config, spec._replace(masked=x)) for x in (False, True))
    params = masked.init(*jaxpg.core.noise.split(jaxpg.core.noise.key(0), 2))
    if normalize_obs:
        params["obs"]["mean"] = jnp.full(5, 0.9)
    obs = jnp.array([[0.3, -2.0, 1.0, 0.0, 1.0], [0.1, 2.0, 0.0, 1.0, 0.0], [0.0] * 5])
    logits, found = (np.asarray(nets.policy(params, obs)) for nets in (plain, masked))
    allowed = np.asarray(obs)[:, 2:] == 1.0
    assert np.array_equal(found[allowed], logits[allowed])
    assert np.all(found[~allowed] == np.float32(NEVER))
    assert np.array_equal(plain.value(params, obs), masked.value(params, obs))
    twin = torch_ref.networks.make(torch_ref.config.Config(**dataclasses.asdict(config)), spec)
    their_params = twin.init(*torch_ref.noise.split(torch_ref.noise.key(0), 2))
    their_params.load_state_dict(to_torch(params))
    theirs = twin.policy(their_params, torch.tensor(np.asarray(obs))).detach().numpy()
    assert np.array_equal(theirs == np.float32(NEVER), ~allowed)
    assert_close(theirs[allowed], found[allowed], 1e-6)


def test_layers_are_taken_by_their_names():
    """Whatever the order of the dictionary."""
    narrow = {"hidden_sizes": (4,)}
    ours, _ = build("separate, categorical", **narrow)
    params = converted("separate, categorical", **narrow)
    backwards = {**params, "policy": dict(reversed(params["policy"].items()))}
    obs = jax.random.normal(jax.random.key(0), (7, 4))
    np.testing.assert_array_equal(ours.policy(backwards, obs), ours.policy(params, obs))


@pytest.mark.parametrize(
    ("case", "of_policy", "of_value"),
    [
        ("separate, categorical", {"policy"}, {"value"}),
        ("shared, categorical, two layers", {"torso", "policy"}, {"torso", "value"}),
    ],
)
def test_which_parameters_each_output_depends_on(case, of_policy, of_value):
    ours, _ = build(case)
    params = converted(case)
    obs = jax.random.normal(jax.random.key(0), (9, 4))
    for f, expected in ((ours.policy, of_policy), (ours.value, of_value)):
        gradient = jax.jit(jax.grad(lambda params: jnp.sum(f(params, obs) ** 2)))(params)
        moved = {name for name, tree in gradient.items() if any(map(np.any, flat(tree).values()))}
        assert moved == expected


@pytest.mark.parametrize("case", CASES)
def test_twin_has_equal_outputs_and_gradients_in_float64(case, x64):
    compare_outputs_and_gradients(case, "float64", 1e-12)


@pytest.mark.parametrize(
    "case",
    [
        "separate, categorical",
        "separate, free sigma, two layers, tanh",
        "convolutions, free sigma, tanh",
    ],
)
def test_twin_has_equal_outputs_and_gradients_in_float32(case):
    compare_outputs_and_gradients(case, "float32", 1e-5)


def compare_outputs_and_gradients(case, float_type, tolerance):
    """Σ weight · output over both networks, every output weighted differently."""
    ours, theirs = build(case, arithmetic=float_type)
    twin_params = twin_initial(case, arithmetic=float_type)
    params = converted(case, arithmetic=float_type)
    rng = np.random.default_rng(0)
    obs, policy_weight, value_weight = (
        rng.normal(size=(50, *tail)).astype(float_type)
        for tail in ((spec_of(case).obs_size,), (CASES[case][2],), ())
    )

    def outputs(networks, params, obs):
        named = {"policy": networks.policy(params, obs)}
        return named | ({"value": networks.value(params, obs)} if "value" in params else {})

    weights = {"policy": policy_weight, "value": value_weight}

    def weighted_sum(params):
        return sum((x * weights[n]).sum() for n, x in outputs(ours, params, obs).items())

    twin_outputs = outputs(theirs, twin_params, torch.tensor(obs))
    sum((x * torch.tensor(weights[n])).sum() for n, x in twin_outputs.items()).backward()
    our_outputs = jax.jit(partial(outputs, ours))(params, obs)
    assert_trees_close(twin_outputs, our_outputs, tolerance)

    gradient = to_torch(jax.jit(jax.grad(weighted_sum))(params))
    twin_gradient = {name: leaf.grad for name, leaf in twin_params.named_parameters()}
    assert all(leaf.any() for leaf in gradient.values())
    assert_trees_close(twin_gradient, gradient, tolerance)


def test_relu_has_no_gradient_at_zero_in_either_package():
    """All weights 0: every hidden unit stands at its kink."""
    ours, theirs = build("separate, categorical")
    params, twin_params = (f("separate, categorical") for f in (converted, twin_initial))
    params["policy"]["hidden_0"] = jax.tree.map(jnp.zeros_like, params["policy"]["hidden_0"])
    gradient = jax.jit(jax.grad(lambda params: ours.policy(params, jnp.ones(4))[0]))(params)
    twin_params.load_state_dict(to_torch(params))
    theirs.policy(twin_params, torch.ones(4))[0].backward()
    for leaf in gradient["policy"]["hidden_0"].values():
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    for leaf in twin_params["policy"].get_submodule("hidden_0").parameters():
        assert not leaf.grad.any()


# Conversion


def test_convert_worked_by_hand():
    """flax has the kernel as [in, out], torch the weight as [out, in]."""
    kernel = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    bias = np.array([7.0, 8.0, 9.0], np.float32)
    log_std = np.array([0.5, 0.25], np.float32)
    params = {"policy": {"output": {"kernel": kernel, "bias": bias}, "log_std": log_std}}
    state_dict = to_torch(params)
    assert sorted(state_dict) == ["policy.log_std", "policy.output.bias", "policy.output.weight"]
    assert state_dict["policy.output.weight"].tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert state_dict["policy.output.bias"].tolist() == [7.0, 8.0, 9.0]
    assert state_dict["policy.log_std"].tolist() == [0.5, 0.25]


def test_a_convolutions_kernel_is_converted_and_named():
    """Channels in and out from the end to the front; with axes of seeds before them, too."""
    kernel = np.arange(3 * 3 * 2 * 5.0).reshape(3, 3, 2, 5)
    params = {"policy": {"conv_1": {"kernel": kernel, "bias": np.zeros(5)}}}
    weight = to_torch(params)["policy.conv_1.weight"].numpy()
    assert weight.shape == (5, 2, 3, 3)
    assert weight[4, 1, 0, 2] == kernel[0, 2, 1, 4]
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), params)
    named = names.to_torch(stacked)
    np.testing.assert_array_equal(named["policy.conv_1.weight"], np.stack([weight, weight + 1]))
    jax.tree.map(np.testing.assert_array_equal, names.from_torch(named), stacked)


@pytest.mark.parametrize("case", CASES)
def test_convert_there_and_back(case):
    params, twin_params = converted(case), twin_initial(case, seed=1)
    there = to_torch(params)
    back = to_flax(there)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    twin_params.load_state_dict(there)  # strict: every name, every shape
    for name, leaf in twin_initial(case).state_dict().items():
        assert torch.equal(twin_params.state_dict()[name], leaf)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convert_keeps_the_dtype_and_copies(dtype):
    source = {"value": {"output": {"kernel": np.ones((2, 1), dtype), "bias": np.ones(1, dtype)}}}
    there = to_torch(source)
    back = to_flax(there)
    assert {leaf.dtype for leaf in flat(back).values()} == {np.dtype(dtype)}
    for leaf in there.values():
        leaf.zero_()
    for params in (source, back):
        for leaf in flat(params).values():
            assert leaf.all()


@pytest.mark.parametrize("name", ["weight", "policy.weight", "a.b.c.weight", "policy.output.scale"])
def test_convert_rejects_a_name_that_is_not_ours(name):
    with pytest.raises(ValueError, match=f"'{name}' is not network.layer.weight"):
        to_flax({name: torch.zeros(2)})
