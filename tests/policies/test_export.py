"""Exports, loaded by their own runtimes and compared with the policy, action by action."""

import math
import subprocess
import sys
from functools import cache

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from jaxpg.cli import policies as policy_commands
from jaxpg.cli.main import main
from jaxpg.core import algorithms, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.distributions import NEVER
from jaxpg.core.types import Algorithm, Params
from jaxpg.names import from_torch
from jaxpg.policies import export
from jaxpg.population.policy import Policy
from jaxpg.runs.load import Run

CONFIGS = {
    "separate": Config(hidden_sizes=(16,)),
    "shared, deep": Config(
        hidden_sizes=(9, 7), activation="tanh", networks="shared", value_steps=1
    ),
    "σ free": Config(env="Pendulum-v1", hidden_sizes=(8,), activation="elu"),
    "σ of the state": Config(env="Pendulum-v1", hidden_sizes=(8, 5), sigma="state"),
    "normalised": Config(hidden_sizes=(8,), normalize_obs=True),
    "squashed": Config(env="MountainCarContinuous-v0", hidden_sizes=(8,), squash=True),
    "masked choices": Config(
        env="jaxpg.proof.dials:Dials-v0", hidden_sizes=(8,), normalize_obs=True
    ),
    "convolutions": Config(
        env="Catch-bsuite",
        conv_features=(4, 3),
        hidden_sizes=(6,),
        frame_stack=2,
        activation="silu",
    ),
    "shared convolutions, normalised": Config(
        env="Catch-bsuite",
        conv_features=(5,),
        hidden_sizes=(6,),
        networks="shared",
        value_steps=1,
        normalize_obs=True,
    ),
}


@cache
def initial(config: Config) -> Params:
    return jax.jit(algorithms.build(config).networks.init)(noise.key(3), noise.key(4))


def untrained(config: Config) -> Run:
    """A run of one seed, 7, which has learned nothing; its biases and log σ are not 0."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[None] * 3 + 0.1, initial(config))
    if config.normalize_obs:
        params["obs"]["var"][:, 0] = 0.01  # so that much of it is clipped
    return handmade.in_memory(config, params, [7])


def observations(config: Config, size: int) -> np.ndarray:
    obs = np.random.default_rng(0).normal(size=(2_000, size)).astype(config.float_type) * 2
    return (
        np.concatenate([obs[:, :2], obs[:, 2:] > 0], axis=-1, dtype=obs.dtype) if size == 7 else obs
    )


def as_given(policy: Policy, obs: np.ndarray) -> np.ndarray:
    """Observations [B, D] as the environment gives them, the stacked ones apart."""
    interface, pixels = policy.actor.interface, math.prod(policy.actor.spec.image[:2])
    apart = obs.reshape(len(obs), pixels, policy.config.frame_stack, -1).swapaxes(1, 2)
    return apart.reshape(len(obs), *interface.obs_shape)


def in_torch(content, path, obs, config):
    import torch

    path.write_bytes(content)
    saved = torch.load(path, weights_only=True)
    chain = [getattr(torch.nn, name)(*sizes) for name, *sizes in saved["layers"]]
    policy = torch.nn.Sequential(*chain)
    policy.load_state_dict(saved["state_dict"], assign=True)
    with torch.no_grad():
        outputs = policy(torch.from_numpy(obs))
    if "low" not in saved:
        if saved["masked"]:
            allowed = torch.from_numpy(obs[:, -outputs.shape[1] :]) > 0.5
            outputs = outputs.where(allowed, torch.tensor(-1e30))
        parts = outputs.split(list(saved["choices"] or (outputs.shape[1],)), dim=-1)
        action = torch.stack([part.argmax(dim=-1) for part in parts], dim=-1)
        action = action if saved["choices"] else action[:, 0]
        return {"action": action.numpy(), "logits": outputs.numpy()}
    mean, log_std = outputs, saved.get("log_std")
    if log_std is None:
        mean, log_std = outputs.chunk(2, dim=-1)
    low, high = saved["low"], saved["high"]
    squashed = (low + high) / 2 + (high - low) / 2 * mean.tanh()
    action = (squashed if saved["squash"] else mean).clip(low, high).numpy()
    return {
        "action": action,
        "mean": mean.numpy(),
        "log_std": log_std.expand_as(mean).numpy(),
    }


def in_onnx(content, path, obs, config):
    import onnxruntime

    session = onnxruntime.InferenceSession(content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"observation": obs}), strict=True))


def in_stablehlo(content, path, obs, config):
    loaded = jax.export.deserialize(bytearray(content))
    return {name: np.asarray(x) for name, x in loaded.call(obs).items()}


def in_safetensors(content, path, obs, config):
    from safetensors.numpy import load

    policy = Policy.of(config, from_torch(load(content)))
    outputs = np.asarray(policy.actor.outputs(policy.params, obs))
    if policy.actor.spec.discrete:
        return {"action": policy.act(as_given(policy, obs)), "logits": outputs}
    mean, log_std = np.split(outputs, 2, axis=-1)
    return {"action": policy.act(obs), "mean": mean, "log_std": log_std}


RUNTIMES = {
    "torch": in_torch,
    "onnx": in_onnx,
    "stablehlo": in_stablehlo,
    "safetensors": in_safetensors,
}


def compare(run, seed, target, path, tolerance=2e-5):
    policy = run.policy(seed)
    obs = observations(run.config, policy.actor.spec.obs_size)
    content = export.export(run, seed, target)
    theirs = RUNTIMES[target](content, path, obs, run.config)
    outputs = np.asarray(policy.actor.outputs(policy.params, obs))
    actions = policy.act(as_given(policy, obs))
    assert theirs["action"].shape == actions.shape
    if policy.actor.spec.discrete:
        np.testing.assert_allclose(theirs["logits"], outputs, rtol=tolerance, atol=tolerance)
        near = np.array([np.diff(np.sort(row)).min() for row in outputs]) < 10 * tolerance
        clear = ~near | (outputs == NEVER).any(axis=-1)  # else rounding may decide
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(theirs["action"][clear], actions[clear])
        assert len(np.unique(actions, axis=0)) > 1
        return
    mean, log_std = np.split(outputs, 2, axis=-1)
    np.testing.assert_allclose(theirs["mean"], mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(theirs["log_std"], log_std, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(theirs["action"], actions, rtol=tolerance, atol=tolerance)


def other_loss(config: Config) -> Algorithm:
    """An algorithm of one's own whose networks are the config's."""
    built = jaxpg.build(config)
    return built._replace(policy_loss=lambda *inputs: 2.0 * built.policy_loss(*inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_of_ones_own_algorithm_are_checked_as_they_see(name):
    """With the config's own networks the chain is found right, scaled observations or not."""
    run = untrained(CONFIGS[name])
    chain = export.export(run, 7, "torch")
    manifest = run.manifest._replace(build="mine:other_loss")
    own = handmade.with_manifest(run, manifest, build=other_loss)
    assert len(export.export(own, 7, "torch")) == len(chain)


def least_probable(config: Config) -> Algorithm:
    """An algorithm of one's own that takes the action of which its networks say least."""
    built = jaxpg.build(config)
    mode = built.distribution.mode
    return built._replace(distribution=built.distribution._replace(mode=lambda x: mode(-x)))


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_a_distribution_of_ones_own_is_in_no_chain(target):
    run = untrained(Config())
    manifest = run.manifest._replace(build="mine:least_probable")
    own = handmade.with_manifest(run, manifest, build=least_probable)
    with pytest.raises(ConfigError, match="networks or distribution are none that its config"):
        export.export(own, 7, target)


def acting_by(change):
    """Builds an algorithm of one's own whose policy's outputs are changed."""

    def build(config: Config) -> Algorithm:
        built = jaxpg.build(config)
        policy = built.networks.policy
        networks = built.networks._replace(policy=lambda params, obs: change(policy, params, obs))
        return built._replace(networks=networks)

    return build


def clipped_spread(policy, params, obs):
    mean, log_std = jnp.split(policy(params, obs), 2, axis=-1)
    return jnp.concatenate([mean, jnp.clip(log_std, -5.0, -1.0)], axis=-1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("σ free", clipped_spread),
        ("separate", lambda policy, params, obs: policy(params, jnp.clip(obs, -5.0, 5.0))),
    ],
)
def test_networks_that_differ_somewhere_are_in_no_chain(name, change):
    """In log σ, or far from where observations usually are."""
    run = untrained(CONFIGS[name])
    manifest = run.manifest._replace(build="mine:build")
    own = handmade.with_manifest(run, manifest, build=acting_by(change))
    with pytest.raises(ConfigError, match="networks or distribution are none that its config"):
        export.export(own, 7, "torch")


def of_known_spread(config: Config) -> Algorithm:
    """Networks without a log σ, for a distribution that knows it."""
    built = jaxpg.build(config)
    policy, own = built.networks.policy, built.distribution

    def whole(mean):
        return jnp.concatenate([mean, jnp.full_like(mean, -1.0)], axis=-1)

    return built._replace(
        networks=built.networks._replace(
            policy=lambda params, obs: jnp.split(policy(params, obs), 2, axis=-1)[0]
        ),
        distribution=own._replace(
            mode=lambda mean: own.mode(whole(mean)),
            sample=lambda mean, uniform: own.sample(whole(mean), uniform),
        ),
    )


def test_stablehlo_holds_any_distribution():
    run = untrained(CONFIGS["σ free"])
    manifest = run.manifest._replace(build="mine:of_known_spread")
    own = handmade.with_manifest(run, manifest, build=of_known_spread)
    obs = observations(run.config, 3)
    found = in_stablehlo(export.export(own, 7, "stablehlo"), None, obs, run.config)
    assert found.keys() == {"action", "outputs"}
    np.testing.assert_allclose(found["action"], run.policy(7).act(obs), rtol=1e-5, atol=1e-5)


def test_normalised_observations_take_two_numbers_each(tmp_path):
    """One that is infinite is clipped, as in training; the others are as they are."""
    run = untrained(CONFIGS["normalised"])
    content = export.export(run, 7, "torch")
    obs = observations(run.config, run.policy(7).actor.spec.obs_size)[:5]
    obs[:, 0] = np.inf
    found = in_torch(content, tmp_path / "policy", obs, run.config)
    policy = run.policy(7)
    np.testing.assert_allclose(
        found["logits"], policy.actor.outputs(policy.params, obs), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_chain_acts_as_the_policy_does(name, target, tmp_path):
    compare(untrained(CONFIGS[name]), 7, target, tmp_path / "policy")


@pytest.mark.thin(5)
@pytest.mark.parametrize("target", ["stablehlo", "safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_runtime_acts_as_the_policy_does(name, target, tmp_path):
    compare(untrained(CONFIGS[name]), 7, target, tmp_path / "policy")


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_trained_policy_acts_as_it_did(trained, target, tmp_path, monkeypatch):
    monkeypatch.undo()
    compare(jaxpg.load(trained), "best", target, tmp_path / "policy")


@pytest.mark.thin(4)
@pytest.mark.parametrize("target", RUNTIMES)
def test_float64_stays_float64(target, tmp_path, x64):
    config = Config(hidden_sizes=(5,), arithmetic="float64")
    compare(untrained(config), 7, target, tmp_path / "policy", tolerance=1e-12)


def test_convolutions_in_float64_are_refused_where_no_runtime_computes_them(x64):
    config = Config(env="Catch-bsuite", conv_features=(2,), arithmetic="float64")
    run = untrained(config)
    assert export.export(run, 7, "torch")
    with pytest.raises(ConfigError, match="onnx cannot have convolutions in float64"):
        export.export(run, 7, "onnx")


def test_bounds_are_those_of_the_environment():
    """Outputs far beyond them are clipped to Pendulum's torque, in [-2, 2]."""
    run = untrained(CONFIGS["σ free"])
    run.population.params["policy"]["output"]["bias"][:] = 100.0
    chain = export.as_chain(run.config, run.policy(7))
    assert (chain.low.tolist(), chain.high.tolist()) == ([-2.0], [2.0])
    obs = observations(run.config, 3)
    acted = in_onnx(export.export(run, 7, "onnx"), None, obs, run.config)["action"]
    assert (acted == 2.0).all()


@pytest.mark.parametrize("target", RUNTIMES)
def test_the_lines_that_are_printed_load_it_without_jaxpg(trained, target, tmp_path, capsys):
    out = tmp_path / "policy"
    main(["export", str(trained), "--seed", "9", "--to", target, "--out", str(out)])
    shown = capsys.readouterr().out
    assert shown.startswith(f"{out}: seed 9 of vpg on CartPole-v1")
    code = shown.split("\n\n", 1)[1] + "\nimport sys; assert 'jaxpg' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_says_where_it_comes_from(trained, monkeypatch):
    import onnx
    from safetensors import safe_open

    monkeypatch.undo()
    run = jaxpg.load(trained)
    model = onnx.load_from_string(export.export(run, 9, "onnx"))
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["env"], about["seed"]) == ("CartPole-v1", "9")
    assert '"gamma": 0.99' in about["config"]
    path = trained.parent / "nine.safetensors"
    path.write_bytes(export.export(run, 9, "safetensors"))
    with safe_open(path, framework="np") as file:
        assert file.metadata()["seed"] == "9"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onx"], "--to is 'onx'; did you mean 'onnx'"),
        (["--to", "onnx", "--seed", "3"], "has no seed 3"),
        (["--to", "onnx", "--setting", "2"], "setting must be in [0, 1)"),
    ],
)
def test_bad_options_get_one_sentence(trained, capsys, monkeypatch, options, words):
    monkeypatch.undo()
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(trained), *options])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("target", "package"),
    [("torch", "torch"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")],
)
def test_what_is_not_installed_is_named(target, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"--to {target} needs {package}"):
        export.export(untrained(CONFIGS["separate"]), 7, target)


def test_targets_are_those_of_the_command():
    assert tuple(export.SUFFIXES) == policy_commands.EXPORTS
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        export.export(untrained(CONFIGS["separate"]), 7, "troch")
