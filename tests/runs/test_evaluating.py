"""Runs that are evaluated while they train: stopped, extended, reported and tracked."""

import dataclasses
import json
import re

import numpy as np
import pytest

import jaxpg
from jaxpg import words
from jaxpg.analysis.stats import iqm
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import RunError, Stopped
from jaxpg.population.evaluations import Evaluations
from jaxpg.report import page
from jaxpg.runs import edit, manifests, reproduce, results, run, track
from tests.compare import assert_same
from tests.runs.test_loading import change_arrays

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = Config(
    num_envs=3, num_steps=24, total_steps=72 * 6, hidden_sizes=(6,), lr_schedule="constant"
)
HOW = {"evaluate_every": 144, "evaluate_episodes": 2, "lanes": 2}
SEEDS = [2, 9, 4]


@pytest.fixture(scope="module")
def memory():
    return jaxpg.train_population(TINY, SEEDS, **HOW)


@pytest.mark.as_users_run(1)
@pytest.mark.parametrize("reports", [1, 4])
def test_stopped_it_goes_on_to_the_same_evaluations(memory, tmp_path, stop_after, reports):
    """After the first segment; and between two evaluations of the second chunk."""
    how = {**HOW, "out": tmp_path / "run"}
    with pytest.raises(Stopped):
        jaxpg.train_population(TINY, SEEDS, **how, report=stop_after(reports))
    run.train(tmp_path / "run", stall_seconds=600.0)
    assert_same(jaxpg.load(tmp_path / "run").population, memory)


@pytest.mark.as_users_run(1)
def test_extended_it_is_what_had_the_budget_from_the_start(memory, tmp_path):
    short = dataclasses.replace(TINY, total_steps=72 * 4)
    directory = tmp_path / "run"
    jaxpg.train_population(short, SEEDS, **HOW, out=directory)
    with pytest.raises(ConfigError, match="evaluate_every must divide total_steps, 360"):
        edit.extend(directory, 72 * 5, None)
    edit.extend(directory, 72 * 6, None)
    run.train(directory, stall_seconds=600.0)
    assert_same(jaxpg.load(directory).population, memory)


def test_another_way_to_evaluate_is_another_run(memory, tmp_path):
    memory.save(tmp_path / "run")
    other = {**HOW, "evaluate_episodes": 3}
    with pytest.raises(RunError, match=r"of something else \(evaluating: .*episodes=2.*episodes=3"):
        jaxpg.train_population(TINY, SEEDS, **other, out=tmp_path / "run")
    path = tmp_path / "run" / manifests.NAME
    fields = json.loads(path.read_text())
    fields["evaluating"]["every"] = 145
    path.write_text(json.dumps(fields))
    with pytest.raises(RunError, match=r"damaged, or of another version.*evaluate_every must div"):
        manifests.read(tmp_path / "run")


def test_by_command_with_a_report(memory, tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--num-envs", "3", "--num-steps", "24", "--hidden-sizes", "6", "--total-steps", "432"]
    small += ["--lr-schedule", "constant", "--seeds", "2,9,4", "--lanes", "2"]
    how = ["--evaluate-every", "144", "--evaluate-episodes", "2"]
    main(["train", "vpg", *small, *how, "--out", str(out)])
    assert_same(jaxpg.load(out).population, memory)
    said = json.loads((out / "summary.json").read_text())["evaluations"]
    assert (
        f"evaluated at its end: IQM {said['greedy']['last']['iqm']:.1f}" in capsys.readouterr().out
    )
    text = (out / page.NAME).read_text()
    assert 'id="evaluations"' in text
    last = words.returned(said["greedy"]["last"]["iqm"])
    assert re.search(rf"greedy at the end, IQM.*?{last}", text, re.S)  # in numbers, too
    assert (out / "figures" / "evaluations.svg").exists()
    (again,) = reproduce.commands(manifests.read(out))
    assert "--evaluate-every 144 --evaluate-episodes 2" in again


def test_the_best_evaluation_is_that_with_the_largest_iqm(memory):
    """After 2 of 6 updates greedily, sampled at the end; each seed is alike."""
    update = np.array([0, 2, 6], np.int32)
    greedy, sampled = (np.tile(means, (3, 1)) for means in ([1.0, 9.0, 5.0], [1.0, 5.0, 9.0]))
    found = results.evaluations(
        TINY, memory._replace(evaluations=Evaluations(update, greedy, sampled))
    )
    at = {(mode, name): (one["at"], one["iqm"])
          for mode, both in found.items() for name, one in both.items()}  # fmt: skip
    assert at == {
        ("greedy", "last"): (6 * 72, 5.0),
        ("greedy", "best"): (2 * 72, 9.0),
        ("sampled", "last"): (6 * 72, 9.0),
        ("sampled", "best"): (6 * 72, 9.0),
    }


def test_evaluations_at_other_updates_than_the_manifest_says_are_refused(memory, tmp_path):
    memory.save(tmp_path / "run")
    change_arrays(evaluated_at=lambda update: update + 1)(tmp_path / "run")
    with pytest.raises(RunError, match=r"results\.npz was evaluated otherwise than the manifest"):
        jaxpg.load(tmp_path / "run")


def test_trackers_are_told(memory, tmp_path):
    told = []
    jaxpg.train_population(TINY, SEEDS, **HOW, report=told.append)
    memory.save(tmp_path / "run")
    loaded = jaxpg.load(tmp_path / "run")
    results = list(track._results(loaded, after=0))
    later = list(track._results(loaded, after=2))
    for mode in ("greedy", "sampled"):
        newest = float(iqm(getattr(memory.evaluations, mode)[:, -1]))
        live = track._progress(told[-1])[f"progress/{mode}_return_iqm"]
        assert live == pytest.approx(newest, rel=1e-6)
        last = loaded.summary["evaluations"][mode]["last"]["iqm"]
        assert results[-1][1][f"final/{mode}_return_last"] == last
        assert last == pytest.approx(newest, rel=1e-6)
        tag = f"curve/{mode}_return_iqm"
        curve = {step: values[tag] for step, values in results if tag in values}
        assert sorted(curve) == [0, 144, 288, 432]
        assert curve[432] == pytest.approx(last)
        assert [step for step, values in later if tag in values] == [288, 432]


def test_a_tracker_is_told_nothing_of_who_has_diverged(memory):
    """As live returns are told; what it counts with is known at the end."""
    told = []
    jaxpg.train_population(TINY, SEEDS, **HOW, report=told.append)
    loss = told[-1].metrics.policy_loss.copy()
    loss[0] = np.nan
    at = told[-1]._replace(metrics=told[-1].metrics._replace(policy_loss=loss))
    others = memory.evaluations.greedy[1:, -1]
    assert track._progress(at)["progress/greedy_return_iqm"] == pytest.approx(float(iqm(others)))
    nobody = at._replace(metrics=at.metrics._replace(policy_loss=np.full_like(loss, np.nan)))
    assert "progress/greedy_return_iqm" not in track._progress(nobody)


def test_a_tracker_is_told_of_one_seed_what_there_is(tmp_path):
    """It has no interval."""
    jaxpg.train_population(TINY, [3], lanes=2).save(tmp_path / "run")
    (*_, (_, last)) = track._results(jaxpg.load(tmp_path / "run"), after=0)
    assert "final/return_iqm" in last
    assert "final/return_ci95_low" not in last


def test_bad_options_get_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "vpg", "--evaluate-every", "7777", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "evaluate_every must divide total_steps, 500,000" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
