"""The command as a process: what its environment and its user may do to it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import handmade
import jax
import numpy as np
import pytest

from jaxpg.cli import launch, machine, policies
from jaxpg.cli import train as training
from jaxpg.cli.main import main
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.errors import Stopped
from jaxpg.policies import evaluate as evaluation
from jaxpg.runs import compiling, manifests, track, watch

JAXPG = [sys.executable, "-m", "jaxpg"]
# Training, from which everything is taken but what it says; begins and ends as any other.
TALKING = """
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from jaxpg.population.progress import Progress
from jaxpg.runs import directories, planning, results, run

def train(directory, report, note, **options):
    for i in range(1, 101):
        note("x" * 5000)
        newest = SimpleNamespace(policy_loss=np.zeros(1))
        report(Progress(i, i / 100, np.zeros(1), 1.0, rows=1, metrics=newest))
    Path(directory, "trained").touch()

run.train = train
planning.plan = lambda *arguments, **options: command.manifests.read(None)
planning.check_parts = lambda planned, build: None
directories.begin = lambda directory, planned, start: directory.mkdir()
directories.is_finished = lambda directory: False
results.closing = lambda summary, out: "finished"
from jaxpg.cli import launch as command
from jaxpg.core.presets import PRESETS
command._log_results = command.draw = lambda *arguments, **options: None
command.manifests.read = lambda directory: command.Manifest(
    "vpg", PRESETS["vpg"], ("0:2",), 2, 1, ({},), {})
from jaxpg.cli.main import main
main()
"""


def run_jaxpg(*arguments, redirect="", **environment):
    """Run the command in a shell, which may close its streams; both of them as text."""
    line = f'"$@" {redirect}'
    env = {**os.environ, **environment}
    command = ["bash", "-c", line, "bash", *JAXPG, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


# Standard output and error.


def test_a_reader_that_has_seen_enough_ends_it_quietly():
    done = run_jaxpg("presets", redirect="| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "vpg\n", "")


def test_what_could_not_be_printed_is_said():
    done = run_jaxpg("presets", redirect="> /dev/full")
    assert done.returncode == 0
    assert done.stderr == "jaxpg: standard output is incomplete (No space left on device)\n"


@pytest.mark.parametrize("redirect", ["2>&-", "2> /dev/full", ">&- 2>&- <&-"])
def test_a_sentence_that_nobody_can_read_is_still_exit_2(redirect):
    done = run_jaxpg("nonsense", redirect=redirect)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("redirect", ["2>&1 | head -1", "> /dev/full 2>&1", ">&- 2>&- <&-"])
def test_no_write_that_fails_ends_a_training(redirect, tmp_path):
    line = f'"$@" {redirect}; exit ${{PIPESTATUS[0]}}'
    command = [sys.executable, "-c", TALKING, "train", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        ["bash", "-c", line, "bash", *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "trained").exists()


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path):
    """Else what C++ says on standard error would be written into it."""
    code = (
        "import sys; from jaxpg.cli import streams; streams.rely()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    file.write(str(file.fileno()))\n"
    )
    path = tmp_path / "number"
    line = '"$@" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", line, "bash", sys.executable, "-c", code, str(path)], check=True)
    assert int(path.read_text()) > 2


def test_a_stream_without_unicode_says_the_same_in_other_characters():
    code = (
        "from jaxpg.cli import streams; streams.rely()\n"
        "print('compiling … ≥ 475, 95 % × 3, é ‖∇U‖ ╭─╮ 日')\n"
    )
    for encoding, said in (
        ("ascii", "compiling ... >= 475, 95 % x 3, e ||grad U|| +-+ ?"),
        ("latin-1", "compiling ... >= 475, 95 % × 3, é ||grad U|| +-+ ?"),
        ("utf-8", "compiling … ≥ 475, 95 % × 3, é ‖∇U‖ ╭─╮ 日"),
    ):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
        assert done.stdout.decode(encoding) == f"{said}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--gama"]])
def test_every_page_of_help_can_be_ascii(arguments):
    done = run_jaxpg(*arguments, PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert len(done.stdout + done.stderr) > 20


def test_results_are_saved_before_anything_is_printed(tmp_path, monkeypatch):
    runs = [handmade.run(tmp_path / x, np.linspace([20, 30], [400, 500], 3).T) for x in "ab"]

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "the terminal is gone")

    found = evaluation.Evaluation("gymnax", "greedy", [0], np.ones((1, 2)), np.ones((1, 2)), 1.0)
    monkeypatch.setattr(evaluation, "in_gymnax", lambda *a, **o: found)
    monkeypatch.setattr(policies, "_print_table", fail)
    monkeypatch.setattr("jaxpg.report.compare.show", fail)
    for name, words in (
        ("evaluate", [str(runs[0]), "--gymnasium-seeds", "0"]),
        ("compare", list(map(str, runs))),
    ):
        with pytest.raises(OSError, match="the terminal is gone"):
            main([name, *words, "--json", str(tmp_path / f"{name}.json")])
        assert json.loads((tmp_path / f"{name}.json").read_text())


# Signals.

WAITING = """
import sys, time
from jaxpg.cli import commands
from jaxpg.cli.main import main

def run(words):
    print("here", flush=True)
    {body}

commands.run = run
main()
"""


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        # As jax's callbacks do it, which Python calls from C.
        "\n    while True:\n        try: time.sleep(60)\n        except BaseException: pass",
        "\n    from jaxpg import files; from pathlib import Path\n"
        "    with files.whole_directory(Path('out'), ''): time.sleep(60)",
    ],
)
def test_ctrl_c_is_answered_at_once_whatever_is_done(body, tmp_path):
    command = [sys.executable, "-c", WAITING.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "jaxpg: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_training_is_trainings_and_a_second_one_leaves(tmp_path):
    body = (
        "\n    import threading; from jaxpg.runs.watch import stop_on_signals\n"
        "    with stop_on_signals(threading.Event()): time.sleep(60); time.sleep(60)"
    )
    command = [sys.executable, "-c", WAITING.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert "SIGINT: finishing this segment" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_signal_is_heeded_though_nobody_can_be_told(tmp_path):
    body = (
        "\n    import os, signal, threading; from jaxpg.runs.watch import stop_on_signals\n"
        "    stop = threading.Event()\n"
        "    with stop_on_signals(stop): os.kill(os.getpid(), signal.SIGTERM); stop.wait(30)\n"
        "    sys.exit(0 if stop.is_set() else 1)"
    )
    line = '"$@" 2> /dev/full'
    command = ["bash", "-c", line, "bash", sys.executable, "-c", WAITING.format(body=body)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


# The environment.


def test_without_a_home_the_cache_is_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(Path, "home", homeless)
    folder = machine._cache()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert machine._cache() == folder  # also the next time
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"jaxpg: there is no home directory, so what is compiled is kept in {folder}"
    )
    folder.chmod(0o777)  # somebody else could put programs there
    assert machine._cache() != folder
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    capsys.readouterr()
    assert machine._cache().is_relative_to("/tmp")
    assert "/proc/nowhere/jaxpg/xla cannot be made" in capsys.readouterr().err


def test_a_cache_that_is_named_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jaxpg" / "xla")
    machine.keep_compiled()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    machine.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"


@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_a_sentence(platforms, tmp_path):
    done = run_jaxpg("bench", JAX_PLATFORMS=platforms)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"JAX_PLATFORMS must name devices of this machine, such as cpu; got '{platforms}'" in (
        done.stderr
    )


def test_a_cluster_s_writer_does_not_look_at_devices(monkeypatch):
    """Who looks at an accelerator holds it, and a worker of the cluster needs it."""
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("looked"))
    machine.prepare(Config(), here=False)


def test_settings_with_which_faults_are_found_are_not_heeded():
    code = (
        "import os, sys; from jaxpg.cli import machine; machine.own()\n"
        "import jax; print(jax.config.jax_disable_jit, jax.config.jax_debug_nans)"
    )
    env = {**os.environ, "JAX_DISABLE_JIT": "1", "JAX_DEBUG_NANS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout == "False False\n"
    assert "jaxpg: JAX_DISABLE_JIT=1 is for debugging, and not heeded" in done.stderr


# What is said.


def test_what_is_not_training_withholds_nothing(trained, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise ValueError("a font is missing")

    monkeypatch.setattr("jaxpg.report.figures.learning_curve", fail)
    monkeypatch.setattr("jaxpg.report.page.make", fail)
    launch.draw(trained, report=True, anew=True)
    said = capsys.readouterr().err
    assert "jaxpg: its curve.png could not be drawn (ValueError: a font is missing)" in said
    assert "jaxpg: the report could not be made (ValueError: a font is missing)" in said
    monkeypatch.setattr(track, "log_results", fail)
    launch._log_results(trained)
    assert "its tracker could not be told the results" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["opened", "told", "closed"])
def test_a_tracker_that_fails_ends_nothing(when, tmp_path, monkeypatch, capsys):
    told = []

    class Tracker:
        def __init__(self, *arguments):
            if when == "opened":
                raise OSError("no network")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            if when == "closed":
                raise OSError("no network")

        def __call__(self, at):
            told.append(at)
            if when == "told":
                raise OSError("no network")

    monkeypatch.setattr(track, "tracking", Tracker)
    with launch._tracked(tmp_path, 9.0, threading.Event()) as tell:
        tell(1)
        tell(2)
    said = capsys.readouterr().err
    assert said.count("no network") == 1
    assert told == {"opened": [], "told": [1], "closed": [1, 2]}[when]


def test_a_tracker_that_fails_on_closing_leaves_a_stop_a_stop(tmp_path, monkeypatch, capsys):
    """Whose exit code is how a queue knows that there is more to do."""

    @contextmanager
    def tracking(directory):
        try:
            yield lambda at: None
        finally:
            raise OSError("no network")

    monkeypatch.setattr(track, "tracking", tracking)

    def tell_and_stop():
        with launch._tracked(tmp_path, 9.0, threading.Event()) as tell:
            tell(0)
            raise Stopped

    with pytest.raises(Stopped):
        tell_and_stop()
    assert "its tracker could not be closed (OSError: no network)" in capsys.readouterr().err


@pytest.mark.parametrize(("heard", "ends"), [(lambda n: True, []), (lambda n: n < 3, [76])])
def test_a_cluster_whose_head_is_silent_ends_the_process(heard, ends, monkeypatch, capfd):
    """Before Ray does, with a code that nobody starts again."""
    asked, ended = [], []
    nodes = SimpleNamespace(answers=lambda: asked.append(1) or heard(len(asked)))
    monkeypatch.setattr(launch, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(launch, "HEAD_ASKED", 0.05)
    monkeypatch.setattr(watch.os, "_exit", lambda code: ended.append(code))
    with launch._head_watched(nodes):
        time.sleep(1.5)
    assert ended[:1] == ends
    said = "jaxpg: the head of the cluster has not answered for 0.4 s, so this process ends; what"
    assert (said in capfd.readouterr().err) == bool(ends)


def test_the_directory_says_the_environment_where_the_preset_does_not():
    assert training.default_out("vpg", PRESETS["vpg"]) == Path("runs/vpg")
    other = Config(env="my.module:Acrobot-v1")
    assert training.default_out("vpg", other) == Path("runs/vpg-Acrobot-v1")
    assert training.default_out("vpg", other, "-sweep") == Path("runs/vpg-Acrobot-v1-sweep")


def test_what_continues_a_run_can_be_pasted_into_a_shell():
    assert manifests.resume_line(Path("runs/my run")) == "jaxpg resume 'runs/my run'"
    where = launch.Machines(cluster="a:1", mixed=True).line
    assert manifests.resume_line(Path("r"), machines=where).endswith("r --cluster a:1 --mixed")


def test_compiling_says_how_long_it_took_the_first_time(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    manifest = manifests.read(trained)
    said = compiling.expectation(manifest)
    assert said.startswith("compiling what trains 2 seeds of CartPole-v1 at once: 5 to 30 seconds")
    assert f"it is kept in {tmp_path}" in said
    compiling.remember(manifest, 34.2)
    compiling.remember(manifest, 2.0)  # what was kept
    assert "34 s the first time, and less now" in compiling.expectation(manifest)
    assert "5 to 30 seconds" in compiling.expectation(manifest._replace(lanes=4))
    longer = manifest._replace(config=Config(**{**vars(manifest.config), "total_steps": 512}))
    assert "34 s" in compiling.expectation(longer)
    (tmp_path / compiling.NAME).write_bytes(b"\xff")
    assert "5 to 30 seconds" in compiling.expectation(manifest)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "1234567890"], "the seed 1234567890 alone is 1234567890:1234567891"),
        (["--seeds", "0:2000000"], "--seeds must be at most 1,000,000 seeds"),
        (["--max-episode-steps", "3000000000"], "max_episode_steps must be at most 2,147,483,647"),
        (
            ["--num-steps", "999999999", "--total-steps", "99999999999"],
            "in an update must be at most",
        ),
        (["--total-steps", "99999999999999"], "updates that total_steps pays for must be at most"),
        (["--lanes", "3000000000"], "lanes must be in [2, 1,048,576]; got 3,000,000,000"),
    ],
)
def test_numbers_that_are_too_large_are_refused_before_a_run_is_made(
    options, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["train", *([] if "--seeds" in options else ["--seeds", "2"]), *options])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
