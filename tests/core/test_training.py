"""training: train is a pure function of (config, key), and the twin's run from the same integer."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close, assert_trees_close

import jaxpg
import torch_ref
from jaxpg.core import noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.training import train
from torch_ref import convert
from torch_ref import noise as torch_noise

SMALL = Config(num_envs=2, num_steps=16, total_steps=4 * 32 + 31, hidden_sizes=(8,), value_steps=2)
SEEDS = 3


def flat(params):
    """{"network/layer/leaf": array} of a flax tree."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def many():
    """Three seeds of SMALL, and the program that trained them."""
    program = jax.jit(jax.vmap(partial(train, SMALL)))
    return program(noise.keys(range(SEEDS))), program


def test_seeds_train_together_and_report_each_update(many):
    """159 steps pay for 4 updates of 2 · 16 steps; the remaining 31 are left unspent."""
    (state, metrics), _ = many
    assert SMALL.num_updates == 4
    for name, leaf in metrics.named().items():
        assert leaf.shape == (SEEDS, 4), name
        assert np.all(np.isfinite(leaf)), name
    np.testing.assert_array_equal(metrics.env_steps, 32)
    np.testing.assert_array_equal(state.update, [4] * SEEDS)
    kernel = state.params["policy"]["hidden_0"]["kernel"]
    assert kernel.shape == (SEEDS, 4, 8)
    assert len({row.tobytes() for row in np.asarray(kernel)}) == SEEDS


def test_a_seeds_result_does_not_depend_on_its_place_or_neighbours(many):
    (state, _), program = many
    other, _ = program(noise.keys([7, 1, 0]))
    for seed, place in ((0, 2), (1, 1)):
        ours = jax.tree.map(lambda x, i=seed: x[i], state.params)
        theirs = jax.tree.map(lambda x, i=place: x[i], other.params)
        assert_trees_close(flat(ours), flat(theirs), 0.0)


@pytest.mark.slow
def test_stacked_settings_equal_separate_runs_without_compiling_again():
    traces = []

    def run(learning_rate, gamma, key):
        traces.append(1)
        config = dataclasses.replace(SMALL, learning_rate=learning_rate, gamma=gamma)
        return train(config, key)[0].params

    key, rates, gammas = noise.key(5), jnp.array([1e-3, 1e-2]), jnp.array([0.9, 1.0])
    together = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))
    stacked = together(rates, gammas, key)
    together(2 * rates, gammas / 2, key)
    assert len(traces) == 1
    separate = dataclasses.replace(SMALL, learning_rate=1e-2, gamma=1.0)
    alone = jax.jit(partial(train, separate))(key)[0].params
    lane = jax.tree.map(lambda x: x[1], stacked)
    assert_trees_close(flat(lane), flat(alone), 1e-4)  # float32, after four updates


def test_several_values_of_a_field_need_a_vmap():
    """Of N = 8 environments each would have had a γ of its own."""
    gammas = jnp.linspace(0.1, 0.9, 8)
    with pytest.raises(
        ConfigError, match=r"gamma must be one number; got .* shape \(8,\): jax.vmap"
    ):
        jaxpg.train(Config(gamma=gammas), jaxpg.key(0))
    with pytest.raises(ConfigError, match=r"gravity must be one number; got .* shape \(8,\)"):
        jaxpg.train(Config(env_params={"gravity": gammas}), jaxpg.key(0))
    shape = jax.eval_shape(jax.vmap(lambda x: train(Config(gamma=x), noise.key(0))[1]), gammas)
    assert shape.env_steps.shape[0] == 8


@pytest.mark.parametrize("arithmetic", ["float64", "float32_grid"])
def test_float64_without_jaxs_64_bit_mode_is_refused(arithmetic):
    config = dataclasses.replace(SMALL, arithmetic=arithmetic)
    with pytest.raises(ConfigError, match="needs JAX's 64-bit mode: set JAX_ENABLE_X64=1"):
        train(config, noise.key(0))


def test_a_config_without_meaning_is_refused():
    with pytest.raises(ConfigError, match="total_steps must pay for at least one update of 32"):
        train(dataclasses.replace(SMALL, total_steps=31), noise.key(0))


@pytest.mark.parametrize(
    "fields", [{"gamma": torch.tensor([0.5, 0.9])}, {"env_params": {"gravity": np.ones(2)}}]
)
def test_the_twin_refuses_several_values_of_a_field(fields):
    """It would broadcast them over the environments."""
    config = torch_ref.Config(num_envs=2, num_steps=4, total_steps=8, **fields)
    with pytest.raises(ValueError, match=r"must be one number; got an array of shape \(2,\)"):
        torch_ref.train(config, torch_noise.key(0))


@pytest.fixture
def command(monkeypatch):
    """`python -m torch_ref.train`; to import it hides the function of that name."""
    monkeypatch.setattr(torch_ref, "train", torch_ref.train)
    return importlib.import_module("torch_ref.train")


def test_the_twins_command_writes_no_policy_that_diverged(command, tmp_path, capsys):
    out = tmp_path / "policy.pt"
    tiny = ["vpg", "--num-envs", "2", "--num-steps", "16", "--total-steps", "96", "--out", str(out)]
    with pytest.raises(SystemExit) as exit_:
        command.main([*tiny, "--learning-rate", "1e30"])
    assert exit_.value.code == 2
    assert re.search(r"it diverged: after update \d of 3 parameters", capsys.readouterr().err)
    assert not out.exists()
    command.main(tiny)
    assert torch.load(out)["policy.output.bias"].isfinite().all()


def test_the_twins_command_tries_its_file_before_it_trains(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["vpg", "--out", str(tmp_path / "no" / "policy.pt")])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert "--out must be a file that can be written" in said.err
    assert not said.out


# The twin, from one integer and nothing else.


def assert_runs_agree(config, seeds, tolerance):
    """Parameters, observations and every update's metrics of some seeds.

    Observations are compared because one different action would change them by far more than any
    tolerance here: a push changes a pole's speed by 0.2.
    """
    with jax.enable_x64(config.float_type == "float64"):
        state, metrics = jax.jit(jax.vmap(partial(train, config)))(noise.keys(seeds))
        for i, seed in enumerate(seeds):
            twin_config = torch_ref.Config(**dataclasses.asdict(config))
            twin_state, twin_metrics = torch_ref.train(twin_config, torch_noise.key(seed))
            ours = {
                **flat(jax.tree.map(lambda x, i=i: x[i], state.params)),
                "obs": state.env_state.obs[i],
                **{name: x[i] for name, x in metrics.named().items()},
            }
            theirs = {
                **flat(convert.to_flax(twin_state.params.state_dict())),
                "obs": twin_state.env_state.obs,
                **twin_metrics.named(),
            }
            exact = {name for name in ours if tolerance == 0.0 and name not in LOSSES}
            for name in exact:
                np.testing.assert_array_equal(ours.pop(name), theirs.pop(name), name)
            assert_trees_close(ours, theirs, tolerance or 1e-12)
            assert twin_metrics.episodes.sum() > 0


# Computed in float64 and never rounded to the grid: equal to 1e-12, not bit by bit.
LOSSES = {"policy_loss", "value_loss", "entropy", "policy_grad_norm", "value_grad_norm"}
TWIN = Config(num_envs=4, num_steps=32, hidden_sizes=(16,), activation="tanh")


def updates(count, **changes):
    return dataclasses.replace(TWIN, total_steps=count * 4 * 32, **changes)


def test_the_first_10_updates_in_float64_are_the_twins():
    assert_runs_agree(updates(10, arithmetic="float64"), [0, 1], 1e-12)


def test_the_first_3_updates_in_float32_are_the_twins():
    assert_runs_agree(
        updates(3, optimizer="sgd", normalize_advantage=False, arithmetic="float32"), [0, 1], 1e-5
    )


@pytest.mark.as_users_run(1)
def test_15_updates_on_the_float32_grid_are_the_twins_bit_by_bit():
    """With the moments of observations, which are rounded to it, too."""
    config = updates(15, arithmetic="float32_grid", normalize_obs=True)
    assert_runs_agree(config, [0, 1, 2**32 - 1], 0.0)


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5])
def test_a_seed_that_would_alias_another_is_refused(seed):
    with pytest.raises(ConfigError, match="a seed must be an integer"):
        train(SMALL, noise.key(seed))


@pytest.mark.slow
def test_an_update_of_one_step_and_one_environment_works():
    config = Config(num_envs=1, num_steps=1, total_steps=3, hidden_sizes=(4,))
    _, metrics = jax.jit(partial(train, config))(noise.key(0))
    assert_close(metrics.env_steps, [1, 1, 1], 0.0)
    assert np.all(np.isfinite(metrics.policy_loss))


def test_the_twin_trains_whole_episodes_of_a_gymnasium_environment():
    """Acrobot cut after 6 steps: a reward of -1 for each, so every return is -6."""
    config = torch_ref.Config(
        env="Acrobot-v1",
        max_episode_steps=6,
        collect="episodes",
        num_envs=2,
        total_episodes=4,
        hidden_sizes=(4,),
    )
    _, metrics = torch_ref.train(config, torch_ref.key(0))
    assert metrics.episodes.tolist() == [2, 2]
    assert metrics.return_sum.tolist() == [-12.0, -12.0]


IN_A_NEW_PROCESS = """
import jax
import jaxpg

config = jaxpg.Config(num_envs=2, num_steps=4, total_steps=16, hidden_sizes=(4,), value_steps=1)
jax.jit(jax.vmap(lambda key: jaxpg.train(config, key)[1]))(jaxpg.keys(range(2)))
lake, keys = jaxpg.build(jaxpg.Config(env="FrozenLake-misc")).env, jaxpg.keys([0])
jax.jit(lambda: lake.step(keys, lake.reset(keys), jax.numpy.array([0])))()
"""


def test_the_first_training_of_a_process_may_be_within_a_jit_and_under_debugging():
    """gymnax is imported by the trace, and keeps arrays: FrozenLake then met a leaked tracer."""
    debugging = {
        "JAX_CHECK_TRACER_LEAKS": "1",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "MPLBACKEND": "module://nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS],
        env={**os.environ, **debugging},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "setting", ["jax_debug_key_reuse", pytest.param("jax_disable_jit", marks=pytest.mark.slow)]
)
def test_training_works_under(setting, request):
    """Key reuse is looked for without vmap, under which jax sees it in any scan over keys."""
    config = dataclasses.replace(SMALL, total_steps=32, num_steps=4, value_steps=1)
    before = getattr(jax.config, setting)
    request.addfinalizer(lambda: jax.config.update(setting, before))
    jax.config.update(setting, True)
    _, metrics = jaxpg.train(config, noise.key(0))
    assert np.all(np.isfinite(metrics.policy_loss))
