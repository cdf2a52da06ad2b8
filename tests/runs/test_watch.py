"""What ends a process that hangs, and does not end one that was only stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxpg.runs import run, watch

LIMIT = 2.0
WATCHED = f"""
import sys, time
from jaxpg.runs.watch import Watchdog
with Watchdog({LIMIT}, "nothing has happened") as dog:
    dog.beat(0)
    print("begun", flush=True)
    sys.stdin.readline()  # meanwhile it is stopped and continued
    dog.beat(0)
    print("alive", flush=True)
    time.sleep(1000)
"""


def start(code: str, **options) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes, **options)


def test_a_stop_is_no_stall_and_a_stall_is_one():
    """Stopped for twice the limit, it goes on; after that it hangs, and ends."""
    process = start(WATCHED)
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2 * LIMIT)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(LIMIT / 4)  # for a wrong watchdog to bark
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "alive\n"
    _, errors = process.communicate(timeout=60)
    assert process.returncode == watch.EXIT_STALLED
    assert errors.startswith("jaxpg: nothing has happened for 2 s, so this process ends; ")


def deaf(code: str, closed: str) -> int:
    """How it ends where standard error is closed, full, or read by nobody."""
    command = ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code]
    quiet = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, **quiet, timeout=60).returncode


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_it_ends_where_nobody_listens(closed, tmp_path):
    """And writes into no file that has taken the place of standard error."""
    code = WATCHED.replace("print", f"file = open('{tmp_path}/file', 'w'); print", 1)
    assert deaf(code, closed) == watch.EXIT_STALLED
    assert not (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_signal_saves_where_nobody_listens(closed, tmp_path):
    """The handler's sentence is lost; what has the number of standard error is not written to."""
    code = (
        "import os, signal, threading\n"
        "from jaxpg.runs.watch import stop_on_signals\n"
        "stop = threading.Event()\n"
        f"files = [open(f'{tmp_path}/{{i}}', 'w') for i in range(3)]\n"
        "with stop_on_signals(stop):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.wait(10)\n"
    )
    assert deaf(code, closed) == 0
    assert all(not path.stat().st_size for path in tmp_path.iterdir())


class Time:
    """Seconds that pass when it is said so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)


def test_only_time_in_which_somebody_ticks_counts(monkeypatch):
    time_ = Time(monkeypatch)
    clock = watch.Clock(1.0)
    for _ in range(10):
        time_.now += 1.1
        clock.tick()
    assert clock.seconds() == pytest.approx(11.0)
    time_.now += 3600.0  # stopped for an hour
    assert clock.seconds() == pytest.approx(13.0)
    clock.tick()
    time_.now += 0.5
    assert clock.seconds() == pytest.approx(13.5)


def test_compiling_that_hangs_ends_too(tmp_path):
    code = (
        "import sys, time\n"
        "from jaxpg.population import chunks\n"
        "from jaxpg.runs import run\n"
        "run.COMPILE_SECONDS = 1.0\n"
        "chunks.compile_programs = lambda *arguments: time.sleep(1000)\n"
        "from jaxpg.cli.main import main; main(sys.argv[1:])\n"
    )
    options = ["--seeds", "2", "--num-envs", "2", "--num-steps", "8", "--total-steps", "32"]
    command = [sys.executable, "-c", code, "train", *options, "--stall-seconds", "0.5"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == watch.EXIT_STALLED, done.stderr
    assert "compiling has not ended for 1 s" in done.stderr
    assert run.COMPILE_SECONDS > 600  # which no test waits for
