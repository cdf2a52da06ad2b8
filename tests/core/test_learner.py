"""learner, gradient: schedule, clipping, value steps, replay, entropy, joint loss, metrics, purity.

Most tests inject a synthetic batch and take one SGD update, so that a parameter moves by exactly
minus the learning rate times a gradient.
"""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close
from compiled import algorithm as built
from compiled import init, run

import torch_ref.learner as twin
from jaxpg import fast
from jaxpg.core import algorithms, gradient, learner, losses, noise, ring, training
from jaxpg.core.config import TRAITS, Config, ConfigError
from jaxpg.proof import batch as shared
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
    algorithm = inject(built(fast.static(config)), batch() if trajectory is None else trajectory)
    return training.as_arrays(config), algorithm, begun(config)


@cache
def begun(config):
    """The state of seed 0."""
    return init(config, 0)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def update(config, state, trajectory):
    """The state after an update on a trajectory, and its metrics."""
    return run(_update, config, state, trajectory)


def _update(config, algorithm, state, trajectory):
    return learner.update(config, state, inject(algorithm, trajectory))


@cache
def stepped(config, at):
    """The parameters of seed 0 before and after update number `at`."""
    state = begun(config)
    after, _ = update(config, state._replace(update=np.int32(at)), batch())
    return state.params, after.params


def moved(config, network=None, *, at=0):
    """By how much update number `at` moves the parameters (of one network)."""
    before, after = stepped(config, at)
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


def test_beyond_the_budget_the_linear_schedule_stays_at_zero():
    """A negative rate would climb the loss: a population that goes on got worse and worse."""
    config = dataclasses.replace(CONFIG, lr_schedule="linear")
    updates = [config.num_updates - 1, config.num_updates, config.num_updates + 3]
    for given in (
        [learner.rates(config, jnp.int32(u)) for u in updates],
        [twin.rates(config, u) for u in updates],
    ):
        assert all(rate > 0.0 for rate in given[0].values())
        assert not any([*given[1].values(), *given[2].values()])


def test_parameters_that_no_loss_is_of_are_refused():
    """A torso that two losses share, under a name of its own, was never trained."""
    made = algorithms.build(CONFIG)

    def init(key_policy, key_value):
        params = made.networks.init(key_policy, key_value)
        return {**params, "torso": params["policy"]}

    def ended(**fields):
        config = dataclasses.replace(CONFIG, **fields)
        made = algorithms.build(config)
        mine = made._replace(networks=made.networks._replace(init=init))
        return jax.eval_shape(lambda key: training.train(config, key, mine), noise.key(0))

    for fit in TRAITS:
        steps = 1 if TRAITS[fit].minibatched else CONFIG.value_steps
        with pytest.raises(ConfigError, match=r"nothing would train those of torso: joint_loss"):
            ended(fit=fit, value_steps=steps)
    assert ended(joint_loss=True, value_steps=1)[0].opt_state.keys() == {"joint"}


def test_the_constant_schedule_is_constant():
    np.testing.assert_array_equal(moved(CONFIG, at=3), moved(CONFIG, at=0))


# Clipping.


def descend(gradient, max_grad_norm):
    """Where SGD at a rate of 1 goes from 0, clipped."""
    return run(_descend, dataclasses.replace(CONFIG, max_grad_norm=max_grad_norm), gradient)


def _descend(config, algorithm, gradient):
    def objective(params):
        return sum(jax.tree.leaves(jax.tree.map(lambda x, g: jnp.sum(x * g), params, gradient))), {}

    params = jax.tree.map(jnp.zeros_like, gradient)
    start = (params, algorithm.optimizer(config).init(params))
    return learner.descend(config, algorithm, jnp.float64(1.0), objective, start)[0][0]


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
    gradient = {"a": np.array([3.0]), "b": {"c": np.array([[4.0]])}}
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
    ours = descend(dict(enumerate(leaves)), max_grad_norm)
    assert_close(-flat(ours), flat([param.grad.numpy() for param in params]), 1.1e-6 / norm)


def test_each_network_is_clipped_on_its_own():
    clipped = dataclasses.replace(CONFIG, max_grad_norm=1e-3)
    for network, rate in (("policy", POLICY_RATE), ("value", VALUE_RATE)):
        free, step = moved(CONFIG, network), moved(clipped, network)
        assert np.linalg.norm(free) > 1e-3 * rate  # active
        assert_close(step, free / np.linalg.norm(free) * 1e-3 * rate, 1e-12)


# The critic.


def value_descent(config, algorithm, params, obs, target, valid):
    """One plain gradient step on the value loss."""

    def loss(value_params):
        value = algorithm.networks.value({"value": value_params}, obs)
        return losses.value_loss(value, target, valid)

    return jax.tree.map(lambda param, g: param - VALUE_RATE * g, params, jax.grad(loss)(params))


def test_k_value_steps_are_k_gradient_steps_towards_one_target():
    config, trajectory = dataclasses.replace(CONFIG, value_steps=3), batch()
    state = begun(config)
    estimated = run(learner.estimate, config, state.params, trajectory)
    inputs = (trajectory.obs, estimated.target, trajectory.valid)
    params = state.params["value"]
    for _ in range(3):
        params = run(value_descent, config, params, *inputs)
    after, metrics = update(config, state, trajectory)
    assert_close(flat(after.params["value"]), flat(params), 1e-12)
    error = np.subtract(estimated.value, estimated.target)  # before any step
    assert_close(metrics.value_loss, np.mean(error**2), 1e-12)


def test_replay_bootstraps_each_step_with_the_critic_of_that_step():
    """Targets r + γ V(s') move with V from step to step; with the first V the result differs."""
    config = dataclasses.replace(
        CONFIG, value_data="replay", value_steps=3, buffer_size=30, batch_size=20
    )
    state, t = begun(config), batch()
    rows = jax.tree.map(
        lambda x: np.reshape(x, (-1, *x.shape[2:]))[-30:],
        (t.obs, t.reward, t.next_obs, t.terminated),
    )  # of 60 rows the ring keeps the last 30; row 30 + i lies in slot i, since 30 divides 60
    held = ring.Ring(rows, next_slot=np.int32(0), filled=np.int32(30))
    sample = jax.jit(partial(ring.sample, batch_size=20))
    samples = [sample(held, step_bits) for step_bits in run(_replay_bits, config, state.key)]

    def fit(bootstrap_with):
        params = state.params["value"]
        for (obs, reward, next_obs, terminated), valid in samples:
            frozen = {"value": params if bootstrap_with == "current" else state.params["value"]}
            next_value = run(_value, config, frozen, next_obs)
            target = reward + 0.9 * np.where(terminated, 0.0, next_value)
            params = run(value_descent, config, params, obs, target, valid)
        return flat(params)

    after, _ = update(config, state, t)
    assert_close(flat(after.params["value"]), fit("current"), 1e-12)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close(flat(after.params["value"]), fit("first"), 1e-6)


def _replay_bits(config, algorithm, key):
    return list(noise.draw(key, 0, config, algorithm.env.spec, synthetic.T).replay)


def _value(config, algorithm, params, obs):
    return algorithm.networks.value(params, obs)


@pytest.mark.parametrize("fit", ["gradient", "npg", "ppo"])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_a_critic_is_given_all_parameters_wherever_it_is_asked(fit, normalize_obs):
    """As in torch, where it is given the module."""
    config, algorithm, state, _ = shared.jax_side(
        dataclasses.replace(CONFIG, fit=fit, normalize_obs=normalize_obs)
    )
    asked = []

    def value(params, obs):
        asked.append(set(params))
        return algorithm.networks.value(params, obs)

    watched = algorithm._replace(networks=algorithm.networks._replace(value=value))
    jax.eval_shape(lambda state: learner.update(config, state, watched), state)
    assert len(asked) >= 3  # V(s), V(s'), and the fit
    assert all(names == set(state.params) for names in asked)


# Gradients.


def test_the_entropy_bonus_adds_its_own_gradient():
    """The policy moves by rate · coefficient · ∇H more; ∇H by central differences in numpy."""
    eps = 1e-5

    def entropy(policy):
        logits = np.asarray(run(_logits, CONFIG, policy, batch().obs))
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return -(p * np.log(p)).sum(axis=-1).mean()

    policy = jax.tree.map(np.asarray, begun(CONFIG).params["policy"])
    leaves, tree = jax.tree.flatten(policy)
    vector, ends = flat(policy), np.cumsum([leaf.size for leaf in leaves])[:-1]

    def unravel(vector):
        parts = zip(np.split(vector, ends), leaves, strict=True)
        return jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in parts])

    slope = [
        (entropy(unravel(vector + e)) - entropy(unravel(vector - e))) / (2 * eps)
        for e in eps * np.eye(len(vector))
    ]
    more = moved(dataclasses.replace(CONFIG, ent_coef=0.5), "policy") - moved(CONFIG, "policy")
    assert_close(more, POLICY_RATE * 0.5 * np.array(slope), 1e-7)


def _logits(config, algorithm, policy, obs):
    return algorithm.networks.policy({"policy": policy}, obs)


def test_the_joint_gradient_is_the_sum_of_its_parts():
    _, algorithm, state = begin(SHARED)
    params = state.params
    estimated = run(learner.estimate, SHARED, params, batch())
    plain = training.as_arrays(dataclasses.replace(SHARED, ent_coef=0.0))

    def policy(params):
        return gradient.policy_objective(plain, algorithm, params, estimated)[0]

    def value(params):
        value = algorithm.networks.value(params, estimated.obs)
        return losses.value_loss(value, estimated.target, estimated.valid)

    def entropy(params):
        outputs = algorithm.networks.policy(params, estimated.obs)
        return jnp.mean(algorithm.distribution.entropy(outputs))

    @jax.jit
    def gradients(params):
        return [jax.grad(part)(params) for part in (policy, value, entropy)]

    found = gradients(params)
    parts = list(map(flat, found))
    total = parts[0] + 0.3 * parts[1] - 0.2 * parts[2]
    assert_close(moved(SHARED), -POLICY_RATE * total, 1e-12)
    torso = [np.linalg.norm(part["torso"]["hidden_0"]["kernel"]) for part in found]
    assert min(torso) > 0  # all three reach the torso


def test_no_gradient_flows_into_the_baseline_or_the_target():
    """Ψ and the target computed inside the differentiated function change nothing."""
    config, algorithm, state = begin(SHARED)
    trajectory = batch()
    constants = run(learner.estimate, config, state.params, trajectory)

    @jax.jit
    @jax.grad
    def slope(params, estimated=None):
        estimated = estimated or learner.estimate(config, algorithm, params, trajectory)
        objective = gradient.joint_objective(gradient.policy_objective, gradient.value_objective)
        return objective(config, algorithm, params, estimated)[0]

    assert_close(flat(slope(state.params)), flat(slope(state.params, constants)), 1e-13)


# Metrics.


@pytest.mark.parametrize(
    ("layout", "env_steps", "episodes"), [("steps", 60, 8), ("episodes", 38, 5)]
)
def test_metrics_count_valid_steps_and_finished_episodes(layout, env_steps, episodes):
    """60 = 12 · 5 rows; episodes of 5, 12, 12, 8 and 1 steps make 38."""
    fields = synthetic.arrays(layout, "categorical")
    trajectory = synthetic.for_jax(fields, "float64")
    _, metrics = update(CONFIG, begun(CONFIG), trajectory)
    assert metrics.env_steps == env_steps
    assert metrics.episodes == episodes
    ended = fields["terminated"] | fields["truncated"]
    assert_close(metrics.return_sum, fields["episode_return"][ended].sum(), 1e-12)
    assert metrics.env_steps.dtype == metrics.episodes.dtype == jnp.int32


@pytest.mark.slow
def test_recent_returns_are_the_last_100_episodes_in_order():
    """14 batches of 8 episodes: the first 12 are forgotten, and 112 mod 100 = 12 leads the ring."""
    state, every = begun(SHARED), []
    for seed in range(14):
        fields = synthetic.arrays("steps", "categorical", seed)
        every.extend(fields["episode_return"][fields["terminated"] | fields["truncated"]])
        trajectory = synthetic.for_jax(fields, "float64")
        state, _ = update(SHARED, state, trajectory)
        expected = np.mean(every[-100:])
        assert_close(ring.mean(state.recent_returns), expected, 1e-12)
    assert len(every) == 112
    np.testing.assert_array_equal(np.roll(state.recent_returns.rows, -12), every[-100:])


def test_whole_episodes_are_remembered_in_the_order_of_their_environments():
    """They begin together: in the order in which they end the last would be the longest."""
    config = dataclasses.replace(CONFIG, collect="episodes", total_episodes=synthetic.N)
    fields = synthetic.arrays("episodes", "categorical")
    state, _ = update(config, begun(config), synthetic.for_jax(fields, "float64"))
    ended = fields["terminated"] | fields["truncated"]
    assert len(set(ended.argmax(axis=0))) > 2  # steps after which they end
    wanted = fields["episode_return"].T[ended.T]
    np.testing.assert_array_equal(state.recent_returns.rows[: synthetic.N], wanted)
    in_torch = twin._in_order(config, torch.tensor(fields["episode_return"]))
    assert_close(in_torch, fields["episode_return"].T.ravel(), 0.0)


def test_without_a_critic_its_metrics_are_zero():
    config = dataclasses.replace(
        CONFIG,
        collect="episodes",
        total_episodes=synthetic.N,
        estimator="reward_to_go",
        baseline="none",
    )
    _, metrics = update(config, begun(config), batch(layout="episodes"))
    assert metrics.value_loss == metrics.value_grad_norm == 0.0
    assert metrics.policy_grad_norm > 0.0


def test_only_what_is_allowed_is_done_and_learned_from():
    """PPO with ten steps on Dials; nobody is less sure than log 3 + log 2."""
    config = training.as_arrays(
        Config(
            arithmetic="float64", env=synthetic.DIALS, num_envs=8, num_steps=40, hidden_sizes=(8,),
            fit="ppo", epochs=5, minibatches=2, value_steps=1, learning_rate=0.05, ent_coef=0.01,
        )
    )  # fmt: skip
    algorithm = algorithms.build(config)
    state, seen = jax.jit(
        lambda key: learner.watch(config, learner.init(config, key, algorithm), algorithm)
    )(noise.key(0))
    action, mask = (np.asarray(x) for x in (seen.trajectory.action, seen.trajectory.obs[..., 2:]))
    assert action.shape == (40, 8, 2)
    assert np.take_along_axis(mask, action + np.array([0, 3]), axis=-1).all()
    assert {*map(tuple, action.reshape(-1, 2).tolist())} == set(np.ndindex(3, 2))
    assert 0 < seen.metrics.entropy < np.log(6.0)
    assert seen.metrics.approx_kl > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, seen.metrics)))


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


@pytest.mark.parametrize("part", ["advantage", "value_target", "networks.value"])
def test_a_part_that_gives_no_number_for_each_step_is_refused(part):
    """In both packages: what numpy broadcasts would train, to something else."""
    for side, module in ((shared.jax_side(CONFIG), learner), (shared.torch_side(CONFIG), twin)):

        def first(*inputs, side=side, **coefficients):
            return side.trajectory.reward[:, :1]

        algorithm = side.algorithm
        if part == "networks.value":
            algorithm = algorithm._replace(networks=algorithm.networks._replace(value=first))
        else:
            algorithm = algorithm._replace(**{part: first})
        shape = tuple(side.trajectory.valid.shape)
        said = re.escape(f"{part} must give [T, N], {shape}; got {(shape[0], 1)}")
        with pytest.raises(ValueError, match=said):
            module.estimate(side.config, algorithm, side.state.params, side.trajectory)
