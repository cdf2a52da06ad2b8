"""Runs that several processes share, on loopback: the same bits, and what becomes of a death."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxpg.cli.main import main
from jaxpg.cli.train import Launch, Processes, check
from jaxpg.core.config import ConfigError
from jaxpg.runs import checkpoints
from jaxpg.runs.share import FOLDER, Share
from jaxpg.runs.watch import EXIT_STOPPED
from tests.runs.test_faults import OPTIONS, SAVING, finish
from tests.runs.test_runs import assert_same_results

PATIENCE = "6"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(out: Path | list[Path], count: int, command=("train", "vpg", *OPTIONS, "--out")) -> list:
    """So many processes that share one run, in one directory or, wrongly, in several."""
    port = free_port()
    outs = out if isinstance(out, list) else [out] * count
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", SAVING, *command, str(outs[i]), "--distributed"),
                *("--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)),
                *("--process-id", str(i), "--peer-seconds", PATIENCE),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish_all(processes: list) -> list[tuple[int, str]]:
    return [finish(process) for process in processes]


def when_both_save(out: Path, processes: list) -> None:
    """Wait until chunks of both of two processes have checkpoints, or one has ended."""
    while all(process.poll() is None for process in processes):
        if {0, 1} <= checkpoints.listed(out).keys():
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run by one process that knows nothing of others."""
    out = tmp_path_factory.mktemp("distributed") / "alone"
    main(["train", "vpg", *OPTIONS, "--out", str(out)])
    return out


@pytest.mark.as_users_run(1)
def test_two_processes_stopped_together_and_continued(alone, tmp_path):
    """SIGTERM to one stops both; both go on; the results are those of one process."""
    out = tmp_path / "run"
    both = start(out, 2)
    when_both_save(out, both)
    both[1].send_signal(signal.SIGTERM)
    (code_0, errors_0), (code_1, errors_1) = finish_all(both)
    assert (code_0, code_1) == (EXIT_STOPPED, EXIT_STOPPED), errors_0 + errors_1
    assert "SIGTERM" in errors_1
    assert "process 1 of 2" in errors_0
    assert "is stopping" in errors_0
    (code_0, errors_0), (code_1, errors_1) = finish_all(start(out, 2, ("resume",)))
    assert (code_0, code_1) == (0, 0), errors_0 + errors_1
    assert_same_results(alone, out)
    ours = json.loads((out / FOLDER / "1.json").read_text())
    assert ours["doing"] == "finished"
    assert (out / "1-progress.jsonl").exists()


@pytest.mark.as_users_run(1)
@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_time(alone, tmp_path):
    """They save and say so; one process alone finishes the run."""
    out = tmp_path / "run"
    both = start(out, 2)
    when_both_save(out, both)
    os.kill(both[0].pid, signal.SIGSTOP)  # so that there is work left, however fast it is
    os.kill(both[1].pid, signal.SIGKILL)
    os.kill(both[0].pid, signal.SIGCONT)
    killed = time.monotonic()
    both[1].communicate()
    code, errors = finish(both[0])
    assert time.monotonic() - killed < 60
    assert code == EXIT_STOPPED, errors
    assert f"process 1 of 2 ({socket.gethostname()}) has shown no sign of life for 6 s" in errors
    done = subprocess.run(
        [sys.executable, "-m", "jaxpg", "resume", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_results(alone, out)


@pytest.mark.as_users_run(1)
@pytest.mark.slow
@pytest.mark.parametrize("victim", range(3))
def test_four_processes_and_the_death_of_each(alone, tmp_path, victim):
    """There are three chunks, so the fourth has nothing to do."""
    out = tmp_path / "run"
    four = start(out, 4)
    when_both_save(out, four)
    four[victim].kill()
    four[victim].communicate()
    survivors = finish_all([process for i, process in enumerate(four) if i != victim])
    assert all(code == EXIT_STOPPED for code, _ in survivors), survivors
    assert any(f"process {victim} of 4" in errors for _, errors in survivors)
    ends = finish_all(start(out, 4, ("resume",)))
    assert [code for code, _ in ends] == [0, 0, 0, 0], ends
    assert_same_results(alone, out)


@pytest.mark.as_users_run(1)
@pytest.mark.slow
def test_nobody_waits_for_one_that_has_trained_its_share(alone, tmp_path):
    """The fourth of three chunks' processes has nothing to do."""
    four = start(tmp_path / "run", 4)
    said = tmp_path / "run" / FOLDER / "3.json"
    while not said.exists() or json.loads(said.read_text())["doing"] == "training":
        assert four[3].poll() is None
        time.sleep(0.01)
    four[3].kill()
    four[3].communicate()
    assert [code for code, _ in finish_all(four[:3])] == [0, 0, 0]
    assert_same_results(alone, tmp_path / "run")


@pytest.mark.slow
def test_a_directory_that_is_not_shared(tmp_path):
    """Each process with a directory of its own: the second says what is wrong, the first stops."""
    pair = start([tmp_path / "a", tmp_path / "b"], 2)
    (code_0, errors_0), (code_1, errors_1) = finish_all(pair)
    assert code_1 == 2
    assert "not on a file system that all processes share" in errors_1
    assert code_0 == EXIT_STOPPED
    assert "process 1 of 2 has shown no sign of life" in errors_0


def test_every_chunk_is_somebodys():
    for processes in (1, 2, 3, 7):
        shares = [list(Share(i, processes, 0).mine(10)) for i in range(processes)]
        assert sorted(itertools.chain(*shares)) == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "a:1"}, "need --distributed"),
        ({"distributed": True, "coordinator": "host"}, "must be HOST:PORT; got 'host'"),
        ({"distributed": True, "coordinator": "host:99999"}, "must be HOST:PORT"),
        ({"distributed": True, "num_processes": 0}, "--num-processes must be at least 1; got 0"),
        ({"distributed": True, "num_processes": 2, "process_id": 2}, "got 2"),
        ({"peer_seconds": 0.0}, "--peer-seconds must be finite and greater than 0"),
    ],
)
def test_launches_without_a_meaning(options, words):
    with pytest.raises(ConfigError, match=words):
        check(Launch(), Processes(**options))
