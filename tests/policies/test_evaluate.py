"""Evaluations in gymnax and gymnasium: policies whose return is known, and the command."""

import contextlib
import dataclasses
import json
from functools import partial

import gymnasium
import gymnax
import handmade
import jax
import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole

import jaxpg
from jaxpg.cli.main import main
from jaxpg.cli.policies import gymnasium_seeds
from jaxpg.core import noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import RunError
from jaxpg.policies import evaluate
from jaxpg.population import policy
from jaxpg.population.evaluations import MODES
from jaxpg.runs.manifests import Manifest

SIMULATORS = [evaluate.in_gymnax, evaluate.in_gymnasium]


@pytest.fixture(scope="module")
def run(trained):
    return jaxpg.load(trained)


def with_bias(run, bias):
    """The run with policies that look at nothing and prefer action 1 by so many nats."""
    params = jax.tree.map(np.zeros_like, run.population.params)
    params["policy"]["output"]["bias"][:] = [0.0, bias]
    return dataclasses.replace(run, population=run.population._replace(params=params))


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_pushing_one_way_ends_soon(run, simulator):
    """No start survives 11 pushes to one side, and none falls before the eighth."""
    for mode in MODES:
        found = simulator(with_bias(run, 50.0), [9, 5], 20, mode)
        assert found.lengths.min() >= 8
        assert found.lengths.max() <= 11
        np.testing.assert_array_equal(found.returns, found.lengths)


def test_the_simulators_agree_on_chance(run):
    """A coin's return is about 22 with a standard deviation of 12: 200 episodes, ± 5 errors."""
    coin = with_bias(run, 0.0)
    means = [simulator(coin, run.seeds, 40, "sampled").returns.mean() for simulator in SIMULATORS]
    assert all(abs(mean - 22.0) < 5 * 12 / np.sqrt(200) for mean in means)
    assert abs(means[0] - means[1]) < 5 * 12 * np.sqrt(2 / 200)
    assert means[0] != means[1]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_an_episode_depends_on_its_seed_and_index_alone(run, simulator, monkeypatch):
    whole = simulator(run, run.seeds, 7, "sampled")
    monkeypatch.setattr(evaluate, "ROWS", 4)  # two parts of the episodes, a seed at a time
    part = simulator(run, [0, 9], 3, "sampled")
    np.testing.assert_array_equal(part.returns, whole.returns[[3, 1], :3])
    again = simulator(run, run.seeds, 7, "sampled")
    np.testing.assert_array_equal(again.returns, whole.returns)
    other = simulator(run, run.seeds, 7, "sampled", evaluation_seed=1)
    assert (other.returns != whole.returns).any()


def test_a_run_is_evaluated_in_the_environment_that_it_was_trained_in(run):
    """Its own parameters, and a setting's: a pole that may not lean falls at once."""
    brittle = {"env.theta_threshold_radians": 1e-9}
    fixed = dataclasses.replace(run.config, env_params={"theta_threshold_radians": 1e-9})
    for config, settings in ((fixed, ({},)), (run.config, (brittle,))):
        manifest = run.manifest._replace(config=config, settings=settings)
        other = handmade.with_manifest(run, manifest)
        assert (evaluate.in_gymnax(other, [9, 5], 3, "greedy").lengths == 1).all()
        assert other.config_of(0).env_params == {"theta_threshold_radians": 1e-9}
        assert other.policy(9).config == other.config_of(0)
        with pytest.raises(ConfigError, match=r"trained with others \(theta_threshold_radians"):
            evaluate.in_gymnasium(other, [9, 5], 3, "greedy")


def test_training_evaluating_and_rendering_share_no_key():
    """Of the same integers everywhere; the first episode of an evaluation once was training's."""
    some, used = np.arange(6), []

    def use(keys):
        used.append(np.asarray(jax.random.key_data(keys)).reshape(-1, 2))
        return keys.reshape(-1)

    folds = jax.vmap(jax.vmap(noise.fold_in, (None, 0)), (0, None))
    for what in ("evaluation", "rendering"):
        use(noise.key(2, what)[None])
        episodes = use(evaluate._episode_keys(what, 2, some, some))
        use(folds(use(folds(episodes, some[:3])), some))
    streams = use(jax.vmap(lambda key: noise.split(key, 3))(use(noise.keys(some))))
    updates = use(folds(streams[2::3], some))
    draws = use(jax.vmap(lambda key: noise.split(key, 4))(updates))
    use(jax.vmap(lambda key: noise.split(key, (6, 2)))(draws))
    words = np.concatenate(used)
    assert len(np.unique(words, axis=0)) == len(words)


@pytest.mark.slow
def test_a_continuous_action_is_taken_by_both():

    config = dataclasses.replace(jaxpg.preset("vpg"), env="Pendulum-v1", total_steps=1024)
    population = jaxpg.train_population(config, [1, 2], lanes=2, segments=1)
    run = jaxpg.Run(None, Manifest("vpg", config, ("1,2",), 2, 1, ({},), {}), {}, population)
    ours, theirs = (simulator(run, [1, 2], 20, "greedy") for simulator in SIMULATORS)
    assert (ours.lengths == 200).all()
    assert (theirs.lengths == 200).all()
    assert abs(ours.returns.mean() - theirs.returns.mean()) < 400  # of about -1200 ± 300 each


def test_summary_says_what_the_episodes_were(run):
    returns = np.array([[500.0, 400.0], [480.0, 480.0], [10.0, 30.0]])
    found = evaluate.Evaluation("gymnax", "greedy", [2, 9, 4], returns, returns.astype(int), 1.0)
    summary = evaluate.summarize(found, Config())
    assert summary["mean_return"] == [450.0, 480.0, 20.0]
    assert summary["solved_fraction"] == pytest.approx(1 / 3)
    assert evaluate.summarize(found, Config(max_episode_steps=100))["solved_at"] is None
    assert (summary["worst_seed"], summary["worst_episode"]) == (4, 10.0)
    assert summary["steps"] == 1900
    assert summary["interval_over"] == "seeds"
    gone = evaluate.summarize(found, Config(), diverged=[9, 7])
    assert (gone["diverged"], gone["solved_fraction"]) == ([9], 0.0)
    one = evaluate.summarize(found._replace(seeds=[2], returns=returns[:1]), Config())
    assert one["interval_over"] == "episodes"
    assert (one["iqm"], one["ci95_low"], one["ci95_high"]) == (450.0, 400.0, 500.0)
    single = found._replace(seeds=[2], returns=returns[:1, :1])
    assert evaluate.summarize(single, Config())["ci95_low"] is None  # nothing to resample


def test_gymnasium_is_left_out_where_one_seed_takes_longer_than_a_minute():
    config = Config()
    assert evaluate.default_gymnasium_seeds(config, 100) >= 1
    assert evaluate.default_gymnasium_seeds(config, 100_000) == 0
    count, why = gymnasium_seeds(config, "some", 8, 100_000)
    assert count == 0
    assert "--gymnasium-seeds 1 waits for it" in why
    assert gymnasium_seeds(config, "1", 8, 100_000) == (1, "")


def test_a_return_that_is_no_number_is_refused_by_name():
    """It was sorted last: the best seed, and left in the IQM's upper quarter."""
    returns = np.array([[500.0, 400.0], [np.nan, 480.0], [10.0, 30.0]])
    found = evaluate.Evaluation("gymnax", "greedy", [2, 9, 4], returns, np.ones((3, 2), int), 1.0)
    with pytest.raises(RunError, match=r"gymnax gave rewards .* no finite numbers, to seed 9:"):
        evaluate.summarize(found, Config())


def test_an_environment_that_is_registered_anew_is_the_one_that_is_played(monkeypatch):
    """Two environments of one name in one process, as in a notebook, with rewards of 1 and 2."""
    import gymnax
    from gymnax.environments.classic_control import cartpole

    class Mine(cartpole.CartPole):
        reward = 1.0

        def step_env(self, key, state, action, params):
            obs, state, _, terminated, info = super().step_env(key, state, action, params)
            return obs, state, jax.numpy.float32(self.reward), terminated, info

    class Doubled(Mine):
        reward = 2.0

    fresh = getattr(policy.actor, "__wrapped__", policy.actor)
    monkeypatch.setattr(evaluate, "actor", fresh)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Mine-v7"])
    config = Config(env="Mine-v7", num_envs=2, num_steps=4, total_steps=8, hidden_sizes=(3,))
    returns = []
    for factory in (Mine, Doubled):
        monkeypatch.setitem(gymnax.registration._registry, "Mine-v7", factory)
        init = jax.jit(partial(jaxpg.init, config, algorithm=jaxpg.build(config)))
        state = init(jaxpg.key(0))
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state.params)
        run = handmade.in_memory(config, params, [0])
        found = evaluate.in_gymnax(run, [0], 5, "sampled")
        returns.append(found.returns / found.lengths)
    assert (returns[0] == 1).all()
    assert (returns[1] == 2).all()


def test_modes_and_environments_that_are_not_there(run):
    with pytest.raises(ConfigError, match="mode must be one of greedy, sampled; got 'gredy'"):
        evaluate.in_gymnax(run, [9], 1, "gredy")
    with pytest.raises(ConfigError, match="gymnasium has no environment 'Catch-bsuite'"):
        evaluate.gymnasium_maker(dataclasses.replace(run.config, env="Catch-bsuite"))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"action_space": gymnasium.spaces.Discrete(4, start=1)}, r"acts in 1 to 4, .* 0 to 3"),
        (
            {"action_space": gymnasium.spaces.Discrete(3)},
            r"acts in 0 to 2, and these policies 0 to 3",
        ),
        (
            {"action_space": gymnasium.spaces.MultiDiscrete([4, 2])},
            r"acts in \(0 to 3, 0 to 1\), and",
        ),
        (
            {"action_space": gymnasium.spaces.Box(-1, 1, (4,))},
            r"acts in \(4,\) from \[-1.0, .* 0 to 3",
        ),
        ({"observation_space": gymnasium.spaces.Discrete(3)}, r"observes 0 to 2, .* \(4,\)$"),
        ({"observation_space": gymnasium.spaces.Box(0, 1, (5,))}, r"observes \(5,\), .* \(4,\)$"),
        ({}, None),
    ],
)
def test_gymnasiums_environment_must_have_the_same_spaces(other, sentence, monkeypatch):
    """Actions are sent as they are numbered here: of other numbers each would be another's."""

    class Ours(CartPole):
        def action_space(self, params=None):
            return gymnax.environments.spaces.Discrete(4)

    class Theirs(gymnasium.Env):
        observation_space = other.get("observation_space", gymnasium.spaces.Box(0, 1, (4,)))
        action_space = other.get("action_space", gymnasium.spaces.Discrete(4))

    monkeypatch.setitem(gymnax.registration._registry, "Both-v0", Ours)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Both-v0"])
    spec = gymnasium.envs.registration.EnvSpec("Both-v0", entry_point=lambda **options: Theirs())
    monkeypatch.setitem(gymnasium.registry, "Both-v0", spec)
    refused = pytest.raises(ConfigError, match=sentence) if sentence else contextlib.nullcontext()
    with refused:
        evaluate.gymnasium_maker(Config(env="Both-v0"))


@pytest.mark.parametrize(
    "name",
    ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"],
)
def test_those_that_both_have_do(name):
    assert evaluate.gymnasium_maker(Config(env=name))().spec.id == name


def test_the_command_prints_a_table_and_writes_json(trained, tmp_path, capsys):
    out = tmp_path / "new" / "evaluation.json"
    options = ["--episodes", "3", "--seeds", "9,0", "--gymnasium-seeds", "1"]
    main(["evaluate", str(trained), *options, "--json", str(out)])
    shown = capsys.readouterr().out
    assert "the same 1 seed in gymnax and in gymnasium, mean return: greedy" in shown
    content = json.loads(out.read_text())
    rows = [(row["simulator"], row["mode"], row["seeds"]) for row in content["results"]]
    assert rows == [
        ("gymnax", "greedy", [9, 0]),
        ("gymnax", "sampled", [9, 0]),
        ("gymnasium", "greedy", [9]),
        ("gymnasium", "sampled", [9]),
    ]
    assert f"{content['results'][0]['iqm']:.1f} [" in shown
    assert [path.name for path in out.parent.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--episodes", "0"], "--episodes must be in [1, 100,000]; got 0"),
        (["--seed", "3"], "has no seed 3; its seeds are 2,9,4,0,5"),
        (["--seed", "bets"], "did you mean 'best'"),
        (["--seeds", "0,3"], "has no seed 3"),
        (["--seeds", "9"], "one seed is --seed"),
        (["--seeds", "al"], "did you mean 'all'"),
        (["--setting", "1"], "setting must be in [0, 1)"),
        (["--gymnasium-seeds", "-1"], "--gymnasium-seeds must be a number or all"),
    ],
)
def test_bad_options_get_one_sentence(trained, capsys, options, words):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(trained), *options])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_directory_that_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tmp_path)])
    assert exit_.value.code == 2
    assert "is not a run" in capsys.readouterr().err
