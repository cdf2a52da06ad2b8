"""learner: schedule, clipping, value steps, replay, entropy, the joint loss, metrics, purity.

Most tests inject a synthetic batch and take one SGD update, so that a parameter moves by exactly
minus the learning rate times a gradient.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close

from jaxpg.core import algorithms, learner, losses, noise, ring, training
from jaxpg.core.config import Config
from jaxpg.proof import synthetic

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = Config(
    arithmetic="float64",
    num_envs=synthetic.N,
    num_steps=synthetic.T,
    total_steps=4 * synthetic.N * synthetic.T,  # U = 4
    estimator="td_error",
    value_target="td0",
    gamma=0.9,
    value_steps=1,
    hidden_sizes=(5,),
    activation="tanh",
    optimizer="sgd",
    learning_rate=0.1,
    value_learning_rate=0.2,
    lr_schedule="constant",
    max_grad_norm=None,
)
SHARED = dataclasses.replace(CONFIG, networks="shared", vf_coef=0.3, ent_coef=0.2)
POLICY_RATE, VALUE_RATE = 0.1, 0.2


def batch(seed=0, layout="steps"):
    return synthetic.for_jax(synthetic.arrays(layout, "categorical", seed), "float64")


def inject(algorithm, trajectory):
    return algorithm._replace(collect=lambda env, act, params, state, noise: (state, trajectory))


def begin(config, trajectory=None):
    """Config with arrays, algorithm with an injected batch, and the state of seed 0."""
    config = training.as_arrays(config)
    algorithm = inject(algorithms.build(config), batch() if trajectory is None else trajectory)
    return config, algorithm, learner.init(config, noise.key(0), algorithm)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@cache
def stepping(config):
    """The state of seed 0, and a jitted update of it."""
    config, algorithm, state = begin(config)
    return state, jax.jit(partial(learner.update, config, algorithm=algorithm))


def moved(config, network=None, *, at=0):
    """By how much update number `at` moves the parameters (of one network)."""
    state, update = stepping(config)
    state = state._replace(update=jnp.int32(at))
    after, _ = update(state)
    before, after = state.params, after.params
    if network is not None:
        before, after = before[network], after[network]
    return flat(after) - flat(before)


# The learning rate's schedule.


@pytest.mark.thin(2)
@pytest.mark.parametrize("network", ["policy", "value"])
def test_the_linear_schedule_falls_to_zero_at_the_end_of_the_budget(network):
    """Of U = 4 updates the first takes the whole rate, the last a quarter."""
    linear = dataclasses.replace(CONFIG, lr_schedule="linear")
    first = moved(CONFIG, network)
    for update, fraction in enumerate([1.0, 0.75, 0.5, 0.25]):
        assert_close(moved(linear, network, at=update), fraction * first, 1e-12)


def test_the_constant_schedule_is_constant():
    np.testing.assert_array_equal(moved(CONFIG, at=3), moved(CONFIG, at=0))


# Clipping.


def descend(gradient, max_grad_norm):
    """Where SGD at a rate of 1 goes from 0, clipped."""
    config = training.as_arrays(dataclasses.replace(CONFIG, max_grad_norm=max_grad_norm))
    algorithm = algorithms.build(config)

    def objective(params):
        return sum(jax.tree.leaves(jax.tree.map(lambda x, g: jnp.sum(x * g), params, gradient))), {}

    params = jax.tree.map(jnp.zeros_like, gradient)
    start = (params, algorithm.optimizer(config).init(params))
    (params, _), _ = learner.descend(config, algorithm, jnp.float64(1.0), objective, start)
    return params


@pytest.mark.parametrize(
    ("max_grad_norm", "expected"),
    [
        (1.0, [-0.6, -0.8]),  # √(3² + 4²) = 5: (3, 4) / 5 · 1
        (5.0, [-3.0, -4.0]),  # exactly at the limit: nothing changes
        (7.0, [-3.0, -4.0]),
        (None, [-3.0, -4.0]),
    ],
)
def test_clipping_takes_the_norm_of_all_leaves_together(max_grad_norm, expected):
    gradient = {"a": jnp.array([3.0]), "b": {"c": jnp.array([[4.0]])}}
    np.testing.assert_allclose(flat(descend(gradient, max_grad_norm)), expected, rtol=1e-15)


@pytest.mark.parametrize("max_grad_norm", [0.5, 50.0])
def test_clipping_is_torchs_but_for_its_1e_6(max_grad_norm):
    """torch divides by norm + 1e-6: a relative difference of 1e-6 / norm where it clips."""
    rng = np.random.default_rng(0)
    leaves = [rng.normal(size=(4, 5)), rng.normal(size=5)]
    params = [torch.nn.Parameter(torch.zeros(leaf.shape, dtype=torch.float64)) for leaf in leaves]
    for param, leaf in zip(params, leaves, strict=True):
        param.grad = torch.tensor(leaf)
    norm = float(torch.nn.utils.clip_grad_norm_(params, max_grad_norm))
    assert 0.5 < norm < 50.0  # once active, once not
    ours = descend(dict(enumerate(map(jnp.asarray, leaves))), max_grad_norm)
    assert_close(-flat(ours), flat([param.grad.numpy() for param in params]), 1.1e-6 / norm)


def test_each_network_is_clipped_on_its_own():
    clipped = dataclasses.replace(CONFIG, max_grad_norm=1e-3)
    for network, rate in (("policy", POLICY_RATE), ("value", VALUE_RATE)):
        free, step = moved(CONFIG, network), moved(clipped, network)
        assert np.linalg.norm(free) > 1e-3 * rate  # active
        assert_close(step, free / np.linalg.norm(free) * 1e-3 * rate, 1e-12)


# The critic.


def value_gradient(algorithm, params, obs, target, valid):
    def loss(value_params):
        value = algorithm.networks.value({"value": value_params}, obs)
        return losses.value_loss(value, target, valid)

    return jax.grad(loss)(params)


def value_descent(algorithm, params, obs, target, valid):
    """One plain gradient step on the value loss."""
    gradient = value_gradient(algorithm, params, obs, target, valid)
    return jax.tree.map(lambda param, g: param - VALUE_RATE * g, params, gradient)


def test_k_value_steps_are_k_gradient_steps_towards_one_target():
    config, algorithm, state = begin(dataclasses.replace(CONFIG, value_steps=3))
    trajectory = batch()
    target = learner.estimate(config, algorithm, state.params, trajectory).target
    params = state.params["value"]
    for _ in range(3):
        params = value_descent(algorithm, params, trajectory.obs, target, trajectory.valid)
    after, metrics = learner.update(config, state, algorithm)
    assert_close(flat(after.params["value"]), flat(params), 1e-12)

    value = algorithm.networks.value(state.params, trajectory.obs)  # before any step
    assert_close(metrics.value_loss, np.mean((value - target) ** 2), 1e-12)


def test_replay_bootstraps_each_step_with_the_critic_of_that_step():
    """Targets r + γ V(s') move with V from step to step; with the first V the result differs."""
    config, algorithm, state = begin(
        dataclasses.replace(
            CONFIG,
            value_data="replay",
            value_steps=3,
            buffer_size=30,
            batch_size=20,
        )
    )
    t = batch()
    rows = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[-30:], (t.obs, t.reward, t.next_obs, t.terminated)
    )  # of 60 rows the ring keeps the last 30; row 30 + i lies in slot i, since 30 divides 60
    held = ring.Ring(rows, next_slot=jnp.int32(0), filled=jnp.int32(30))
    bits = noise.draw(state.key, 0, config, algorithm.env.spec, synthetic.T).replay

    def fit(bootstrap_with):
        params = state.params["value"]
        for step_bits in bits:
            (obs, reward, next_obs, terminated), valid = ring.sample(held, step_bits, 20)
            frozen = {"value": params if bootstrap_with == "current" else state.params["value"]}
            next_value = algorithm.networks.value(frozen, next_obs)
            target = reward + 0.9 * np.where(terminated, 0.0, next_value)
            params = value_descent(algorithm, params, obs, target, valid)
        return flat(params)

    after, _ = learner.update(config, state, algorithm)
    assert_close(flat(after.params["value"]), fit("current"), 1e-12)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close(flat(after.params["value"]), fit("first"), 1e-6)


# Gradients.


def test_the_entropy_bonus_adds_its_own_gradient():
    """The policy moves by rate · coefficient · ∇H more; ∇H by central differences in numpy."""
    _, algorithm, state = begin(CONFIG)
    obs, eps = batch().obs, 1e-5

    def entropy(policy):
        logits = np.asarray(algorithm.networks.policy({"policy": policy}, obs))
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return -(p * np.log(p)).sum(axis=-1).mean()

    vector, unravel = jax.flatten_util.ravel_pytree(state.params["policy"])
    gradient = [
        (entropy(unravel(vector + e)) - entropy(unravel(vector - e))) / (2 * eps)
        for e in eps * np.eye(len(vector))
    ]
    more = moved(dataclasses.replace(CONFIG, ent_coef=0.5), "policy") - moved(CONFIG, "policy")
    assert_close(more, POLICY_RATE * 0.5 * np.array(gradient), 1e-7)


def test_the_joint_gradient_is_the_sum_of_its_parts():
    config, algorithm, state = begin(SHARED)
    params = state.params
    estimated = learner.estimate(config, algorithm, params, batch())
    plain = training.as_arrays(dataclasses.replace(SHARED, ent_coef=0.0))

    def policy(params):
        return learner.policy_objective(plain, algorithm, params, estimated)[0]

    def value(params):
        value = algorithm.networks.value(params, estimated.obs)
        return losses.value_loss(value, estimated.target, estimated.valid)

    def entropy(params):
        outputs = algorithm.networks.policy(params, estimated.obs)
        return jnp.mean(algorithm.distribution.entropy(outputs))

    parts = [flat(jax.grad(part)(params)) for part in (policy, value, entropy)]
    total = parts[0] + 0.3 * parts[1] - 0.2 * parts[2]
    assert_close(moved(SHARED), -POLICY_RATE * total, 1e-12)
    torso = [
        np.linalg.norm(jax.grad(part)(params)["torso"]["hidden_0"]["kernel"])
        for part in (policy, value, entropy)
    ]
    assert min(torso) > 0  # all three reach the torso


def test_no_gradient_flows_into_the_baseline_or_the_target():
    """Ψ and the target computed inside the differentiated function change nothing."""
    config, algorithm, state = begin(SHARED)
    trajectory = batch()
    constants = learner.estimate(config, algorithm, state.params, trajectory)

    def objective(params, estimated=None):
        estimated = estimated or learner.estimate(config, algorithm, params, trajectory)
        return learner.joint_objective(config, algorithm, params, estimated)[0]

    inside, outside = (
        jax.grad(objective)(state.params),
        jax.grad(objective)(state.params, constants),
    )
    assert_close(flat(inside), flat(outside), 1e-13)


# Metrics.


@pytest.mark.parametrize(
    ("layout", "env_steps", "episodes"), [("steps", 60, 8), ("episodes", 38, 5)]
)
def test_metrics_count_valid_steps_and_finished_episodes(layout, env_steps, episodes):
    """60 = 12 · 5 rows; episodes of 5, 12, 12, 8 and 1 steps make 38."""
    fields = synthetic.arrays(layout, "categorical")
    trajectory = synthetic.for_jax(fields, "float64")
    _, metrics = learner.update(*_swap(begin(CONFIG, trajectory)))
    assert metrics.env_steps == env_steps
    assert metrics.episodes == episodes
    ended = fields["terminated"] | fields["truncated"]
    assert_close(metrics.return_sum, fields["episode_return"][ended].sum(), 1e-12)
    assert metrics.env_steps.dtype == metrics.episodes.dtype == jnp.int32


def _swap(begun):
    config, algorithm, state = begun
    return config, state, algorithm


@pytest.mark.slow
def test_recent_returns_are_the_last_100_episodes_in_order():
    """14 batches of 8 episodes: the first 12 are forgotten, and 112 mod 100 = 12 leads the ring."""
    config, algorithm, state = begin(SHARED)
    every = []
    for seed in range(14):
        fields = synthetic.arrays("steps", "categorical", seed)
        every.extend(fields["episode_return"][fields["terminated"] | fields["truncated"]])
        trajectory = synthetic.for_jax(fields, "float64")
        state, _ = learner.update(config, state, inject(algorithm, trajectory))
        expected = np.mean(every[-100:])
        assert_close(ring.mean(state.recent_returns), expected, 1e-12)
    assert len(every) == 112
    np.testing.assert_array_equal(np.roll(state.recent_returns.rows, -12), every[-100:])


def test_without_a_critic_its_metrics_are_zero():
    config = dataclasses.replace(
        CONFIG,
        collect="episodes",
        total_episodes=synthetic.N,
        estimator="reward_to_go",
        baseline="none",
    )
    _, metrics = learner.update(*_swap(begin(config, batch(layout="episodes"))))
    assert metrics.value_loss == metrics.value_grad_norm == 0.0
    assert metrics.policy_grad_norm > 0.0


# Purity: one compiled update of the real thing, CartPole with the default algorithm.

CARTPOLE = Config(arithmetic="float64", num_envs=3, num_steps=20, hidden_sizes=(8,))


@pytest.fixture(scope="module")
def cartpole():
    """(jitted update, how often it was traced, algorithm)."""
    with jax.enable_x64(True):
        config = training.as_arrays(CARTPOLE)
        algorithm, traces = algorithms.build(config), []

        def step(state):
            traces.append(1)
            return learner.update(config, state, algorithm)

        yield jax.jit(step), traces, partial(learner.init, config, algorithm=algorithm), step


def assert_trees(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert_close(a, b, tolerance)


def test_updates_are_traced_once_and_deterministic(cartpole):
    update, traces, init, _ = cartpole
    runs = []
    for _ in range(2):
        state = init(noise.key(0))
        for _ in range(3):
            state, metrics = update(state)
        runs.append((state, metrics))
    assert len(traces) == 1
    assert runs[0][0].update == 3
    assert_trees(runs[0], runs[1], 0.0)


@pytest.mark.thin(2)
@pytest.mark.parametrize("config", [CONFIG, SHARED], ids=["separate", "shared"])
def test_jit_changes_nothing(config):
    config, algorithm, state = begin(config)
    step = partial(learner.update, config, algorithm=algorithm)
    assert_trees(jax.jit(step)(state), step(state), 1e-12)


@pytest.mark.slow
def test_vmap_over_seeds_is_a_loop(cartpole):
    update, _, init, step = cartpole
    keys = noise.keys(range(3))
    states = jax.vmap(init)(keys)
    together = jax.jit(jax.vmap(step))(states)
    for seed in range(3):
        alone = update(init(keys[seed]))
        assert_trees(jax.tree.map(lambda x: x[seed], together), alone, 1e-10)
