"""Trackers: what they are told is read back from their own files, also of a continued run."""

import dataclasses
import gc
import json
import os
import resource
import shutil
import signal
import struct
import sys
import threading
from collections import defaultdict
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import jaxpg
from jaxpg.analysis.stats import iqm
from jaxpg.cli import launch
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import InUse, RunError, Stopped
from jaxpg.population.chunks import metric_names
from jaxpg.runs import directories, lock, manifests, planning, run, track

pytestmark = pytest.mark.usefixtures("programs_kept")

CONFIG = Config(num_envs=4, num_steps=64, total_steps=256 * 8, hidden_sizes=(16,))


def interrupted(directory, kind):
    """A tracked run that was asked to stop after its second report."""
    directories.begin(directory, planning.plan("vpg", CONFIG, [2, 9, 4, 0, 5], 2))
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
    """{tag: [(step, value)]} of all event files, as TensorBoard itself reads them.

    Of a histogram the value is how many it holds, their sum, and the sum of their squares.
    """
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    guidance = {"scalars": 0, "histograms": 0}
    accumulator = EventAccumulator(str(directory / "tensorboard"), size_guidance=guidance)
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]
    }
    histograms = {
        tag: [(e.step, sums(e.histogram_value)) for e in accumulator.Histograms(tag)]
        for tag in tags["histograms"]
    }
    return scalars | histograms


def sums(histogram):
    return histogram.num, histogram.sum, histogram.sum_squares


def check_against_results(directory, tags):
    """The tracker was told each report once, and the results; all by a seed's environment steps."""
    assert len(reported(directory, "fraction")) > 2
    told = [value for _, value in tags["progress/fraction"]]
    np.testing.assert_allclose(told, reported(directory, "fraction"), rtol=1e-6)
    steps = [step for step, _ in tags["progress/fraction"]]
    assert steps == [round(steps / 5) for steps in reported(directory, "env_steps")]
    assert told[-1] == 1.0
    loaded = jaxpg.load(directory)
    population = loaded.population
    for name in metric_names(CONFIG)[3:]:
        live = tags[f"progress/{name}"]
        assert [step for step, _ in live] == steps
        newest = getattr(population.metrics, name)[:, -1].mean()
        assert live[-1][1] == pytest.approx(newest, rel=1e-5)
    (last,) = tags["final/return_iqm"]
    assert last == (8 * 256, pytest.approx(loaded.summary["final_return"]["iqm"], rel=1e-6))
    entropy = dict(tags["curve/entropy_mean"])
    assert sorted(entropy) == [256 * update for update in range(1, 9)]
    assert entropy[3 * 256] == pytest.approx(population.metrics.entropy[:, 2].mean(), rel=1e-5)
    returns = dict(tags["curve/return_iqm"])
    metrics = population.metrics
    assert returns[8 * 256] == pytest.approx(
        float(iqm(metrics.return_sum[:, 7] / metrics.episodes[:, 7])), rel=1e-5
    )
    assert max(step for values in tags.values() for step, _ in values) == 8 * 256


def check_histogram(directory, values):
    """Of what seeds ended with, at the end of what each budget paid for."""
    final = jaxpg.load(directory).population.final_return.astype(float)
    step, (count, total, squares) = values[-1]
    assert (step, count) == (8 * 256, 5)
    assert (total, squares) == pytest.approx((final.sum(), (final**2).sum()), rel=1e-5)


def test_tensorboard_reads_a_continued_run_as_one(tmp_path):
    pytest.importorskip("tensorboardX")
    directory = interrupted(tmp_path / "run", "tensorboard")
    before = reported(directory, "fraction")
    assert before[-1] < 1.0
    main(["resume", str(directory)])
    tags = events(directory)
    check_against_results(directory, tags)
    check_histogram(directory, tags["seeds/final_return"])
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
    check_histogram(directory, tags["seeds/final_return"])
    assert len(tags["seeds/final_return"]) == 1
    track.choose(directory, None)
    assert track.read(directory).kind == "tensorboard"
    track.choose(directory, "none")
    assert track.read(directory).kind == "none"


def test_an_extended_run_adds_to_what_was_told(tmp_path):
    """Nothing is told twice: one histogram, one last value and one curve more."""
    pytest.importorskip("tensorboardX")
    constant = dataclasses.replace(CONFIG, lr_schedule="constant", total_steps=256 * 4)
    directory = tmp_path / "run"
    directories.begin(directory, planning.plan("vpg", constant, [2, 9, 4, 0, 5], 2))
    track.choose(directory, "tensorboard")
    main(["resume", str(directory), "--no-report"])
    main(["extend", str(directory), "--total-steps", str(256 * 8), "--no-report"])
    tags = events(directory)
    for tag, values in tags.items():
        steps = [step for step, _ in values]
        assert len(set(steps)) == len(steps), tag
    assert [step for step, _ in tags["seeds/final_return"]] == [4 * 256, 8 * 256]
    assert [step for step, _ in tags["final/diverged"]] == [4 * 256, 8 * 256]
    assert [step for step, _ in tags["curve/entropy_mean"]] == [256 * u for u in range(1, 9)]
    check_histogram(directory, tags["seeds/final_return"])


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
                if "/" in tag:
                    tags[tag].append((row[track.AXIS], value))
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


def test_a_full_disk_ends_the_tracker_alone(tmp_path):
    """Each report is in the file when it has been told; what has no room is an error there."""
    pytest.importorskip("tensorboardX")
    directory = tmp_path / "run"
    directories.begin(directory, planning.plan("vpg", CONFIG, [0], 2))
    track.choose(directory, "tensorboard")
    with track._open(directory, track.read(directory)) as log:
        log({"progress/fraction": 0.5}, 7)
        assert events(directory)["progress/fraction"] == [(7, 0.5)]  # before it is closed
        (path,) = (directory / "tensorboard").iterdir()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limit[1]))
            with pytest.raises(OSError, match="File too large"):
                log({"progress/fraction": 1.0}, 8)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("when", ["opened", "told", "closed"])
def test_a_tracker_that_hangs_is_told_nothing_more(when, tmp_path, monkeypatch, capsys):
    answer, silent = threading.Event(), threading.Event()
    told, closed = [], []

    @contextmanager
    def tracking(directory):
        if when == "opened":
            answer.wait()

        def tell(at):
            told.append(at)
            if when == "told" and len(told) == 2:
                answer.wait()

        try:
            yield tell
        finally:
            if when == "closed":
                answer.wait()
            closed.append(threading.current_thread())

    monkeypatch.setattr(track, "tracking", tracking)
    with launch._tracked(tmp_path, 0.2, silent) as tell:
        for at in range(4):
            tell(at)
    gc.collect()
    assert silent.is_set()
    assert not closed  # it would hang again
    assert told == {"opened": [], "told": [0, 1], "closed": [0, 1, 2, 3]}[when]
    answer.set()
    how = "could not be closed" if when == "closed" else "failed, and is told nothing more"
    said = f"its tracker {how} (NoAnswer: it has not answered for 0.2 s)"
    assert said in capsys.readouterr().err


def test_results_that_hang_are_given_up(tmp_path, monkeypatch, capsys):
    answer = threading.Event()
    monkeypatch.setattr(track, "log_results", lambda directory: answer.wait())
    monkeypatch.setattr(launch, "RESULTS_PATIENCE", 0.1)
    launch._log_results(tmp_path)
    answer.set()
    assert "could not be told the results (NoAnswer" in capsys.readouterr().err


def test_who_is_refused_changes_and_opens_no_tracker(trained, tmp_path, monkeypatch):
    """Of a run that another process trains: it would end what that one tells."""
    directory = shutil.copytree(trained, tmp_path / "run")
    (directory / "summary.json").unlink()  # as if it were not finished
    track.choose(directory, "tensorboard")
    before = (directory / track.NAME).read_bytes()
    with lock.locked(directory):
        with pytest.raises(InUse):
            track.choose(directory, "none")
        with pytest.raises(InUse):
            launch.to_the_end(directory, launch.Launch(report=False))
    assert (directory / track.NAME).read_bytes() == before
    assert not (directory / track.FOLDER).exists()


@pytest.mark.parametrize(
    "settings",
    [
        [{"learning_rate": 0.1, "env.gravity": 5.0}, {"learning_rate": 0.2}],
        [{"learning_rate": 0.1}],  # which is not the config's
    ],
)
def test_wandb_is_told_what_settings_share_and_the_settings(settings, tmp_path, monkeypatch):
    """The rows of all are one run there, which has not the learning rate of the first."""
    told = {}
    tracker = SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda: None)
    module = ModuleType("wandb")
    module.init = lambda **given: told.update(given) or tracker
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    plan = planning.plan("vpg", CONFIG, [0, 1], 2)._replace(settings=settings)
    manifests.write(tmp_path, plan)
    track.choose(tmp_path, "wandb")
    with track.tracking(tmp_path):
        pass
    assert told["config"]["settings"] == settings
    assert "learning_rate" not in told["config"]
    assert told["config"]["gamma"] == CONFIG.gamma


def test_what_a_tracker_raises_in_its_thread_is_said(tmp_path, monkeypatch, capsys):
    @contextmanager
    def tracking(directory):
        yield lambda at: 1 / 0

    monkeypatch.setattr(track, "tracking", tracking)
    with launch._tracked(tmp_path, 9.0, threading.Event()) as tell:
        tell(0)
    assert "is told nothing more (ZeroDivisionError: division by zero)" in capsys.readouterr().err


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


def test_a_file_of_a_newer_version_is_called_that(tmp_path):
    track.choose(tmp_path, "tensorboard")
    content = json.loads((tmp_path / "tracker.json").read_text())
    (tmp_path / "tracker.json").write_text(json.dumps(content | {"offline": True}))
    with pytest.raises(RunError, match="made by a newer version of jaxpg: see 'offline'"):
        track.read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"kind": "x", "id": "", "manifest": null, "updates": 0}', "\xff"]
)
def test_a_damaged_file_gets_a_sentence(tmp_path, content):
    (tmp_path / "tracker.json").write_text(content)
    with pytest.raises(RunError, match=r"tracker\.json is damaged"), track.tracking(tmp_path):
        pass
    track.choose(tmp_path, "none")  # as it is advised
    assert track.read(tmp_path).kind == "none"


def test_without_a_tracker_nothing_is_imported_or_written(tmp_path):
    sys.modules.pop("tensorboardX", None)
    with track.tracking(tmp_path) as tell:
        assert callable(tell)
    assert "tensorboardX" not in sys.modules
    assert not list(tmp_path.iterdir())
