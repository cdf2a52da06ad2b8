"""The command under faults: signals, kills, full disks, hangs, other processes, bad input.

`make torture` runs the same with more kills (JAXPG_KILLS).
"""

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jaxpg import files
from jaxpg.cli.main import main
from jaxpg.core.config import FIELDS
from jaxpg.errors import DoesNotFit, RunError, Stopped
from jaxpg.runs import checkpoints, directories, manifests, planning, run, watch
from jaxpg.runs.lock import locked
from jaxpg.runs.python import train_population
from tests.runs.test_runs import SEEDS, TINY, arrays, assert_same_results, begun, train

pytestmark = pytest.mark.usefixtures("programs_kept")

KILLS = int(os.environ.get("JAXPG_KILLS", "2"))
OPTIONS = [
    *("--seeds", "6", "--lanes", "2", "--num-envs", "3", "--num-steps", "24"),
    *("--total-steps", "14400", "--hidden-sizes", "6", "--no-report"),
]
# A commit after every segment, so that most of the time is spent in saving.
SAVING = (
    "import sys; from jaxpg.runs import planning, run\n"
    "run.SAVE_RATIO = 0; planning.SEGMENTS = 100\n"
    "from jaxpg.cli.main import main; main(sys.argv[1:])"
)
HANGING = (
    "import sys, time; from jaxpg.population import chunks; advance = chunks.advance\n"
    "def hang(*arguments):\n"
    "    for n, reached in enumerate(advance(*arguments)):\n"
    "        time.sleep(1000 * (n > 2)); yield reached\n"
    "chunks.advance = hang\n"
    "from jaxpg.cli.main import main; main(sys.argv[1:])"
)


def start(out: Path, code: str = SAVING, options=(), through=(), **popen) -> subprocess.Popen:
    command = [*through, sys.executable, "-c", code, "train", "vpg", *OPTIONS, *options]
    command += ["--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **popen)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def reported(out: Path) -> float:
    """The fraction of the updates that the last whole line of the log says are done."""
    log = out / run.LOG
    lines = log.read_text().splitlines() if log.exists() else []
    fractions = [json.loads(line)["fraction"] for line in lines if line.endswith("}")]
    return max(fractions, default=0.0)


def saved(out: Path) -> float:
    """The fraction of the updates that the checkpoints' names say are safe."""
    return sum(chain[-1].update for chain in checkpoints.listed(out).values()) / (3 * 200)


def when_reported(process: subprocess.Popen, out: Path, more_than: float) -> None:
    """Wait until the run has reported progress beyond a fraction, or ended."""
    while reported(out) <= more_than and process.poll() is None:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run by this process."""
    out = tmp_path_factory.mktemp("faults") / "whole"
    main(["train", "vpg", *OPTIONS, "--out", str(out)])
    return out


@pytest.mark.as_users_run(1)
def test_killed_at_random_instants(uninterrupted, tmp_path):
    """SIGKILL again and again: no reported step is lost, and the end is the same to the bit."""
    rng = random.Random(KILLS)
    out, killed, ends = tmp_path / "0", 0, 0
    while killed < KILLS:
        process = start(out)
        when_reported(process, out, reported(out))
        time.sleep(rng.random() * 0.4)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert saved(out) >= reported(out) - 1e-12
        if directories.is_finished(out):
            assert_same_results(uninterrupted, out)
            ends += 1
            out = tmp_path / str(ends)
    code, errors = finish(start(out))
    assert code == 0, errors
    assert_same_results(uninterrupted, out)
    left = [path.name for path in out.rglob("*") if path.name.startswith(files.TEMPORARY)]
    assert not left
    print(f"{killed} kills, {ends + 1} runs finished, all equal")


@pytest.mark.as_users_run(1)
@pytest.mark.thin(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(uninterrupted, tmp_path, number):
    process = start(tmp_path / "run")
    when_reported(process, tmp_path / "run", 0.1)
    process.send_signal(number)
    code, errors = finish(process)
    assert code == 75
    assert f"continue with: jaxpg resume {tmp_path / 'run'}" in errors
    assert 0.1 < saved(tmp_path / "run") < 1.0
    main(["resume", str(tmp_path / "run"), "--no-report"])
    assert_same_results(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once_and_a_hang_is_ended(tmp_path):
    process = start(tmp_path / "run", HANGING, ["--stall-seconds", "600"])
    when_reported(process, tmp_path / "run", 0.0)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "SIGINT: finishing this segment" in _line_with(process, "SIGINT")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    process.communicate()
    process = start(tmp_path / "run", HANGING, ["--stall-seconds", "1"])
    code, errors = finish(process)
    assert code == 76
    assert "no segment has ended for 1 s" in errors


def _line_with(process: subprocess.Popen, word: str) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if word in line)


@pytest.mark.as_users_run(1)
@pytest.mark.slow
def test_a_file_size_limit_is_one_sentence_and_loses_nothing(uninterrupted, tmp_path):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = start(tmp_path / "run", env=environment)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    code, errors = finish(process)
    assert code == 2
    assert "cannot be written (File too large)" in errors.splitlines()[-1]
    code, errors = finish(start(tmp_path / "run"))
    assert code == 0, errors
    assert_same_results(uninterrupted, tmp_path / "run")


# The rest is in this process, and fast.


def begin_and_train(directory: Path) -> None:
    train(begun(directory, seeds=[2, 9]))


@pytest.mark.thin(8)
@pytest.mark.parametrize("writes", range(1, 9))
def test_a_full_disk_at_any_write_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, writes):
    """ENOSPC at the n-th fsync: of the manifest, a checkpoint or a result."""
    whole = begun(tmp_path / "whole", seeds=[2, 9])
    train(whole)
    left, original = [writes], os.fsync

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="No space left on device"):
            begin_and_train(directory)
    train(begun(directory, seeds=[2, 9]))
    assert_same_results(whole, directory)


def test_two_processes_in_one_directory(tmp_path, capsys):
    directory = begun(tmp_path / "run")
    with locked(directory), pytest.raises(RunError, match=f"in use by process {os.getpid()} on "):
        train(directory)


def test_a_lock_on_a_full_disk_gets_a_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(RunError, match="cannot be written"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_is_left_where_it_is(
    tmp_path, monkeypatch, stop_after, number
):
    """It may be whole: a network's disk answers again."""
    directory = begun(tmp_path / "run")
    with pytest.raises(Stopped):
        train(directory, report=stop_after(2))
    before = {at.path for chain in checkpoints.listed(directory).values() for at in chain}
    real = Path.open

    def refused(path, *mode, **options):
        if path in before:
            raise OSError(number, os.strerror(number))
        return real(path, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(RunError, match=r"cannot be read .*nothing was removed"):
            train(directory)
    assert all(path.exists() for path in before)


def test_a_second_interrupt_of_a_python_program_is_its_own(tmp_path, monkeypatch):
    """The command leaves at once; a notebook's kernel lives on."""
    heard = []

    def twice(at):
        for _ in range(2):
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    monkeypatch.setattr(watch, "leave", lambda: heard.append("left"))
    with pytest.raises(KeyboardInterrupt):
        train_population(TINY, SEEDS, lanes=2, out=tmp_path / "run", report=twice)
    assert not heard


def test_lanes_of_a_run_that_has_saved_nothing_may_change(tmp_path, monkeypatch):
    """A process that was killed while it compiled what has no room has begun a run of them."""
    out, tried = tmp_path / "run", []

    def attempt(lanes):
        tried.append(lanes)
        directories.begin(out, planning.plan("vpg", TINY, SEEDS, lanes))
        if lanes != 8:
            raise DoesNotFit("too many lanes", 8)

    for _ in range(2):
        planning.plan("vpg", TINY, SEEDS, None)
        directories.begin(out, planning.plan("vpg", TINY, SEEDS, 16))  # by who was killed
        planning.with_lanes_that_fit(out, None, attempt)
        assert manifests.read(out).lanes == 8
    assert tried == [16, 8] * 2


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    directory = begun(tmp_path / "run", seeds=[2])
    (directory / "lock").write_text('{"process": 1, "host": "elsewhere"}\n')
    train(directory)
    assert str(os.getpid()) in (directory / "lock").read_text()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/jaxpg-run")):
        with pytest.raises(RunError, match="cannot be"):
            begun(out)


def test_a_read_only_directory():
    """Root may write anywhere, so root becomes somebody else for this."""
    with tempfile.TemporaryDirectory() as parent:
        directory = begun(Path(parent) / "run")
        before = sorted(directory.iterdir())
        os.chmod(parent, 0o755)
        directory.chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            assert (directory / manifests.NAME).read_bytes()
            with pytest.raises(RunError, match="cannot be written"):
                train(directory)
        finally:
            os.seteuid(user)
        assert sorted(directory.iterdir()) == before
        directory.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_up(tmp_path):
    """A file system with room for some of the checkpoints; with more room the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        directory = begun(disk / "run")
        with pytest.raises(RunError, match=r"\(No space left on device\); (everything|training)"):
            train(directory)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        train(directory)
        train(begun(tmp_path / "whole"))
        assert_same_results(tmp_path / "whole", directory)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_clock_may_jump(tmp_path, monkeypatch):
    """The wall clock goes back an hour whenever it is read."""
    now = [2e9]

    def back() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    directory = begun(tmp_path / "run", seeds=[2])
    assert train(directory)["wall_seconds"] >= 0
    assert arrays(directory)["seed"].tolist() == [2]


WRONG_NUMBERS = ("-1", "nan", "inf", "1e400", "x", "", "0x10", "None,", "1;2")
WRONG_COUNTS = ("0", "-3", "1.5", "nan", "x", "")
COUNTS = [name for name, field in FIELDS.items() if field.type is int]
CHOICES = [name for name, field in FIELDS.items() if "Literal" in str(field.type)]
BAD = [
    *([f"--{name.replace('_', '-')}", value] for name in COUNTS for value in WRONG_COUNTS),
    *(
        [f"--{name.replace('_', '-')}", value]
        for name in ("learning_rate", "value_learning_rate", "gamma", "gae_lambda")
        for value in WRONG_NUMBERS
    ),
    *([f"--{name.replace('_', '-')}", "nonsense"] for name in CHOICES),
    *(["--seeds", value] for value in ("", "x", "0", "-1", "1,1", "5:5", "1:2:3", "4294967297")),
    ["--lanes", "1"],
    ["--lanes", "x"],
    ["--env", "NoSuch-v0"],
    ["--stall-seconds", "0"],
    ["--mixed"],
    ["--cluster", "host"],
    ["--cluster", "127.0.0.1:1"],
    ["--cluster", "ray://host:10001"],
    ["--hidden-sizes", "0"],
    ["--hidden-sizes"],
    ["--no-such-option"],
    ["--out"],
    ["stray"],
]
COMMANDS = [
    *(
        [command, *rest]
        for command in ("resume", "status", "extend", "merge", "retrace")
        for rest in ([], ["missing"], ["--nonsense"], ["missing", "--seed", "x"], ["a", "b", "c"])
    ),
    ["extend", "missing", "--total-steps", "1", "--total-episodes", "1"],
    ["merge", "missing", "missing", "--out", "out"],
    ["nonsense"],
    ["train", "nonsense"],
]
BAD = [*(["train", "vpg", *options] for options in BAD), *COMMANDS]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_exit_2_and_writes_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.strip()
    assert "Traceback" not in said
    if said.startswith("jaxpg: "):
        assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_status_of_what_is_there(tmp_path, capsys):
    directory = begun(tmp_path / "run", TINY, SEEDS)
    main(["status", str(directory)])
    said = capsys.readouterr().out
    assert re.search(r"seeds 2,9,4,0,5: not finished\n0\.0 % of the updates are saved", said)
