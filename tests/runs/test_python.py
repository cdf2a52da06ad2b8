"""Populations that are trained in Python have what a loaded run has, and become runs."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpg
from benchmarks import readme
from jaxpg.cli.main import main
from jaxpg.core import gradient, learner
from jaxpg.core.config import ConfigError
from jaxpg.core.types import Fitted, Networks
from jaxpg.errors import DoesNotFit, RunError, Stopped
from jaxpg.population import chunks, population
from jaxpg.runs import directories, manifests, planning, reproduce
from jaxpg.runs.results import FILES
from tests import pages
from tests.compare import assert_same
from tests.runs.test_runs import TINY

pytestmark = pytest.mark.usefixtures("programs_kept")

SEEDS = [2, 9, 4, 0, 5]
SETTINGS = [{}, {"gamma": 0.5}]


@pytest.fixture(scope="module")
def memory():
    return jaxpg.train_population(TINY, SEEDS, lanes=2)


def test_into_a_directory_it_is_a_run(memory, tmp_path, capsys):
    """Which the command knows, and finds finished; and so does the same call."""
    out = tmp_path / "run"
    seen = []
    saved = jaxpg.train_population(TINY, jnp.array(SEEDS), lanes=2, out=out, report=seen.append)
    assert_same(memory, saved)
    assert seen[-1].fraction == 1.0
    assert {*FILES, "checkpoints", "progress.jsonl"} <= {path.name for path in out.iterdir()}
    seen.clear()
    assert_same(memory, jaxpg.train_population(TINY, SEEDS, out=str(out), report=seen.append))
    assert not seen
    main(["resume", str(out), "--no-report"])
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"gamma: 0\.99 -> 0\.5"):
        jaxpg.train_population(dataclasses.replace(TINY, gamma=0.5), SEEDS, out=out)


def test_saved_from_memory_it_is_a_finished_run(memory, tmp_path, capsys):
    memory.save(tmp_path / "one")
    assert_same(memory, jaxpg.load(tmp_path / "one").population)
    assert directories.is_finished(tmp_path / "one")
    jaxpg.load(tmp_path / "one").save(tmp_path / "other")
    assert_same(memory, jaxpg.load(tmp_path / "other").population)
    main(["status", str(tmp_path / "one")])
    said = "finished\nit was saved from memory, without checkpoints\n"
    assert capsys.readouterr().out.endswith(said)
    main(["report", str(tmp_path / "one")])
    main(["compare", str(tmp_path / "one"), str(tmp_path / "other")])
    assert "report.html" in capsys.readouterr().out
    for whole in (memory, jaxpg.load(tmp_path / "other")):
        with pytest.raises(RunError, match="out must be a new or empty directory"):
            whole.save(tmp_path / "one")


def test_both_offer_the_same(memory, tmp_path):
    settings = jaxpg.train_population(TINY, SEEDS, settings=SETTINGS, lanes=2)
    for number, whole in enumerate((memory, settings)):
        whole.save(tmp_path / str(number))
        loaded = jaxpg.load(tmp_path / str(number))
        assert loaded.to_frame().equals(whole.to_frame())
        assert all(loaded.summary[name] == value for name, value in whole.summary.items())
        for rank in ("best", "worst", "median", 4, np.uint32(5), jnp.array(9)):
            assert loaded.row(rank, number) == whole.row(rank, number)
        obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        np.testing.assert_array_equal(loaded.policy(9, 0).act(obs), whole.policy(9, 0).act(obs))
    assert settings.row(9, 1) == 6
    assert set(settings.to_frame()["gamma"]) == {0.99, 0.5}
    with pytest.raises(RunError, match="has no seed 3; its seeds are 2,9,4,0,5"):
        memory.policy(3)
    with pytest.raises(RunError, match="does not say what was trained"):
        memory._replace(manifest=None).save(tmp_path / "none")


def test_a_table_has_what_settings_set_of_an_environment(memory):
    what = memory.manifest
    config = dataclasses.replace(TINY, env_params={"gravity": 9.8})
    settings = ({"env.gravity": 5, "gamma": 0.5},)
    told = memory._replace(manifest=what._replace(config=config, settings=settings))
    frame = told.to_frame()
    assert set(frame["env.gravity"]) == {5.0}
    assert set(frame["gamma"]) == {0.5}


def test_stopped_it_goes_on_by_the_same_call(memory, tmp_path, stop_after):
    seen = []
    stop = stop_after(2, seen, signal.SIGINT)
    with pytest.raises(Stopped, match="the same call goes on"):
        jaxpg.train_population(TINY, SEEDS, lanes=2, out=tmp_path / "run", report=stop)
    done, seen = seen[-1].fraction, []
    again = jaxpg.train_population(TINY, SEEDS, out=tmp_path / "run", report=seen.append)
    assert all(at.fraction > done for at in seen)
    assert_same(memory, again)


def test_in_another_thread_than_the_main_one(memory, tmp_path):
    """Where nobody may say what signals do."""
    found = []

    def train():
        found.append(jaxpg.train_population(TINY, SEEDS, lanes=2, out=tmp_path / "run"))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert_same(memory, found[0])


def test_fewer_lanes_where_memory_is_short(memory, tmp_path, monkeypatch):
    real, lanes = chunks.check_memory, []

    def check(programs, shapes, groups, *rest, **options):
        lanes.append(len(groups[0].keys))
        if lanes[-1] > 2:
            raise DoesNotFit("too many lanes", 2)
        return real(programs, shapes, groups, *rest, **options)

    monkeypatch.setattr(chunks, "check_memory", check)
    assert_same(memory, jaxpg.train_population(TINY, SEEDS, out=tmp_path / "run"))
    assert_same(memory, jaxpg.train_population(TINY, SEEDS))
    assert lanes == [16, 2] * 2
    with pytest.raises(DoesNotFit):
        jaxpg.train_population(TINY, SEEDS, lanes=3, out=tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.json"))


def test_a_lone_setting_is_the_config():
    """So that whoever reads the one, or trains by it, has what was trained. Of several the first
    is, as far as all replace what it does."""
    lone = planning.plan("vpg", TINY, [1], 2, [{"gamma": 0.5, "env.gravity": 12}])
    assert (lone.config.gamma, lone.config.env_params) == (0.5, {"gravity": 12.0})
    (again,) = reproduce.commands(lone)
    assert "--gamma 0.5" in again
    assert "--env-params gravity=12.0" in again
    several = planning.plan("vpg", TINY, [1], 2, [{"gamma": 0.5}, {}])
    assert several.config == TINY
    alike = planning.plan("vpg", TINY, [1], 2, [{"gamma": 0.5, "gae_lambda": 0.1}, {"gamma": 0.6}])
    assert alike.config == dataclasses.replace(TINY, gamma=0.5)


def test_what_makes_no_algorithm_is_refused():
    """Planned, and in memory."""
    said = r"<lambda> must make an Algorithm .*; it returned None"
    with pytest.raises(ConfigError, match=said):
        planning.plan("vpg", TINY, [1], 2, build=lambda config: None)
    with pytest.raises(ConfigError, match=said):
        jaxpg.train_population(TINY, [1], lanes=2, build=lambda config: None)


def _optimizing(optimizer):
    return lambda config: jaxpg.build(config)._replace(optimizer=lambda c: optimizer)


def test_networks_of_ones_own_that_normalise_nothing_are_refused_in_a_sentence():
    """By whatever looks at them first."""
    config, plain = dataclasses.replace(TINY, normalize_obs=True), jaxpg.build(TINY).networks
    with pytest.raises(ConfigError, match="normalize_obs needs networks that normalise"):
        planning.plan(
            "vpg", config, [1], 2, build=lambda c: jaxpg.build(c)._replace(networks=plain)
        )


def test_an_optimizer_that_turns_the_gradient_around_is_refused():
    """optax.adam(rate) does, and jaxpg goes against what it is given: it would climb in silence."""
    warms_up = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-4, 10, 100))
    for climbs in (optax.adam(3e-3), optax.sgd(0.1), optax.chain(optax.adam(1.0)), warms_up):
        with pytest.raises(ConfigError, match=r"would climb: use optax.scale_by_adam\(\)"):
            planning.plan("vpg", TINY, [1], 2, build=_optimizing(climbs))
    for descends in (optax.scale_by_adam(), optax.identity(), optax.scale_by_lion()):
        planning.plan("vpg", TINY, [1], 2, build=_optimizing(descends))
    both = optax.chain(optax.adam(1.0), optax.scale(-1.0))
    planning.plan("vpg", TINY, [1], 2, build=_optimizing(both))


def test_a_fit_that_reports_other_metrics_is_refused_before_training(tmp_path):
    """It trained to the end, and its files were of no run."""

    def build(config, add=("kl",), drop=()):
        def fit(*inputs):
            learned, fitted = gradient.fit(*inputs)
            losses = {name: x for name, x in fitted.losses.items() if name not in drop}
            losses |= dict.fromkeys(add, jnp.zeros(()))
            return learned, fitted._replace(losses=losses)

        return jaxpg.build(config)._replace(fit=fit)

    for other, told in (
        ({"add": ("kl",)}, "missing: none; unknown: kl"),
        ({"add": ("surprise",), "drop": ("entropy",)}, "missing: entropy; unknown: surprise"),
        ({"add": (), "drop": ("entropy",)}, "missing: entropy; unknown: none"),
    ):
        made, run = partial(build, **other), tmp_path / "run"
        with pytest.raises(ConfigError, match=rf"losses must be policy_loss, .*; {told}"):
            jaxpg.train_population(TINY, [1], lanes=2, build=made, out=run)
        assert not run.exists()
    assert jaxpg.train_population(TINY, [1], lanes=2, build=partial(build, add=())).params


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"opt_state": lambda states: {**states, "beta": jnp.zeros(())}}, "'beta'] is new"),
        (
            {"opt_state": lambda states: {"policy": states["policy"]}},
            "['value'].mu is missing, .opt_state['value'].nu is missing",
        ),
        ({"fit_state": lambda state: None}, ".fit_state is missing"),
        ({"fit_state": lambda state: state[0]}, ".fit_state is float32[], and was float32[3]"),
        (
            {"fit_state": lambda state: jnp.int32(state)},
            ".fit_state is int32[3], and was float32[3]",
        ),
    ],
)
def test_a_fit_that_returns_another_state_is_refused_before_training(change, said, tmp_path):
    def build(config):
        def fit(*inputs):
            learned, fitted = gradient.fit(*inputs)
            changed = {name: to(getattr(learned, name)) for name, to in change.items()}
            return learned._replace(**changed), fitted

        def three(config, params):
            return jnp.zeros(3, config.float_type)

        return jaxpg.build(config)._replace(fit=fit, init_fit=three)

    with pytest.raises(ConfigError, match="the state that it was given; .*" + re.escape(said)):
        jaxpg.train_population(TINY, [1], lanes=2, build=build, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_network_with_other_outputs_is_refused():
    """Three logits of two actions, and one number for both means of a Gaussian, trained on."""

    def build(config, outputs=2):
        algorithm = jaxpg.build(config)
        ours = algorithm.networks

        def policy(params, obs):
            return jnp.broadcast_to(ours.policy(params, obs)[..., :1], (*obs.shape[:-1], outputs))

        return algorithm._replace(networks=ours._replace(policy=policy))

    planning.plan("vpg", TINY, [1], 2, build=build)
    with pytest.raises(ConfigError, match=r"must give 2 numbers .*logit.* 2 actions; .*\[1, 3\]"):
        planning.plan("vpg", TINY, [1], 2, build=partial(build, outputs=3))
    pendulum = dataclasses.replace(TINY, env="Pendulum-v1")
    planning.plan("vpg", pendulum, [1], 2, build=build)
    with pytest.raises(ConfigError, match=r"must give 2 numbers .*mean and a log σ.* 1 actions"):
        planning.plan("vpg", pendulum, [1], 2, build=partial(build, outputs=1))


def test_a_fit_of_ones_own_may_go_along_what_its_optimizer_gives():
    def fit(config, algorithm, learned, batch):
        losses = dict.fromkeys(learner.LOSSES, jnp.zeros(()))
        return learned, Fitted(losses, {})

    def mine(config):
        return jaxpg.build(config)._replace(fit=fit, optimizer=lambda config: optax.adam(3e-3))

    planning.plan("vpg", TINY, [1], 2, build=mine)


def test_nothing_is_left_where_nothing_fits(tmp_path, monkeypatch, capsys):
    """With the usual lanes, nor with those that should have; by a call and by a command."""
    tried = []

    def check(programs, shapes, groups, *rest, **options):
        tried.append(len(groups[0].keys))
        raise DoesNotFit(f"too many lanes: {tried[-1]}", 2 if tried[-1] > 2 else None)

    monkeypatch.setattr(chunks, "check_memory", check)
    with pytest.raises(DoesNotFit, match="lanes: 2"):
        jaxpg.train_population(TINY, SEEDS, out=tmp_path / "called")
    small = ["--num-envs", "3", "--num-steps", "24", "--total-steps", "288", "--hidden-sizes", "6"]
    small += ["--out", str(tmp_path / "by-command"), "--track", "tensorboard"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "vpg", *small, "--seeds", "5"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "jaxpg: too many lanes: 16, and is taken" in said
    assert said.splitlines()[-1] == "jaxpg: too many lanes: 2"
    assert tried == [16, 2] * 2
    assert {path.name for path in tmp_path.glob("*/*")} == {"lock"}


def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pages.run(readme.ROOT / "docs" / "runs.md") == 2
    assert directories.is_finished(tmp_path / "runs" / "mine")
    lines = (tmp_path / "runs" / "quartiles" / "quartiles.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["env_steps"] == 16 * 20_480


# Parts of one's own


class Net(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.size)(nn.LayerNorm()(nn.tanh(nn.Dense(5)(x))))


def mine(config):
    """Networks that no config names."""
    algorithm = jaxpg.build(config)
    policy, critic, obs = Net(2), Net(1), jnp.zeros(4)
    networks = Networks(
        init=lambda key, key_value: {
            "policy": policy.init(key, obs),
            "value": critic.init(key_value, obs),
        },
        policy=lambda params, obs: policy.apply(params["policy"], obs),
        value=lambda params, obs: critic.apply(params["value"], obs)[..., 0],
    )
    return algorithm._replace(networks=networks)


def unsaveable(config):
    algorithm = mine(config)

    def init(*keys):
        return {"policy": (jnp.zeros(2),), "value": {"of.it": algorithm.networks.init(*keys)}}

    def policy(params, obs):
        return jnp.broadcast_to(params["policy"][0], (*obs.shape[:-1], 2))

    def value(params, obs):
        return algorithm.networks.value(params["value"]["of.it"], obs)

    networks = algorithm.networks._replace(init=init, policy=policy, value=value)
    return algorithm._replace(networks=networks)


def test_parts_of_ones_own(tmp_path, capsys):
    """They are saved, shown, compared and continued; where they are in no module, that is said."""
    out = tmp_path / "run"
    memory = jaxpg.train_population(TINY, SEEDS, lanes=2, build=mine)
    assert_same(memory, jaxpg.train_population(TINY, SEEDS, lanes=2, build=mine, out=out))
    memory.save(tmp_path / "saved")
    name = f"{__name__}:mine"
    for directory in (out, tmp_path / "saved"):
        loaded = jaxpg.load(directory)
        assert_same(memory, loaded.population)
        assert loaded.manifest.build == name
    main(["report", str(out)])
    main(["compare", str(out), str(tmp_path / "saved")])
    obs = np.ones((3, 4), np.float32)
    acted = memory.policy(9, algorithm=mine(TINY)).act(obs)
    for policy in (
        loaded.policy(9, algorithm=mine(TINY)),
        jaxpg.load(out, build=mine).policy(9),
        jaxpg.load(out, build=lambda config: mine(config), changed_algorithm=True).policy(9),
    ):
        np.testing.assert_array_equal(acted, policy.act(obs))
    with pytest.raises(RunError, match=f"begun with the algorithm of {name}, and this is that of"):
        jaxpg.load(out, build=lambda config: jaxpg.build(config))
    for whole in (loaded, memory):
        with pytest.raises(RunError, match=f"parts of your own \\({name}\\)"):
            whole.policy(9)
    assert f"--algorithm {name}" in reproduce.commands(loaded.manifest)[0]
    nowhere = loaded.manifest._replace(build="__main__:mine")
    assert reproduce.commands(nowhere)[0].startswith("# ")
    (out / "summary.json").unlink()
    with pytest.raises(RunError, match="build: "):
        jaxpg.train_population(TINY, SEEDS, out=out)
    assert_same(memory, jaxpg.train_population(TINY, SEEDS, build=mine, out=out))
    (out / "summary.json").unlink()
    for directory in (out, tmp_path / "saved"):
        manifests.write(directory, nowhere)
    for command in (
        ["resume", out],
        ["extend", out, "--total-steps", 10**6],
        ["merge", out, "--out", tmp_path / "merged"],
        ["retrace", out, "--seed", 9, "--out", tmp_path / "again"],
        ["evaluate", tmp_path / "saved"],
        ["render", tmp_path / "saved"],
        ["export", tmp_path / "saved", "--to", "torch", "--changed-algorithm"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(word) for word in command])
        assert exit_.value.code == 2
        assert (
            "the algorithm of __main__:mine, which no command can import" in capsys.readouterr().err
        )


def test_parameters_that_no_file_can_hold_are_refused_before_training(tmp_path):
    with pytest.raises(RunError, match="can be saved if they are arrays in dicts"):
        jaxpg.train_population(TINY, SEEDS, lanes=2, build=unsaveable, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_grid_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="jaxpg sweep keeps it"):
        jaxpg.train_grid(TINY, SEEDS, {"gamma": [0.5]}, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="settings are of one run: those of a grid are made of"):
        jaxpg.train_grid(TINY, [1], {"gamma": [0.9]}, settings=[{}])


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"conv_features": [(), (2,)]}, "conv_features needs an environment that observes"),
        ({"squash": [False, True]}, "squash needs continuous actions"),
        ({"env": ["CartPole-v1", "Nix-v0"]}, "unknown environment 'Nix-v0'"),
    ],
)
def test_a_point_without_meaning_is_refused_before_the_first_is_trained(grid, said, monkeypatch):
    monkeypatch.setattr(population, "train_rows", None)
    with pytest.raises(ConfigError, match=said):
        jaxpg.train_grid(TINY, SEEDS, grid)


def test_it_says_what_was_trained(memory):
    what = memory.manifest
    assert (what.preset, what.config, what.seeds, what.lanes) == ("custom", TINY, SEEDS, 2)
    assert what.bits == manifests.BITS
    assert json.dumps(memory.summary, allow_nan=False)
    assert memory.summary["seeds"] == 5


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="notes"):
        jaxpg.train_population(TINY, SEEDS, out=tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"config": "ppo"}, r"config must be a Config, as preset\('ppo'\) is; got 'ppo'"),
        ({"settings": {"gamma": 0.9}}, r"settings must be mappings, as .*; got {'gamma': 0.9}"),
        ({"settings": None}, r"settings must be mappings, as .*; got None"),
        ({"settings": 3}, r"settings must be mappings, as .*; got 3"),
        (
            {"build": jaxpg.build(TINY)},
            r"build must be a function .* of a config, .* one Algorithm",
        ),
        ({"start_from": {"policy": 0}}, r"start_from must be a finished run, .*; got dict"),
        ({"settings": ["gamma"]}, r"settings must be mappings, as .*; got \['gamma'\]"),
        ({"settings": iter(())}, "settings must be at least one; got none"),
        ({"lanes": 2.0}, "lanes must be an integer; got 2.0"),
        ({"segments": 2.5}, "segments must be an integer; got 2.5"),
    ],
)
def test_slips_in_python_get_a_sentence(changed, sentence, tmp_path):
    given = {"config": jaxpg.preset("vpg"), "seeds": [0], "out": tmp_path / "run", **changed}
    with pytest.raises(ConfigError, match=sentence):
        jaxpg.train_population(**given)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_numbers():
    """A manifest of them is the text that Python's give."""
    config = dataclasses.replace(jaxpg.preset("vpg"), total_steps=4096)
    settings = ({"gamma": x} for x in np.array([0.9, 0.99]))
    ours = planning.plan("vpg", config, [0], np.int64(4), settings, np.int32(2))
    theirs = planning.plan("vpg", config, [0], 4, [{"gamma": 0.9}, {"gamma": 0.99}], 2)
    assert manifests.text(ours) == manifests.text(theirs)
