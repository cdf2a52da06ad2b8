"""Trackers: what they are told is read back from their own files, also of a continued run."""

import json
import os
import shutil
import signal
import struct
import sys
from collections import defaultdict

import numpy as np
import pytest

import jaxpg
from jaxpg.analysis.stats import iqm
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import RunError, Stopped
from jaxpg.runs import run, track

CONFIG = Config(num_envs=4, num_steps=64, total_steps=256 * 8, hidden_sizes=(16,))


def interrupted(directory, kind):
    """A tracked run that was asked to stop after its second report."""
    run.begin(directory, run.plan("vpg", CONFIG, [2, 9, 4, 0, 5], 2))
    track.choose(directory, kind)
    seen = []
    with track.tracking(directory) as tell:

        def report(at):
            tell(at)
            seen.append(at)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            run.train(directory, report=report, stall_seconds=600.0)
    return directory


def reported(directory, name):
    lines = (directory / "progress.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def events(directory):
    """{tag: [(step, value)]} of all event files, as TensorBoard itself reads them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def check_against_results(directory, tags):
    """The tracker was told each report once, and the results of each seed."""
    assert len(reported(directory, "fraction")) > 2
    told = [value for _, value in tags["progress/fraction"]]
    np.testing.assert_allclose(told, reported(directory, "fraction"), rtol=1e-6)
    steps = [step for step, _ in tags["progress/fraction"]]
    assert steps == reported(directory, "env_steps")
    assert told[-1] == 1.0
    loaded = jaxpg.load(directory)
    population = loaded.population
    by_seed = dict(tags["seeds/final_return"])
    assert list(by_seed) == loaded.seeds
    np.testing.assert_allclose(list(by_seed.values()), population.final_return, rtol=1e-6)
    assert [value for _, value in tags["seeds/diverged"]] == [0.0] * 5
    (last,) = tags["final/return_iqm"]
    assert last == (8, pytest.approx(loaded.summary["final_return"]["iqm"], rel=1e-6))
    entropy = dict(tags["curve/entropy_mean"])
    assert sorted(entropy) == list(range(1, 9))
    assert entropy[3] == pytest.approx(population.metrics.entropy[:, 2].mean(), rel=1e-5)
    returns = dict(tags["curve/return_iqm"])
    metrics = population.metrics
    assert returns[8] == pytest.approx(
        float(iqm(metrics.return_sum[:, 7] / metrics.episodes[:, 7])), rel=1e-5
    )


def test_tensorboard_reads_a_continued_run_as_one(tmp_path):
    pytest.importorskip("tensorboardX")
    directory = interrupted(tmp_path / "run", "tensorboard")
    before = reported(directory, "fraction")
    assert before[-1] < 1.0
    main(["resume", str(directory)])
    check_against_results(directory, events(directory))
    count = len(list((directory / "tensorboard").iterdir()))
    main(["resume", str(directory)])  # finished, and logged
    assert len(list((directory / "tensorboard").iterdir())) == count


def test_a_finished_run_can_still_be_tracked(trained, tmp_path):

    pytest.importorskip("tensorboardX")
    directory = shutil.copytree(trained, tmp_path / "run")
    track.choose(directory, "tensorboard")
    track.log_results(directory)
    tags = events(directory)
    assert "progress/fraction" not in tags
    assert len(tags["seeds/final_return"]) == 5
    track.choose(directory, None)
    assert track.read(directory).kind == "tensorboard"
    track.choose(directory, "none")
    assert track.read(directory).kind == "none"


def wandb_records(content):
    """The records of a .wandb file, a LevelDB log: blocks of 32 KiB, records split over them."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:  # no room for a record's head
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_history(directory):
    """{tag: [(step, value)]} and run ids, of all offline files."""
    from wandb.proto import wandb_internal_pb2

    tags, ids = defaultdict(list), []
    paths = directory.glob("wandb/offline-run-*/*.wandb")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        for content in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                ids.append(record.run.run_id)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for tag, value in row.items():
                group = tag.split("/")[0]
                if group in track.AXES and "/" in tag:
                    tags[tag].append((row[track.AXES[group]], value))
    return tags, ids


def test_wandb_continues_its_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    directory = interrupted(tmp_path / "run", "wandb")
    main(["resume", str(directory)])
    tags, ids = wandb_history(directory)
    assert len(ids) >= 2
    assert set(ids) == {track.read(directory).id}
    check_against_results(directory, tags)


def test_unknown_and_missing_trackers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--track", "tensorbord"])
    assert exit_.value.code == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--track wandb needs wandb, which is not installed"):
        track.check("wandb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"kind": "x", "id": "", "manifest": null, "updates": 0}', "\xff"]
)
def test_a_damaged_file_gets_a_sentence(tmp_path, content):
    (tmp_path / "tracker.json").write_text(content)
    with pytest.raises(RunError, match=r"tracker\.json is damaged"), track.tracking(tmp_path):
        pass


def test_without_a_tracker_nothing_is_imported_or_written(tmp_path):
    sys.modules.pop("tensorboardX", None)
    with track.tracking(tmp_path) as tell:
        assert callable(tell)
    assert "tensorboardX" not in sys.modules
    assert not list(tmp_path.iterdir())
