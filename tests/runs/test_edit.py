"""Runs made from runs: what a merged one knows of its parts, and where it is not made."""

from pathlib import Path

import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import Config
from jaxpg.errors import RunError
from jaxpg.runs import checkpoints, edit, manifests, run

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = Config(num_envs=3, num_steps=24, total_steps=72 * 2, hidden_sizes=(6,))


def trained(out, seeds):
    return jaxpg.train_population(TINY, seeds, lanes=2, out=out)


def test_a_merged_run_took_the_time_of_all(tmp_path):
    """And knows of every file with which a part of it went on."""
    parts = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    seconds = [trained(out, [seed]).wall_seconds for seed, out in enumerate(parts)]
    what = manifests.read(parts[1])
    manifests.write(parts[1], what._replace(made={**what.made, "former_sources": ["a" * 64]}))
    edit.merge(parts[:2], tmp_path / "two")
    edit.merge([tmp_path / "two", parts[2]], tmp_path / "three")
    summary = run.train(tmp_path / "three", stall_seconds=600.0)
    assert summary["wall_seconds"] == pytest.approx(sum(seconds), abs=0.01)
    assert manifests.read(tmp_path / "three").made["former_sources"] == ["a" * 64]


def test_a_damaged_checkpoint_is_no_reason_not_to_merge(tmp_path):
    """What it held is trained again; how long it took is not known."""
    trained(tmp_path / "a", [0])
    for path in (tmp_path / "a" / checkpoints.FOLDER).iterdir():
        path.write_bytes(b"?" * 100)
    assert checkpoints.seconds(tmp_path / "a") == 0.0
    edit.merge([tmp_path / "a"], tmp_path / "both")
    notes = []
    run.train(tmp_path / "both", stall_seconds=600.0, note=notes.append)
    assert any("is damaged" in note for note in notes)


def test_seeds_without_checkpoints_are_said_to_be_trained_anew(tmp_path, monkeypatch, capsys):
    jaxpg.train_population(TINY, [2], lanes=2).save(tmp_path / "saved")
    monkeypatch.setattr("jaxpg.cli.train.to_the_end", lambda *arguments: None)
    main(["merge", str(tmp_path / "saved"), "--out", str(tmp_path / "both")])
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'saved'} has no checkpoints: its seeds are trained from their start" in said
    )


def test_no_directory_is_made_where_the_process_stands(tmp_path, monkeypatch):
    trained(tmp_path / "a", [0])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RunError, match="--out cannot be the working directory"):
        edit.merge([tmp_path / "a"], Path())
