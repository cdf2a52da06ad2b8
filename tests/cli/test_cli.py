"""The command: what it writes, and what it says to bad input."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxpg.cli.arguments import ELSEWHERE, parse
from jaxpg.cli.commands import COMMANDS
from jaxpg.cli.main import main
from jaxpg.cli.train import Own, Train, say_of_idle_lanes, say_of_unused
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.population import devices
from jaxpg.population.population import LANES
from jaxpg.runs.manifests import parse_seeds
from jaxpg.runs.planning import plan


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxpg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_train_writes_a_complete_directory(tmp_path):
    out = tmp_path / "deep" / "run"
    options = ["--seeds", "3,17,5", "--lanes", "2", "--total-steps", "600", "--num-steps", "30"]
    done = run("train", "vpg", *options, "--num-envs", "4", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "IQM" in done.stdout
    assert "100%" in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    wanted = "preset env seeds total_env_steps wall_seconds compile_seconds env_steps_per_second"
    assert set(wanted.split()) <= summary.keys()
    assert summary["final_return"].keys() == {
        "iqm",
        "ci95_low",
        "ci95_high",
        "min",
        "median",
        "max",
    }
    assert summary["total_env_steps"] == 3 * 600
    assert summary["config"]["num_envs"] == 4
    arrays = np.load(out / "results.npz", allow_pickle=False)
    assert arrays["seed"].tolist() == [3, 17, 5]
    assert arrays["return_sum"].shape == (3, 5)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert f"report: {out / 'report.html'}" in done.stdout
    assert (out / "report.html").exists()
    assert [path.name for path in out.parent.iterdir()] == ["run"]  # nothing half-written
    again = run("train", "vpg", *options, "--num-envs", "4", "--out", str(out))
    assert again.returncode == 0
    assert "is finished" in again.stdout
    other = run("train", "vpg", *options, "--num-envs", "5", "--out", str(out))
    assert other.returncode == 2
    assert "num_envs: 4 -> 5" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "vgp"], "did you mean 'vpg'"),
        (["train", "--gamma", "1.5"], "gamma must be in [0, 1]; got 1.5"),
        (["train", "--learning-rate", "-1"], "learning_rate must be finite and greater than 0"),
        (["train", "--learning-rate", "nan"], "learning_rate must be finite and greater than 0"),
        (
            ["train", "ppo", "--learning-rate", "3e-3,1e-3"],
            "are several: that is a sweep, jaxpg sweep … --grid learning_rate=3e-3,1e-3;",
        ),
        (["train", "--num_envs=4,8"], "--num_envs takes one number, and '4,8' are several"),
        (["train", "--seeds", "0"], "--seeds must be a count of at least 1"),
        (["train", "--seeds", "5:5"], "--seeds must be"),
        (["train", "--seeds", "1,1"], "--seeds must be"),
        (["train", "--seeds", "4294967296,1"], "--seeds must be"),
        (["train", "--seeds", "0:99999999999"], "--seeds must be"),
        (["train", "--num-envs", "0"], "num_envs must be an integer of at least 1; got 0"),
        (["train", "--total-steps", "10"], "total_steps must pay for at least one update of 1024"),
        (["train", "--estimator", "total_return"], "needs collect='episodes'"),
        (["train", "--networks", "shared"], "value_steps=1"),
        (["train", "--env", "CartPol-v1", "--seeds", "2"], "did you mean 'CartPole-v1'"),
        (["train", "--env-params", f"gravity=1{'0' * 400}"], "env_params gravity must be finite"),
        (
            ["train", "--env", "MemoryChain-bsuite", "--env-params", "memory_length=9999999999"],
            "memory_length of MemoryChain-bsuite must be in [-2,147,483,647, 2,147,483,647]; got",
        ),
        (["report", "runs/x", "--solved", "nan"], "--solved must be finite; got nan"),
        (["compare", "runs/x", "--solved", "inf"], "--solved must be finite; got inf"),
        (["evaluate", "runs/x", "--episodes", "1000000"], "--episodes must be in [1, 100,000]"),
        (["presets", "vgp"], "unknown preset 'vgp'; did you mean 'vpg'"),
        (["presets", "vpg", "ppo"], "presets: Unrecognized options: ppo"),
        (["status", "runs/x", "--hlep"], "status: unknown option --hlep; did you mean --help?"),
        (["merge", "runs/x", "--ot=runs/y"], "merge: unknown option --ot; did you mean --out?"),
        (["train", "--gamma", "0.9", "--gamma=0.8"], "train: --gamma is given twice; if it takes"),
        (
            ["check-env", "CartPole-v1", "--env-params", "gravty=1", "--env_params", "gravity=12"],
            "check-env: --env-params is given twice",
        ),
        (["train", "--report", "--no-report"], "train: --no-report is given twice"),
        (["train", "--option", f"scale=1{'0' * 400}"], "--option is of an algorithm of one's own"),
        (["sweep", "vpg", "--grid", "gama=1", "--grid", "gamma=1"], "--grid is given twice"),
        (["retrace", "runs/x"], "Missing from jaxpg retrace: --seed INT"),
        (
            ["extend", "runs/x"],
            "argument group: • --total-steps, --total-episodes",
        ),
        (
            ["resume", "runs/x", "--stall-seconds", "soon"],
            "--stall-seconds: could not convert string to float: 'soon'",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("jaxpg: ")
    assert words in message
    assert not any(tmp_path.glob("runs/*"))


def test_a_typo_in_an_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--gama", "0.9"])
    assert exit_.value.code == 2
    assert "did you mean --gamma?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        *((f"--{theirs}", f"; did you mean --{ours}? See") for theirs, ours in ELSEWHERE.items()),
        ("--save-model", "; see"),
        ("--schedule", "; did you mean --lr-schedule? See"),
    ],
)
def test_options_as_other_libraries_call_them(given, hint, capsys):
    with pytest.raises(SystemExit):
        main(["train", given, "1"])
    said = f"jaxpg: train: unknown option {given}{hint} jaxpg train --help"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_help_says_how_many_lanes_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    cpu, gpu, tpu = (LANES[platform] for platform in ("cpu", "gpu", "tpu"))
    assert f"(default: {cpu}, on a GPU {gpu}, on a TPU {tpu})" in said


def test_a_number_without_effect_is_said(capsys):
    """Not of what the preset has, nor beside an algorithm of one's own, which may use it."""
    config = dataclasses.replace(PRESETS["vpg"], vf_coef=0.9, learning_rate=0.1)
    say_of_unused(Train(preset="vpg", config=config))
    assert capsys.readouterr().err == (
        "jaxpg: --vf-coef has no effect: it needs joint_loss or networks='shared'\n"
    )
    few = dataclasses.replace(PRESETS["vpg"], total_episodes=10)
    say_of_unused(Train(preset="vpg", config=few))
    assert "--total-episodes has no effect: it needs collect='episodes'" in capsys.readouterr().err
    say_of_unused(Train(preset="vpg", config=config, own=Own(algorithm="mine:build")))
    say_of_unused(Train(preset="trpo", config=PRESETS["trpo"]))  # with a learning rate of its own
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seeds", "cores", "advice"), [(4, 2, 2), (16, 2, 8), (1, 8, 2), (20, 2, 10), (32, 2, None)]
)
def test_few_seeds_are_advised_of_fewer_lanes(seeds, cores, advice, capsys, monkeypatch):
    monkeypatch.setattr(devices, "workers", lambda: range(cores))
    say_of_idle_lanes(plan("vpg", PRESETS["vpg"], range(seeds), None), None)
    said = capsys.readouterr().err
    assert f"--lanes {advice} would be faster" in said if advice else not said


def test_one_preset_is_shown_whole(capsys):
    main(["presets", "ppo"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ppo"
    assert "    clip_coef = 0.2" in lines  # which is also vpg's
    assert len(lines) == 2 + len(dataclasses.fields(Config))


def test_a_directory_with_anything_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for out, words in (
        (tmp_path, "new or empty"),
        (tmp_path / "notes.txt", "cannot be a run directory"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["train", "--out", str(out)])
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_help_and_presets(capsys):
    main(["--help"])
    assert "jaxpg train vpg --seeds 256" in capsys.readouterr().out
    assert all(command.says.endswith(".") for command in COMMANDS.values()), "a whole sentence each"
    main(["presets"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--gae-lambda", "--seeds", "--out", "--env"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: jaxpg {command}")
    assert re.search(rf"examples?:\s+jaxpg {command}", shown)


def test_what_an_option_says_is_one_paragraph(capsys, monkeypatch):
    """Of nested options, too."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "parameters there, which are copied, with an optimizer and noise of its own." in shown
    assert "or num_envs whole episodes. (default: steps)" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_options_that_it_does_not_know(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--outt", "x"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "--outt" in message
    assert "--out" in message.replace("--outt", "") or command not in ("train", "merge", "render")


def test_answering_for_help_imports_no_jax():
    code = (
        "import sys\n"
        "from jaxpg.cli.main import main\n"
        "main(['--help'])\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_seeds():
    assert list(parse_seeds("4")) == [0, 1, 2, 3]
    assert list(parse_seeds("1000:1003")) == [1000, 1001, 1002]
    assert parse_seeds("3,17,42") == [3, 17, 42]
    for text in ("", "a", "1:2:3", "-1", "1,,2", "1.5", "3:1"):
        with pytest.raises(ConfigError):
            parse_seeds(text)


@pytest.mark.parametrize("words", [["--max-grad-norm", "none"], ["--max-grad-norm=None"]])
def test_none_is_written_as_in_a_grid(words):
    assert parse("train", COMMANDS["train"], ["ppo", *words]).config.max_grad_norm is None
    with pytest.raises(ConfigError, match="--gamma: could not convert string to float: 'none'"):
        parse("train", COMMANDS["train"], ["ppo", "--gamma", "none"])
