"""Runs in an environment of one's own: with a random key in its state, and one that changes."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import gymnax
import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces
from gymnax.environments.bsuite.discounting_chain import DiscountingChain
from gymnax.wrappers import purerl

import jaxpg
from jaxpg import fast
from jaxpg.cli.main import main
from jaxpg.core.config import Config
from jaxpg.errors import RunError, Stopped
from jaxpg.population import chunks, own
from jaxpg.runs import directories, edit, manifests, planning, reproduce
from jaxpg.runs.retrace import retrace


class State(NamedTuple):
    time: Any
    x: Any
    key: Any


class Drunk(environment.Environment):
    """A walk whose steps are drawn with a typed key of its own."""

    default_params = environment.EnvParams(max_steps_in_episode=6)

    def reset_env(self, key, params):
        own, place = jax.random.split(key)
        state = State(0, jax.random.uniform(place), own)
        return self.see(state), state

    def step_env(self, key, state, action, params):
        own, now = jax.random.split(state.key)
        x = state.x + jax.random.normal(now) + action
        state = State(state.time + 1, x, own)
        return self.see(state), state, x, x > 3.0, {}

    def see(self, state):
        return jnp.reshape(state.x, (1,))

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (1,), jnp.float32)

    def action_space(self, params):
        return spaces.Discrete(2)


CONFIG = Config(env="Drunk-v0", num_envs=2, num_steps=5, total_steps=40, hidden_sizes=(3,))


@pytest.fixture
def drunk(monkeypatch):
    monkeypatch.setitem(gymnax.registration._registry, "Drunk-v0", Drunk)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Drunk-v0"])


@pytest.mark.usefixtures("programs_kept")
def test_a_typed_key_in_the_state_is_saved_and_goes_on(drunk, tmp_path, stop_after):
    """It died at the first checkpoint; now it is continued and retraced to the same bits."""
    jaxpg.check_env("Drunk-v0", steps=20)
    how = {"lanes": 2, "evaluate_every": 20, "evaluate_episodes": 2}
    whole = jaxpg.train_population(CONFIG, [3, 5, 8], **how)
    with pytest.raises(Stopped):
        jaxpg.train_population(CONFIG, [3, 5, 8], **how, out=tmp_path / "run", report=stop_after(1))
    again = jaxpg.train_population(CONFIG, [3, 5, 8], **how, out=tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, again.metrics, whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, again.evaluations, whole.evaluations)
    said = retrace(tmp_path / "run", 5, 0, None, tmp_path / "again")
    assert "4 could be compared with the run, and all are equal to the bit" in said


def test_what_lies_between_two_updates_is_plain_arrays(drunk):
    """Of another kind of key too; and an update is given back what it had."""
    kinds = [jax.random.key(3), jax.random.key(4, impl="rbg"), jax.random.PRNGKey(5)]
    like = jaxpg.init(CONFIG, jaxpg.key(0), jaxpg.build(CONFIG))
    state = like._replace(env_state=like.env_state._replace(inner=kinds))
    stored = chunks._stored(state)
    for leaf in jax.tree.leaves(stored):
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    back = chunks.restored(stored)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for one, other in zip(back.env_state.inner, kinds, strict=True):
        assert one.dtype == other.dtype
        assert (one == other).all()


THEIRS = """
import gymnax
import handmade
from gymnax.environments.classic_control.cartpole import CartPole

class Mine(CartPole):
    bonus = 0.0

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = super().step_env(key, state, action, params)
        return obs, state, reward + self.bonus, terminated, info

gymnax.registration._registry["Mine-v0"] = Mine
gymnax.registered_envs.append("Mine-v0")
"""


@pytest.mark.usefixtures("compiled_anew")
def test_an_environment_that_has_changed_is_another(tmp_path, monkeypatch, stop_after, capsys):
    """Neither trained further nor evaluated in silence, as an algorithm of one's own is not."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs])
    monkeypatch.setattr(gymnax.registration, "_registry", {**gymnax.registration._registry})
    file, done, stopped = (tmp_path / name for name in ("their_env.py", "done", "stopped"))
    file.write_text(THEIRS)
    config = dataclasses.replace(CONFIG, env="their_env:Mine-v0", lr_schedule="constant")
    jaxpg.train_population(config, [3, 5], lanes=2, out=done)
    with pytest.raises(Stopped):
        jaxpg.train_population(config, [3, 5], lanes=2, out=stopped, report=stop_after(1))
    former = manifests.read(stopped).env_sha256
    assert former == hashlib.sha256(THEIRS.encode()).hexdigest()
    file.write_text(THEIRS.replace("bonus = 0.0", "bonus = 9.0"))
    evaluated = ["evaluate", str(done), "--episodes", "1"]
    resumed = ["resume", str(stopped), "--no-report"]
    for command in (evaluated, ["extend", str(done), "--total-steps", "80"], resumed):
        with pytest.raises(SystemExit) as ended:
            main(command)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert f"another source of their_env:Mine-v0: its SHA-256 was {former}" in said
        assert "--changed-algorithm" in said
    with pytest.raises(RunError, match="another source of their_env:Mine-v0"):
        jaxpg.train_population(config, [3, 5], lanes=2, out=stopped)
    main([*resumed, "--changed-algorithm"])
    assert manifests.read(stopped).made["former_sources"] == [former]
    main([*evaluated, "--changed-algorithm"])
    capsys.readouterr()
    main(["resume", str(done), "--changed-algorithm", "--no-report"])
    assert "--changed-algorithm changes nothing" in capsys.readouterr().err


def test_what_is_refused_keeps_its_manifest(tmp_path, monkeypatch, stop_after):
    """A run of other bits, of a version that knew no hash of an environment."""
    stopped, config = tmp_path / "run", dataclasses.replace(CONFIG, env="CartPole-v1")
    with pytest.raises(Stopped):
        jaxpg.train_population(config, [3, 5], lanes=2, out=stopped, report=stop_after(1))
    before = (stopped / manifests.NAME).read_bytes()
    monkeypatch.setattr(manifests, "BITS", manifests.BITS + 1)
    monkeypatch.setattr(own, "env_sha256", lambda name: "0" * 64)
    with pytest.raises(RunError, match="other bits"):
        edit.adopt(stopped, fast.build)
    assert (stopped / manifests.NAME).read_bytes() == before


def test_a_librarys_environments_and_a_scripts_have_no_file_to_compare():
    assert own.env_sha256("CartPole-v1") is None
    assert own.env_sha256("brax:ant") is None  # nor is it looked for


def test_all_files_of_ones_own_count_those_of_wrappers_too(monkeypatch, drunk):
    """In whatever order, and within gymnax's wrappers; of a script what the classes say."""

    def sha256(factory):
        monkeypatch.setitem(gymnax.registration._registry, "Drunk-v0", factory)
        return own.env_sha256("Drunk-v0")

    here = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert sha256(Drunk) == here
    assert sha256(lambda: purerl.FlattenObservationWrapper(Drunk())) == here
    theirs = type("Theirs", (purerl.GymnaxWrapper,), {"__module__": handmade.__name__})
    assert sha256(lambda: theirs(Drunk())) not in (None, here)


def test_so_does_the_file_that_registers_anothers(tmp_path, monkeypatch):
    """With values that its class does not say."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Chain-v0"])
    monkeypatch.setitem(gymnax.registration._registry, "Chain-v0", DiscountingChain)
    (tmp_path / "chain_env.py").write_text("import functools  # and registers it\n")
    known = own.env_sha256("chain_env:Chain-v0")
    assert known == hashlib.sha256((tmp_path / "chain_env.py").read_bytes()).hexdigest()
    assert own.env_sha256("Chain-v0") is None


def test_an_environment_of_a_script_is_known_by_what_its_class_says(monkeypatch):
    """`out=` gave the results of the one that had its name before."""

    def sha256(reward, name="reward"):
        text = f"""
class Base(Drunk):
    def {name}(self): return {reward}

class Mine(Base):
    @property
    def num_actions(self): return 2
"""
        script = {"__name__": "__main__", "Drunk": Drunk}
        exec(text, script)
        monkeypatch.setitem(gymnax.registration._registry, "Mine-v0", script["Mine"])
        monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Mine-v0"])
        return own.env_sha256("Mine-v0")

    assert sha256(1.0) == sha256(1.0)
    assert len({sha256(1.0), sha256(-5.0), sha256(1.0, "cost")}) == 3
    known = sha256(1.0)
    what = planning.plan("vpg", dataclasses.replace(CONFIG, env="Mine-v0"), [1], 2)
    assert what.env_sha256 == known
    assert reproduce.commands(what) == [
        "# by jaxpg.train_population(…), where Mine-v0 had been registered in Python"
    ]


def test_what_versions_before_did_not_write_is_no_difference(drunk, tmp_path):
    """Of a run whose manifest has no hash: it is merged, and its first resume records no null."""
    one, other = (planning.plan("vpg", CONFIG, [seed], 2) for seed in (1, 2))
    assert one.env_sha256 is not None
    directories.begin(tmp_path / "one", one._replace(env_sha256=None))
    directories.begin(tmp_path / "other", other)
    for order in (("one", "other"), ("other", "one")):
        edit.merge([tmp_path / name for name in order], tmp_path / "-".join(order))
    edit.adopt(tmp_path / "one", jaxpg.build)
    adopted = manifests.read(tmp_path / "one")
    assert adopted.env_sha256 == one.env_sha256
    assert "former_sources" not in adopted.made
