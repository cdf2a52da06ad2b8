"""Runs that earlier versions wrote: what is finished stays of use, what is not is told apart.

They are looked at as by a version after this one, whose seeds become other bits.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import Config
from jaxpg.errors import RunError
from jaxpg.runs import checkpoints, directories, edit, manifests, planning, retrace
from jaxpg.runs.results import FILES

pytestmark = pytest.mark.usefixtures("programs_kept")

DATA = Path(__file__).parents[1] / "data" / "runs-1"
FINISHED = ("steps", "sweep/1-all")


@pytest.fixture(autouse=True)
def other_bits(monkeypatch):
    monkeypatch.setattr(manifests, "BITS", manifests.BITS + 1)


@pytest.fixture
def older(tmp_path):
    """Copies of them all, to be written into."""
    return shutil.copytree(DATA, tmp_path / "older")


def said(capsys, *words) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_loads_as_it_was(name):
    loaded = jaxpg.load(DATA / name)
    assert loaded.manifest.bits == 1
    assert loaded.manifest.made["commit"] == "606ebc2b1710"
    finals = loaded.population.final_return
    spread = loaded.summary["final_return"]
    assert (finals.min(), finals.max()) == pytest.approx((spread["min"], spread["max"]), abs=1e-4)
    assert len(loaded.to_frame()) == len(finals) * loaded.config.num_updates
    size = len(loaded.params("best", setting=0)["policy"]["hidden_0"]["bias"])
    assert (
        loaded.policy("best", setting=0).act(np.ones(4 if name == "steps" else 3)).dtype.kind
        in "if"
    )
    assert (size,) == loaded.config.hidden_sizes


def test_it_acts_as_it_did():
    """Its network by hand: relu(W x + b), then the larger of two logits."""
    loaded = jaxpg.load(DATA / "steps")
    obs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    layers = loaded.params(2)["policy"]
    hidden = np.maximum(obs @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"], 0)
    logits = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    np.testing.assert_array_equal(loaded.policy(2).act(obs), logits.argmax(axis=1))


@pytest.mark.parametrize("name", FINISHED)
def test_it_is_finished(older, capsys, name):
    assert "finished" in said(capsys, "status", older / name)
    assert "is finished" in said(capsys, "resume", older / name, "--no-report")
    manifest_ = manifests.read(older / name)
    directories.begin(older / name, manifest_)  # as the line that made it does, given again


@pytest.mark.parametrize("name", [*FINISHED, "sweep"])
def test_it_is_reported(older, capsys, name):
    assert "report.html" in said(capsys, "report", older / name)
    assert (older / name / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", FINISHED)
def test_it_is_evaluated_and_exported(older, capsys, name):
    numbers = older / "evaluation.json"
    options = ("--episodes", 2, "--gymnasium-seeds", 0, "--setting", 0, "--json", numbers)
    said(capsys, "evaluate", older / name, *options)
    results = json.loads(numbers.read_text())["results"]
    assert [len(one["seeds"]) for one in results] == [len(jaxpg.load(older / name).seeds)] * 2
    said(
        capsys,
        "export",
        older / name,
        "--to",
        "torch",
        "--setting",
        0,
        "--out",
        older / "policy.pt",
    )
    assert (older / "policy.pt").stat().st_size > 500


def test_it_is_compared(older, capsys):
    again = shutil.copytree(older / "steps", older / "again")
    assert "0 seeds" not in said(capsys, "compare", older / "steps", again)
    assert "learning_rate=0.01" in said(capsys, "compare", older / "sweep/1-all")


def test_an_unfinished_one_is_not_continued_to_other_bits(older, capsys, tmp_path):
    directory = older / "unfinished"
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert "not finished" in said(capsys, "status", directory)
    sentence = "unfinished was begun by jaxpg 0.1.0, commit 606ebc2b1710"
    with pytest.raises(SystemExit) as exit_:
        main(["resume", str(directory)])
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(RunError, match=sentence):
        edit.extend(directory, 10_000, None)
    with pytest.raises(RunError, match=sentence):
        edit.merge([directory], tmp_path / "merged")
    with pytest.raises(RunError, match=sentence):
        retrace.retrace(directory, 0, 0, 0, tmp_path / "again")
    assert not (tmp_path / "merged").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_new_run_says_its_bits(tmp_path):
    config = Config(num_envs=2, num_steps=8, total_steps=16)
    directories.begin(tmp_path / "run", planning.plan("vpg", config, [0], 2))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["bits"] == manifests.BITS
    assert manifests.read(tmp_path / "run").bits == manifests.BITS


def changed(path, **fields):
    content = json.loads((path / "manifest.json").read_text())
    for name, value in fields.items():
        (content["config"] if name == "config_field" else content)[name] = value
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("field", ["config_field", "field"])
def test_what_a_newer_version_wrote_is_not_called_damaged(older, field):
    changed(older / "steps", **{field: 1})
    with pytest.raises(RunError, match=f"made by a newer version of jaxpg: see '{field}'"):
        manifests.read(older / "steps")


def test_nor_is_a_choice_that_it_has(older):
    content = json.loads((older / "steps" / "manifest.json").read_text())
    content["config"]["estimator"] = "vtrace"
    (older / "steps" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="of another version of jaxpg: estimator is 'vtrace'"):
        manifests.read(older / "steps")


def test_a_field_that_config_gained_is_what_it_was_before(older, monkeypatch):
    """As if `optimizer` were new, and all had been trained by Adam until then."""
    content = json.loads((older / "steps" / "manifest.json").read_text())
    assert content["config"].pop("optimizer") == "adam"
    (older / "steps" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged: it lacks 'optimizer'"):
        manifests.read(older / "steps")
    monkeypatch.setitem(manifests.LATER, "optimizer", "adam")
    assert manifests.read(older / "steps") == manifests.read(DATA / "steps")
    (chunk,) = planning.make_chunks(manifests.read(older / "unfinished"))
    now = checkpoints.identity(chunk)
    monkeypatch.delitem(manifests.LATER, "optimizer")
    assert now != checkpoints.identity(chunk)  # its checkpoints are known again without the field


def test_they_are_whole():
    for name in FINISHED:
        assert all((DATA / name / file).exists() for file in FILES)
