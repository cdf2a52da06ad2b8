"""Runs that start from a finished run: whose parameters, and that nobody needs that run again."""

import dataclasses
import json
import shutil

import handmade
import jax
import numpy as np
import pytest

import jaxpg
from jaxpg.analysis import outcomes
from jaxpg.cli.main import main
from jaxpg.cli.show import describe
from jaxpg.cli.train import say_of_another_env
from jaxpg.core import arithmetic, noise
from jaxpg.core.config import Config
from jaxpg.errors import RunError, Stopped
from jaxpg.policies import render
from jaxpg.population import chunks, population
from jaxpg.report import page
from jaxpg.runs import edit, manifests, reproduce, results, run, starts
from jaxpg.runs.retrace import retrace
from tests.compare import assert_same

pytestmark = pytest.mark.usefixtures("programs_kept")

FIRST = Config(
    num_envs=3, num_steps=24, total_steps=72 * 2, hidden_sizes=(6,), lr_schedule="constant",
    normalize_obs=True, env_params={"gravity": 9.8},
)  # fmt: skip
THEN = dataclasses.replace(FIRST, total_steps=72 * 5, env_params={"gravity": 12.0})


@pytest.fixture(scope="module")
def first():
    return jaxpg.train_population(FIRST, [2, 9, 4, 0, 5], lanes=2)


@pytest.fixture
def origin(first, tmp_path):
    first.save(tmp_path / "first")
    return tmp_path / "first"


@pytest.fixture(scope="module")
def then(first):
    """Seeds in another order than there, in memory."""
    return jaxpg.train_population(THEN, [9, 5, 2], lanes=2, start_from=first)


def test_who_starts_from_the_diverged_is_told(tmp_path, capsys):
    """Their parameters are the last finite ones, which may be as large as there are."""
    gone = jaxpg.train_population(
        dataclasses.replace(FIRST, learning_rate=1e30), [9, 5], lanes=2, out=tmp_path / "gone"
    )
    assert (gone.frozen_at >= 0).all()
    with pytest.warns(UserWarning, match=r"1 seed diverged in .*, the first of them seed 5: they"):
        jaxpg.train_population(THEN, [5], lanes=2, start_from=gone)
    main(["export", str(tmp_path / "gone"), "--seed", "5", "--to", "safetensors"])
    assert "seed 5 diverged in update" in capsys.readouterr().err


def test_each_seed_starts_from_its_own_parameters_and_all_else_is_new(first):
    given = starts.of_seeds(starts.of(first), [9, 5, 2])
    groups = population.make_chunks(THEN, [9, 5, 2], [{}], 2, start=given)
    (program,) = chunks.compile_programs(groups[0], 1, 1)
    for group, rows in zip(groups, ([1, 4], [0, 0]), strict=True):  # the last is padding
        state = chunks.start(program, group).state
        wanted = jax.tree.map(lambda x, at=rows: x[at], first.params)
        jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
        assert (state.params["obs"]["count"] > 100).all()  # moments are carried on
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state))
        assert (np.asarray(state.update) == 0).all()


def test_its_noise_is_neither_the_first_runs_nor_that_of_another_start(first):
    """What a policy has been fitted to is not what it is trained with again."""

    def keys(word):
        if word is None:
            return np.asarray(jax.random.key_data(noise.keys([9, 5, 2])))
        given = starts.of_seeds(starts.of(first), [9, 5, 2])._replace(word=word)
        (group,) = population.make_chunks(THEN, [9, 5, 2], [{}], 3, start=given)
        return group.keys

    some = np.concatenate([keys(None), keys(0), keys(1), keys(2**32 - 1)])
    assert len(np.unique(some, axis=0)) == len(some)
    np.testing.assert_array_equal(keys(7), keys(7))


def test_untrained_is_who_was_before_the_first_run(first, then, tmp_path):
    """Else a seed that diverges in the second would count as what was trained in the first."""
    untrained = outcomes.untrained_return(first)
    second = jaxpg.train_population(FIRST, [9, 5, 2], lanes=2, start_from=first)
    assert second.manifest.start[3:] == ("CartPole-v1 with gravity=9.8", None, untrained)
    second.save(tmp_path / "second")
    again = jaxpg.load(tmp_path / "second").population
    third = jaxpg.train_population(FIRST, [9, 5], lanes=2, start_from=tmp_path / "second")
    for one in (second, again, third):
        assert outcomes.untrained_return(one) == untrained
        gone = one._replace(frozen_at=np.full(len(one.seeds), 1, np.int32))
        assert (outcomes.scores(gone) <= untrained).all()
    own = then._replace(manifest=then.manifest._replace(start=None))  # of another gravity
    assert outcomes.untrained_return(then) == outcomes.untrained_return(own) != untrained


@pytest.mark.parametrize(("name", "other"), [("activation", "tanh"), ("squash", True)])
def test_parameters_that_would_mean_something_else_are_refused(first, name, other):
    """Though the shapes are the same: one of one's own may have jaxpg's networks, too."""
    start, config = starts.of(first), dataclasses.replace(THEN, **{name: other})
    said = rf"has {name}={getattr(THEN, name)!r}, and this config {other!r}: .* another policy"
    for build in (jaxpg.build, lambda config: jaxpg.build(config)):
        with pytest.raises(RunError, match=said):
            starts.check(start, config, [5], build)
        with pytest.raises(RunError, match=said):
            starts.check(start._replace(build="mine:build"), config, [5], build)


def test_an_untrained_return_that_nobody_saw_is_not_known(tmp_path):
    """Nor is that of the same environment from another file."""
    silent = jaxpg.load(handmade.run(tmp_path / "silent", np.full((3, 4), np.nan)))
    assert starts.of(silent.population).origin.untrained is None
    heard = jaxpg.load(handmade.run(tmp_path / "heard", np.full((3, 4), 9.0)))
    origin = starts.of(heard.population).origin
    assert (origin.untrained, origin.env_sha256) == (9.0, None)
    later = handmade.population(heard.config, np.full((3, 4), 70.0))
    for sha256, wanted in ((None, 9.0), ("a" * 64, 70.0)):
        what = heard.manifest._replace(start=origin._replace(env_sha256=sha256))
        assert outcomes.untrained_return(later._replace(manifest=what)) == wanted


def test_it_starts_on_its_grid():
    """Where the parameters that it is given were not rounded to it."""
    config = dataclasses.replace(FIRST, arithmetic="float64", total_steps=72)
    wide = jaxpg.train_population(config, [9, 5], lanes=2)
    config = dataclasses.replace(config, arithmetic="float24_grid")
    (group,) = population.make_chunks(
        config, [9, 5], [{}], 2, start=starts.of_seeds(starts.of(wide), [9, 5])
    )
    (program,) = chunks.compile_programs(group, 1, 1)
    given = jax.tree.map(lambda x: x[:2], group.params)
    with jax.enable_x64(True):
        wanted = arithmetic.round_floats(given, config.grid_bits)
    found = chunks.start(program, group).state.params
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_what_it_is_told_of_learning_knows_the_start(tmp_path):
    flat = np.full((4, 40), 20.0) + np.tile([0.0, 1.0], 20)
    one = jaxpg.load(handmade.run(tmp_path / "one", flat))
    assert "has learnt" in outcomes.learning(one.config, one.population).warning
    what = one.manifest._replace(start=starts.of(one.population).origin)
    summary = results.summarize(what, one.population)
    assert "is better than what it started from" in summary["learning"]["warning"]


@pytest.mark.parametrize("order", [(9.8, 12.0), (12.0, 9.8)])
def test_a_setting_is_untrained_where_its_own_environment_is_that_of_before(first, order):
    """Whichever comes first; the other's policies were trained before, in another world."""
    settings = [{"env.gravity": gravity} for gravity in order]
    how = {"evaluate_every": 72, "evaluate_episodes": 2, "start_from": first}
    found = jaxpg.train_population(FIRST, [9, 5], lanes=2, settings=settings, **how)
    before = first.manifest
    assert before.start is None
    untrained = outcomes.untrained_return(first)
    for setting, gravity in enumerate(order):
        part = outcomes.select(found, np.flatnonzero(found.setting == setting))
        sampled = float(part.evaluations.sampled[:, 0].mean(dtype=np.float64))
        wanted = untrained if gravity == 9.8 else sampled
        assert outcomes.untrained_return(part) == wanted != (sampled + untrained) / 2
    gone = found._replace(frozen_at=np.zeros(4, np.int32))
    seen = outcomes.evaluated(gone)
    for setting, gravity in enumerate(order):
        rows = found.setting == setting
        first_ones = found.evaluations.sampled[rows, 0].mean(dtype=np.float64)
        wanted = untrained if gravity == 9.8 else first_ones
        assert (seen.sampled[rows, -1] == wanted).all()


def test_other_actions_are_refused(first, monkeypatch):
    """Though as many outputs are needed: a logit of each would be a mean and a log σ."""
    start, usual = starts.of(first), starts.fast.build
    spec = usual(THEN).env.spec

    def build(config):
        algorithm = usual(config)
        other = spec._replace(discrete=False, num_actions=1) if config is THEN else spec
        return algorithm._replace(env=algorithm.env._replace(spec=other))

    monkeypatch.setattr(starts.fast, "build", build)
    monkeypatch.setattr(starts.own, "source", lambda build: None)  # it is jaxpg's all the same
    with pytest.raises(RunError, match=r"trained where discrete of .* is True, .* it is False"):
        starts.check(start, THEN, [5], usual)
    starts.check(start, FIRST, [5], usual)


def test_a_sweep_says_which_of_its_points_are_elsewhere(first, capsys):
    start, point = starts.of(first), {"gamma": 0.9}
    say_of_another_env(start, FIRST, [point, {"env.gravity": 9.8}])
    assert not capsys.readouterr().err
    say_of_another_env(start, FIRST, [{"env.gravity": x} for x in (5.0, 9.8, 20.0)])
    wanted = "with gravity=9.8, and this is CartPole-v1 with gravity=5.0 and 1 more"
    assert wanted in capsys.readouterr().err


def test_settings_all_start_there(first, then):
    found = jaxpg.train_population(
        THEN, [5], lanes=2, settings=[{"gamma": 0.9}, {"gamma": THEN.gamma}], start_from=first
    )
    row = jax.tree.map(lambda x: x[1], found.params)
    jax.tree.map(np.testing.assert_array_equal, row, jax.tree.map(lambda x: x[1], then.params))


def test_stopped_and_retraced_without_the_first_run(origin, first, then, tmp_path, stop_after):
    """To the bits of what was never stopped; the run has a copy of what it needs."""
    directory = tmp_path / "then"
    again = {"lanes": 2, "out": directory}
    with pytest.raises(Stopped):
        jaxpg.train_population(THEN, [9, 5, 2], start_from=origin, report=stop_after(1), **again)
    assert_same(jaxpg.train_population(THEN, [9, 5, 2], start_from=first, **again), then)
    shutil.rmtree(origin)
    said = retrace(directory, 5, 0, None, tmp_path / "again")
    assert "5 could be compared with the run, and all are equal to the bit" in said
    run.train(directory, stall_seconds=600.0)
    edit.extend(directory, 72 * 6, None)
    run.train(directory, stall_seconds=600.0)
    longer = dataclasses.replace(THEN, total_steps=72 * 6)
    whole = jaxpg.train_population(longer, [9, 5, 2], lanes=2, start_from=first)
    assert_same(jaxpg.load(directory).population, whole)


def test_what_it_says_of_where_it_started(origin, first, tmp_path, capsys):
    directory = tmp_path / "then"
    small = ["--num-envs", "3", "--num-steps", "24", "--hidden-sizes", "6", "--normalize-obs"]
    line = ["train", "vpg", *small, "--total-steps", "144", "--env-params", "gravity=12"]
    line += ["--seeds", "9,5", "--lanes", "2", "--from", str(origin), "--out", str(directory)]
    main(line)
    said = json.loads((directory / "manifest.json").read_text())["start"]
    assert said["run"] == str(origin)
    assert said["manifest"] == manifests.sha256(origin)
    assert (directory / starts.NAME).read_bytes() == (origin / "params.safetensors").read_bytes()
    assert f", from {origin}, seeds 9,5: finished" in describe(directory)
    assert manifests.sha256(origin) in (directory / page.NAME).read_text()
    (again,) = reproduce.commands(manifests.read(directory))
    assert f"--from {origin}" in again
    capsys.readouterr()
    main(line)  # the same line finds it finished
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([word for word in line if word not in ("--from", str(origin))])
    assert ended.value.code == 2
    assert "is a run of something else (start: '" in capsys.readouterr().err
    loaded = jaxpg.load(directory)
    acting = render.Acting(loaded.config, "sampled", None)
    before = render.first_params(loaded, acting, [9, 5])
    wanted = jax.tree.map(lambda x: x[[1, 4]], first.params)
    jax.tree.map(np.testing.assert_array_equal, before, wanted)
    for save in (loaded.save, loaded.population.save):
        save(tmp_path / save.__self__.__class__.__name__)
        kept = jaxpg.load(tmp_path / save.__self__.__class__.__name__)
        assert kept.population.start == loaded.population.start


def test_it_is_said_that_what_it_starts_from_was_trained_elsewhere(capsys):
    """The shapes agree, and may mean anything."""
    config = dataclasses.replace(FIRST, env="CartPole-v1", normalize_obs=False, env_params={})
    trained = jaxpg.train_population(config, [9], lanes=2)
    what = trained.manifest._replace(config=dataclasses.replace(config, env="Pendulum-v1"))
    origin = starts.of(trained._replace(manifest=what))
    say_of_another_env(origin, config)
    assert capsys.readouterr().err == (
        "jaxpg: the population that it starts from was trained on Pendulum-v1, and this is "
        "CartPole-v1\n"
    )
    say_of_another_env(origin, what.config)
    say_of_another_env(None, config)
    heavier = starts.of(jaxpg.train_population(THEN, [9], lanes=2))
    say_of_another_env(heavier, dataclasses.replace(THEN, env_params={"gravity": 12}))
    assert capsys.readouterr().err == ""


def test_in_memory_it_can_be_saved_and_continued(then, tmp_path):
    then.save(tmp_path / "saved")
    assert jaxpg.load(tmp_path / "saved").manifest.start.run is None
    assert "from a population in memory" in describe(tmp_path / "saved")
    edit.extend(tmp_path / "saved", 72 * 5 + 1, None)  # no update more, and no checkpoints
    run.train(tmp_path / "saved", stall_seconds=600.0)
    assert_same(jaxpg.load(tmp_path / "saved").population, then)


@pytest.mark.parametrize(
    ("change", "seeds", "words"),
    [
        ({}, [9, 3], "has no seed 3, and every seed starts from its own there; its seeds are"),
        ({"hidden_sizes": (7,)}, [9], r"policy.hidden_0.bias is float32 \[6\] there, and here "
         r"float32 \[7\]"),
        ({"normalize_obs": False}, [9], r"obs.count is float32 \[\] there, and here missing"),
        ({"env": "Acrobot-v1", "env_params": {}}, [9], "other networks than this config: obs.mean"),
    ],
)  # fmt: skip
def test_what_cannot_start_there_is_refused(first, tmp_path, change, seeds, words):
    config = dataclasses.replace(THEN, **change)
    for out in (None, tmp_path / "new"):
        with pytest.raises(RunError, match=words):
            jaxpg.train_population(config, seeds, lanes=2, start_from=first, out=out)
    assert not (tmp_path / "new").exists()


def test_where_nobody_can_start_is_refused(first, origin, tmp_path):
    several = jaxpg.train_population(
        FIRST, [2], lanes=2, settings=[{"gamma": 0.9}, {"gamma": 0.8}], segments=2
    )
    with pytest.raises(RunError, match="has 2 settings, and a run starts from the seeds of one"):
        jaxpg.train_population(THEN, [2], start_from=several)
    with pytest.raises(RunError, match="its manifest is None"):
        jaxpg.train_population(THEN, [2], start_from=first._replace(manifest=None))
    with pytest.raises(RunError, match="is not a run"):
        jaxpg.train_population(THEN, [2], start_from=tmp_path)
    jaxpg.train_population(FIRST, [2], lanes=2, start_from=origin, out=tmp_path / "run")
    copy = tmp_path / "run" / starts.NAME
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=r"start\.safetensors is damaged: it has not the SHA-256"):
        jaxpg.load(tmp_path / "run")
    copy.unlink()
    with pytest.raises(RunError, match=r"start\.safetensors cannot be read"):
        jaxpg.load(tmp_path / "run")


def test_merged_runs_have_one_start(origin, first, then, tmp_path):
    for name, seeds in (("a", [9, 5]), ("b", [2])):
        jaxpg.train_population(THEN, seeds, lanes=2, start_from=origin, out=tmp_path / name)
    edit.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    run.train(tmp_path / "both", stall_seconds=600.0)
    assert_same(jaxpg.load(tmp_path / "both").population, then)
    jaxpg.train_population(THEN, [4], lanes=2, out=tmp_path / "c")
    with pytest.raises(RunError, match="differ in more than their seeds: start: "):
        edit.merge([tmp_path / "a", tmp_path / "c"], tmp_path / "none")


def test_a_run_that_was_killed_as_it_began_begins(origin, tmp_path):
    """It may have its start already, and no manifest."""
    (tmp_path / "run").mkdir()
    shutil.copyfile(origin / "params.safetensors", tmp_path / "run" / starts.NAME)
    jaxpg.train_population(FIRST, [2], lanes=2, start_from=origin, out=tmp_path / "run")
