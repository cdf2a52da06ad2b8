"""Runs in an environment of one's own that keeps a random key in its state."""

import signal
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces

import jaxpg
from jaxpg.core.config import Config
from jaxpg.errors import Stopped
from jaxpg.population import chunks
from jaxpg.runs import run
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


def test_a_typed_key_in_the_state_is_saved_and_goes_on(drunk, tmp_path, monkeypatch):
    """It died at the first checkpoint; now it is continued and retraced to the same bits."""
    jaxpg.check_env("Drunk-v0", steps=20)
    how = {"lanes": 2, "evaluate_every": 20, "evaluate_episodes": 2}
    whole = jaxpg.train_population(CONFIG, [3, 5, 8], **how)
    monkeypatch.setattr(run, "SAVE_RATIO", 0.0)

    def stop(at):
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)

    with pytest.raises(Stopped):
        jaxpg.train_population(CONFIG, [3, 5, 8], **how, out=tmp_path / "run", report=stop)
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
