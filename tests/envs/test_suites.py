"""Environments of other suites: found by prefix, adapted, trained; skipped where not there."""

import importlib
import subprocess
import sys
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from jaxpg import suites
from jaxpg.cli.main import main
from jaxpg.core import env, noise
from jaxpg.core.config import Config, ConfigError, EnvParams
from jaxpg.core.rollout import collect_steps
from jaxpg.envs.check import check_env

ADAPTER = """
from gymnax.environments import environment, spaces
from gymnax.environments.classic_control.cartpole import CartPole


def names():
    return ["pole", "far", "deep", "old", "two"]


def make(name):
    if name == "far":
        raise OSError("no such  host")
    world = CartPole()
    if name == "old":
        world.step_env = lambda *given: given.no_such_attribute
    if name == "deep":
        world.action_space = lambda params: spaces.Tuple(())
    if name == "two":
        world.action_space = lambda params: spaces.Tuple([spaces.Discrete(n) for n in (2, 5)])
    return world, world.default_params.replace(max_steps_in_episode=7)
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite that is there, `ours`, and one that is not, `theirs`."""
    (tmp_path / "adapter_of_ours.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    found = {
        "ours": suites.Suite("adapter_of_ours", "json", "poles"),
        "theirs": suites.Suite("adapter_of_theirs", "no_such_package", "nothing"),
        "broken": suites.Suite("adapter_of_nobody", "json", "nothing"),
    }
    monkeypatch.setattr(suites, "SUITES", found)
    yield
    sys.modules.pop("adapter_of_ours", None)


@pytest.mark.usefixtures("suite")
def test_an_environment_is_found_by_its_prefix():
    made = env.make("ours:pole")
    assert (made.spec.obs_size, made.spec.num_actions, made.spec.time_limit) == (4, 2, 7)
    assert made.reset(jnp.full((2, 4), 0.5)).obs.tolist() == np.zeros((2, 4)).tolist()


@pytest.mark.usefixtures("suite")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ours:pol", "unknown environment 'ours:pol'; did you mean 'ours:pole'"),
        ("ours:far", r"ours:far could not be made \(OSError: no such host\)"),
        ("ours:deep", "ours:deep acts in .*; allowed are Discrete, a Tuple of them, and Box"),
        ("ours:old", r"ours:old does not run here \('tuple' object has no attribute 'no_such"),
        ("theirs:x", r"theirs is not installed: pip install 'jaxpg\[theirs\]'"),
        ("broken:x", r"broken cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_what_is_not_there_gets_a_sentence(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        env.make(name)


@pytest.mark.usefixtures("suite")
def test_parameters_of_a_suite_are_those_of_its_environment():
    with pytest.raises(ConfigError, match="ours:pole has no parameter 'gravty'; did you mean"):
        env.settle(Config(env="ours:pole", env_params=EnvParams({"gravty": 1.0})))
    settled = env.settle(Config(env="ours:pole", env_params=EnvParams({"gravity": 12})))
    assert settled.env_params == {"gravity": 12.0}


@pytest.mark.usefixtures("suite")
def test_the_list(capsys):
    main(["envs", "ours"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["environment", "observes", "acts", "steps", "at", "most"]
    assert lines[1].split() == ["ours:pole", "4", "numbers", "one", "of", "2", "7"]
    assert lines[2].split(maxsplit=1)[1].startswith("could not be made")
    assert lines[3].split(maxsplit=1)[1].startswith("acts in")
    assert "one each of 2, 5" in lines[5]
    with pytest.raises(SystemExit) as ended:
        main(["envs", "our"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "unknown suite 'our'; did you mean 'ours'? Allowed: gymnax, ours," in said.err
    assert said.out == ""


def test_no_adapter_is_imported_before_it_is_asked_for():
    code = (
        "import sys, jaxpg.cli.commands, jaxpg.fast\n"
        "from jaxpg.core import env\n"
        "env.make('CartPole-v1')\n"
        "print([x for x in sys.modules if x.startswith('jaxpg.envs.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The suites themselves.


def ends(name, steps, **options):
    """What 4 environments that act at random met, [T, 4] each."""
    with jax.numpy_rank_promotion("allow"):
        made = env.make(name, **options)
    config = Config(num_envs=4, num_steps=steps)
    draws = noise.draw(noise.key(0), 0, config, made.spec, steps)
    first = noise.first_reset(noise.key(0), config, made.spec)

    def act(params, obs, uniform):
        if made.spec.discrete:
            return (uniform * made.spec.num_actions).astype(jnp.int32), uniform
        return 2.0 * uniform - 1.0, uniform[..., 0]

    rollout = jax.jit(lambda: collect_steps(made, act, None, made.reset(first), draws)[1])
    with jax.numpy_rank_promotion("allow"):
        return jax.tree.map(np.asarray, rollout())


def trained(out, name, options=MappingProxyType({})):
    """A run of the command, tiny."""
    tiny = {"--num-envs": 4, "--num-steps": 16, "--total-steps": 256, "--hidden-sizes": 8}
    words = [str(x) for option, value in {**tiny, **options}.items() for x in (option, value)]
    with jax.numpy_rank_promotion("allow"):
        main(["train", "ppo", "--env", name, "--seeds", "2", "--lanes", "2", *words,
              "--out", str(out)])  # fmt: skip
    return jaxpg.load(out)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs
class TestBrax:
    @pytest.fixture(autouse=True, scope="class")
    def there(self):
        pytest.importorskip("brax", reason="brax is not installed: pip install '.[brax]'")

    def test_a_fall_terminates_and_the_limit_truncates(self):
        """A fall is an angle of 0.2, and a start is within 0.01 of upright, as Brax has it."""
        rows = ends("brax:inverted_pendulum", 40, max_episode_steps=3)
        fallen = abs(rows.next_obs[..., 1]) > 0.2
        assert (rows.terminated == fallen).all()
        assert (rows.truncated == (rows.time == 2) & ~fallen).all()
        assert rows.terminated.any()
        assert rows.truncated.any()
        done = rows.terminated | rows.truncated
        assert (abs(rows.obs[1:][done[:-1]]) < 0.011).all()
        assert (abs(rows.next_obs[done]).max(-1) > 0.011).all()

    @pytest.mark.parametrize("name", ["inverted_pendulum", "reacher"])
    def test_it_keeps_the_contract(self, name):
        check_env(f"brax:{name}", steps=60, max_episode_steps=50)

    def test_what_it_is_made_with_are_parameters_that_are_traced(self):
        """Of two weights of the cost of acting the reward has that of each."""
        own = {"ctrl_cost_weight": 0.5, "reset_noise_scale": 0.0}
        made = env.make("brax:halfcheetah", env_params=EnvParams(own))
        key, action = jax.random.split(jax.random.key(0), 1), jnp.linspace(-1.0, 1.0, 6)

        def reward(weight):
            given = EnvParams({**own, "ctrl_cost_weight": weight})
            state = made.reset(key, given)
            return made.step(key, state, action[None])[1][0]

        found = jax.jit(jax.vmap(reward))(jnp.array([0.0, 7.0]))
        np.testing.assert_allclose(found[0] - found[1], 7.0 * (action**2).sum(), rtol=1e-4)
        with pytest.raises(ConfigError, match="has no parameter 'ctrl_cost'; did you mean"):
            env.make("brax:halfcheetah", env_params=EnvParams({"ctrl_cost": 1.0}))

    def test_it_is_trained_evaluated_and_exported(self, tmp_path):
        name = "brax:inverted_pendulum"
        run = trained(tmp_path / "run", name)
        assert run.config.env == name
        action = run.policy(0).act(np.zeros(4, np.float32))
        assert action.shape == (1,)
        assert abs(run.policy(0).act(np.full(4, 1e3, np.float32))) <= 1.0
        main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--gymnasium-seeds", "0"])
        out = tmp_path / "policy.onnx"
        main(["export", str(tmp_path / "run"), "--seed", "0", "--to", "onnx", "--out", str(out)])
        assert out.exists()

    def test_it_learns(self, tmp_path):
        """It balances for more than twice as long as at the start."""
        options = {"--total-steps": 32_768, "--num-envs": 16, "--num-steps": 64}
        options["--hidden-sizes"] = 32
        run = trained(tmp_path / "run", "brax:inverted_pendulum", options)
        metrics = run.population.metrics
        returns = metrics.return_sum / np.maximum(metrics.episodes, 1)
        assert (run.population.final_return > 2 * returns[:, 0]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestJumanji:
    @pytest.fixture(autouse=True, scope="class")
    def there(self):
        pytest.importorskip("jumanji", reason="jumanji is not installed: pip install '.[jumanji]'")

    def test_its_time_limits_truncate(self):
        """Nobody solves a puzzle at random; Jumanji would end it after 500 steps as a failure."""
        rows = ends("jumanji:SlidingTilePuzzle-v0", 502)
        assert (rows.truncated == (rows.time == 499)).all()
        assert rows.truncated.any()
        assert not rows.terminated.any()

    def test_a_snake_that_bites_has_terminated(self):
        rows = ends("jumanji:Snake-v1", 60)
        assert rows.terminated.any()
        assert not rows.truncated.any()

    @pytest.mark.parametrize("name", ["Snake-v1", "Maze-v0", "Tetris-v0", "Cleaner-v0"])
    def test_it_keeps_the_contract(self, name):
        with jax.numpy_rank_promotion("allow"):
            check_env(f"jumanji:{name}", steps=200)

    def test_what_is_masked_together_is_one_choice_and_what_is_not_several(self):
        """Tetris: 4 rotations of 10 columns. Cleaner: 3 agents. RubiksCube has no mask."""
        with jax.numpy_rank_promotion("allow"):
            specs = [env.make(f"jumanji:{x}", max_episode_steps=9).spec for x in
                     ("Tetris-v0", "Cleaner-v0", "RubiksCube-v0")]  # fmt: skip
        assert [x.choices for x in specs] == [(), (4, 4, 4), (6, 1, 3)]
        assert [x.num_actions for x in specs] == [40, 12, 10]
        assert [x.masked for x in specs] == [True, True, False]

    @pytest.mark.parametrize("name", ["Snake-v1", "Tetris-v0", "Cleaner-v0"])
    def test_it_is_trained(self, name, tmp_path):
        run = trained(tmp_path / "run", f"jumanji:{name}", {"--max-episode-steps": 30})
        assert np.isfinite(run.population.final_return).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestCraftax:
    @pytest.fixture(autouse=True, scope="class")
    def there(self):
        pytest.importorskip("craftax", reason="craftax is not installed: pip install '.[craftax]'")

    def test_it_keeps_the_contract(self):
        check_env("craftax:Craftax-Classic-Symbolic-v1", steps=40)

    def test_it_is_trained(self, tmp_path):
        run = trained(tmp_path / "run", "craftax:Craftax-Classic-Symbolic-v1")
        assert run.config.env == "craftax:Craftax-Classic-Symbolic-v1"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestNavix:
    @pytest.fixture(autouse=True, scope="class")
    def there(self):
        pytest.importorskip("navix", reason="navix is not installed: pip install '.[navix]'")

    @pytest.fixture(autouse=True)
    def promoted(self):
        with jax.numpy_rank_promotion("allow"):
            yield

    def test_obstacles_and_the_goal_terminate_and_its_limit_truncates(self):
        rows = ends("navix:Navix-Dynamic-Obstacles-5x5-v0", 220)
        assert rows.terminated.any()
        assert (rows.truncated == (rows.time == 99) & ~rows.terminated).all()
        assert (rows.reward[~rows.terminated] == 0).all()

    def test_an_episode_begins_anew_in_the_step_after_its_end(self):
        """A reset puts the agent where it was at first, in a room without chance."""
        rows = ends("navix:Navix-Empty-5x5-v0", 150, max_episode_steps=7)
        after = rows.obs[1:][(rows.terminated | rows.truncated)[:-1]]
        assert rows.truncated.any()
        assert (after == rows.obs[0, 0]).all()

    @pytest.mark.parametrize("name", ["Navix-Empty-Random-5x5-v0", "Navix-DoorKey-5x5-v0"])
    def test_it_keeps_the_contract(self, name):
        check_env(f"navix:{name}", steps=120)

    def test_it_learns_to_reach_the_goal(self, tmp_path):
        options = {"--total-steps": 20_480, "--num-steps": 64, "--num-envs": 8}
        options |= {"--hidden-sizes": 32, "--max-episode-steps": 50}
        run = trained(tmp_path / "run", "navix:Navix-Empty-5x5-v0", options)
        assert (run.population.final_return > 0.5).all()

    def test_its_images_are_convolved(self, tmp_path):
        options = {"--conv-features": 4}
        run = trained(tmp_path / "run", "navix:Navix-Empty-5x5-v0", options)
        kernel = run.population.params["policy"]["conv_0"]["kernel"]
        assert kernel.shape == (2, 3, 3, 3, 4)
        assert np.isfinite(kernel).all()


def test_an_action_of_playgrounds_is_kept_for_as_many_steps_as_its_config_says(monkeypatch):
    """By a stand-in for the package: of its own environments few repeat, and they are large."""

    class State(NamedTuple):
        obs: jax.Array
        reward: jax.Array
        done: jax.Array

    class Adding:
        action_size = 1

        def reset(self, key):
            return State(jnp.zeros(1), jnp.float32(0.0), jnp.float32(0.0))

        def step(self, state, action):
            obs = state.obs + action
            return State(obs, obs[0], (obs[0] > 5.0).astype(jnp.float32))

    class OwnConfig(dict):
        episode_length = 10

    registry = SimpleNamespace(
        get_default_config=lambda name: OwnConfig(action_repeat=3), load=lambda *given: Adding()
    )
    monkeypatch.setitem(sys.modules, "mujoco_playground", SimpleNamespace(registry=registry))
    monkeypatch.delitem(sys.modules, "jaxpg.envs.playground", raising=False)
    adapter = importlib.import_module("jaxpg.envs.playground")
    monkeypatch.delitem(sys.modules, "jaxpg.envs.playground")  # whose package is no stand-in
    made, params = adapter.make("Adding")
    _, state = made.reset_env(jax.random.key(0), params)
    obs, state, reward, done, _ = made.step_env(None, state, jnp.ones(1), params)
    assert (obs, reward, done) == (3.0, 1.0 + 2.0 + 3.0, False)
    *_, done, _ = made.step_env(None, state, jnp.ones(1), params)
    assert done
    assert params.max_steps_in_episode == 4  # decisions, the last of which is cut short


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestPlayground:
    @pytest.fixture(autouse=True, scope="class")
    def there(self):
        pytest.importorskip(
            "mujoco_playground",
            reason="playground is not installed: pip install '.[playground]'",
        )

    @pytest.fixture(autouse=True)
    def promoted(self):
        with jax.numpy_rank_promotion("allow"):
            yield

    def test_its_limit_truncates_and_balancing_is_rewarded(self):
        rows = ends("playground:CartpoleBalance", 40, max_episode_steps=16)
        assert (rows.truncated == (rows.time == 15)).all()
        assert rows.truncated.any()
        assert not rows.terminated.any()
        assert ((rows.reward > 0) & (rows.reward <= 1)).all()

    def test_its_physics_is_in_jax(self):
        from jaxpg.envs import playground

        made, params = playground.make("CartpoleBalance")
        assert made.env.mjx_model.impl.value == "jax"
        assert params.max_steps_in_episode == 1_000

    def test_it_keeps_the_contract(self):
        check_env("playground:CartpoleBalance", steps=40, max_episode_steps=20)

    def test_it_is_trained(self, tmp_path):
        run = trained(tmp_path / "run", "playground:CartpoleBalance", {"--max-episode-steps": 16})
        assert np.isfinite(run.population.final_return).all()
        assert abs(run.policy(0).act(np.zeros(5, np.float32))) <= 1.0
