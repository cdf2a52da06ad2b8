"""The certificate: levels pass, planted faults are seen, golden files suffice."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import certificate
from jaxpg import parity
from jaxpg.cli import parity as command
from jaxpg.cli.main import main
from jaxpg.core import algorithms
from jaxpg.core.config import ConfigError
from jaxpg.errors import RunError
from jaxpg.proof import batch, faults, golden, levels
from jaxpg.proof.faults.plants import Fault, wrap
from torch_ref import learner

SEEN_IN_RUNS = {
    "euler_step_with_the_new_speed",
    "time_limit_one_step_early",
    "parameters_off_the_grid",
    "environment_off_the_grid",
    "environment_parameter_ignored",
    "total_mass_that_does_not_follow",
    "parameter_of_another_environment",
    "bounds_not_scaled_to",
    "mask_in_learning_alone",
    "mask_of_the_normalised_observation",
    "moments_off_the_grid",
    "newest_frame_first",
    "frames_beside_one_another",
    "frames_of_the_episode_before",
    "zeros_before_the_first_frame",
    "ball_in_four_columns",
}
CHEAP = ("distributions", "optimizer")  # to compile


# Levels.


def test_the_command_runs_every_level():
    """It names them without importing torch."""
    assert (*(level.name for level in levels.LEVELS), "faults") == command.LEVELS


@pytest.mark.parametrize(
    "level", [x for x in levels.LEVELS if x.name in CHEAP], ids=lambda x: x.name
)
def test_cheap_levels_pass(level):
    row = levels.measure(level, level.cases, [1], lambda text: None)
    assert row.passed, row
    assert row.configurations == len(level.cases)


def test_cases_cover_every_choice():
    """Each optimizer, collect, network, distribution, estimator, baseline, target and data."""
    for name in ("optimizer", "collect", "networks", "env", "sigma", "estimator", "baseline"):
        choices = {getattr(config, name) for config in levels.CASES.values()}
        assert len(choices) >= 2, name
    assert {c.optimizer for c in levels.CASES.values()} == set(learner.OPTIMIZERS)
    assert {c.fit for c in levels.CASES.values()} == set(algorithms.FITS)
    assert {c.value_data for c in levels.CASES.values()} >= {"batch", "replay"}


def test_a_level_names_the_first_leaf_that_differs():
    a = {"first": np.ones(3), "second": np.ones(3)}
    b = {"first": np.ones(3) * (1 + 1e-6), "second": np.ones(3) * 2}
    outcome = levels.judge_tensors(1e-12, a, b)
    assert not outcome.passed
    assert outcome.where == "first"
    assert outcome.error == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_side_that_raises_is_a_difference(side):
    level = next(level for level in levels.LEVELS if level.name == "optimizer")

    def broken(config, seed):
        raise RuntimeError("nothing today")

    spoiled = level._replace(pair=level.pair._replace(**{side: broken}))
    outcome = levels.attempt(spoiled, levels.CASES["vpg"], 0)
    assert not outcome.passed
    assert outcome.where == "RuntimeError: nothing today"


@pytest.mark.parametrize("label", ["reinforce", "shared torso, RMSprop"])
def test_the_terms_that_scale_float32_add_up_to_the_gradient(label, x64, monkeypatch):
    """With and without padding; what is left out is the absolute value."""
    config = dataclasses.replace(batch.small(levels.CASES[label]), arithmetic="float64")
    side = batch.jax_side(config)
    inputs = (side.state.params, side.trajectory)
    gradient, terms = (
        jax.jit(partial(function, side.config, side.algorithm))
        for function in (lambda *x: batch.gradients(*x)[1], batch.absolute_terms)
    )
    monkeypatch.setattr(jnp, "abs", lambda x: x)
    parity.assert_close(terms(*inputs), gradient(*inputs), tolerance=1e-13)


# Faults.


def by_name(fault):
    return fault.plant.__name__


MARKED = [
    pytest.param(fault, marks=[pytest.mark.slow] if by_name(fault) in SEEN_IN_RUNS else [])
    for fault in faults.FAULTS
]


@pytest.mark.parametrize("fault", MARKED, ids=by_name)
def test_a_planted_fault_is_seen(fault):
    """And its control passes the same levels without it, or `examine` names no level."""
    catch = faults.examine(fault)
    assert catch.level, catch
    assert catch.error > 0


def test_a_fault_that_only_raises_is_not_caught():
    """It has rotted: nothing was compared."""

    def rotten():
        """It calls the part that it replaces as that is called no more."""
        return wrap(learner, "descend", lambda original, *inputs: original())

    catch = faults.examine(Fault(rotten, "episodes"))
    assert catch.level is None
    assert catch.where.startswith("it raises: TypeError")


def test_few_straddles_hold_and_many_do_not():
    rows = [{"verdict": "equal"}] * 18 + [{"verdict": "straddle"}] * 2
    assert certificate.holds(rows)
    assert not certificate.holds([*rows, {"verdict": "straddle"}])
    assert not certificate.holds([*rows, {"verdict": "incomparable"}])


def test_there_are_enough_faults_and_each_is_explained():
    assert len(faults.FAULTS) >= 50
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)
    for fault in faults.FAULTS:
        assert re.fullmatch(r"[^\n]+\.", fault.description), fault.name


def test_nothing_stays_planted():
    """After all of them a control passes again, on the levels that see most of them."""
    for fault in faults.FAULTS:
        with fault.plant():
            pass
    for level in (level for level in levels.LEVELS if level.name in ("gradients", "updates")):
        assert levels.attempt(level, faults.CONTROLS["episodes"], 0).passed, level.name


def test_a_fault_that_nothing_sees_is_reported():
    blind = [level for level in levels.LEVELS if level.name == "noise"]
    fault = next(fault for fault in faults.FAULTS if by_name(fault) == "weight_decay")
    catch = faults.examine(fault, blind)
    assert catch.level is None
    assert catch.where == "not caught"


# The command.


def run(*arguments, **environment):
    program = [sys.executable, "-m", "jaxpg", "parity", *arguments]
    return subprocess.run(
        program, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.slow
def test_the_command_prints_and_writes(tmp_path):
    path = tmp_path / "parity.json"
    done = run("--smoke", "--level", "noise", "optimizer", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "2 of 10 levels: all equal" in done.stdout
    assert "noise: passed" in done.stderr
    document = json.loads(path.read_text())
    assert document["passed"] is True
    assert [row["level"] for row in document["levels"]] == ["noise", "optimizer"]
    assert document["levels"][0]["error"] == 0
    assert 0 < document["levels"][1]["error"] <= document["levels"][1]["tolerance"] == 1e-12
    assert {"command", "commit", "versions", "device", "faults"} <= document.keys()
    assert {"jax", "torch"} <= document["versions"].keys()
    assert [file.name for file in tmp_path.iterdir()] == ["parity.json"]


def test_the_command_fails_where_the_packages_differ(capsys, monkeypatch, tmp_path):
    """One side takes the noise of another update: a level fails, and no control is sound."""
    monkeypatch.setattr(faults, "FAULTS", faults.FAULTS[:1])
    path = tmp_path / "parity.json"
    with faults.start.noise_of_the_update_before(), pytest.raises(SystemExit) as exit_:
        main(["parity", "--smoke", "--level", "noise", "faults", "--json", str(path)])
    assert exit_.value.code == 1
    printed = capsys.readouterr().out
    assert "DIFFERENT" in printed
    assert "FAILED noise" in printed
    assert "NOT CAUGHT swapped keys" in printed
    assert "noise fails without the fault" in printed
    assert json.loads(path.read_text())["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--level", "nosie"], "did you mean 'noise'"),
        (["--full", "--smoke"], "exclude each other"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--json", f"{__file__}/x.json"], "--json must be a file that can be written"),
    ],
)
def test_bad_options_are_refused_before_any_work(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["parity", *arguments])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'jaxpg[torch]'")):
        command.parity(command.Parity(smoke=True))


def test_help_shows_examples_and_imports_no_framework():
    program = "import sys\nfrom jaxpg.cli.main import main\ntry: main(['parity', '--help'])\n"
    program += "finally: print({'jax', 'torch'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "jaxpg parity record golden" in done.stdout
    assert done.stderr.strip().endswith("set()")


# Golden files.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "files"
    golden.record(out, {"vpg": levels.CASES["vpg"]})
    return out


@pytest.mark.slow
def test_golden_files_are_the_same_bytes_twice(recorded, tmp_path):
    golden.record(tmp_path / "again", {"vpg": levels.CASES["vpg"]})
    names = sorted(path.name for path in recorded.iterdir())
    assert names == ["README.md", "vpg.npz"]
    for name in names:
        assert (recorded / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_directory_that_holds_something_is_refused(recorded):
    with pytest.raises(RunError, match="must be a new or empty directory"):
        golden.record(recorded, {})


@pytest.mark.thin(40)
@pytest.mark.parametrize("label", levels.CASES)
def test_the_page_explains_every_array(label):
    arrays = {name: np.asarray(x) for name, x in golden.arrays(levels.CASES[label]).items()}
    explained = patterns(golden.PAGE.read_text(encoding="utf-8"))
    assert not [name for name in arrays if not any(re.fullmatch(x, name) for x in explained)]
    assert not [name for name, x in arrays.items() if x.dtype.hasobject]  # would be a pickle
    assert arrays["version"] == version("jaxpg")
    for name in ("advantage", "target"):
        assert not arrays[name][~arrays["batch.valid"]].any()


def patterns(page):
    """Regular expressions of the names in the first column of the page's tables."""
    *_, metrics = (listed(part) for part in page.partition("## Metrics"))
    layer = r"(policy|value|torso)\.(conv_\d+|hidden_\d+|output)\.(weight|bias)"
    parts = {
        "NAME": rf"({layer}|policy\.log_std|obs\.(count|mean|var))",
        "METRIC": f"({'|'.join(metrics)})",
        "_I": r"_\d+",
        "_J": r"_\d+",
    }
    found = []
    for name in listed(page.partition("## Metrics")[0]):
        pattern = re.escape(name)
        for part, stands_for in parts.items():
            pattern = pattern.replace(part, stands_for)
        found.append(pattern)
    return found


def listed(page):
    """Names in the first column of tables; `.b` after `a.c` is `a.b`."""
    names = []
    for cell in re.findall(r"^\| (`.*?) \|", page, flags=re.M):
        for name in re.findall("`(.+?)`", cell):
            names.append(names[-1].rpartition(".")[0] + name if name[0] == "." else name)
    return names


def test_an_older_numpy_writes_no_array_of_an_option(tmp_path, monkeypatch):
    """Before 2.1 every keyword of savez_compressed was an array."""
    written = {}
    monkeypatch.setattr(golden, "arrays", lambda config: {"seed": np.int64(0)})
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: written.update(arrays))
    golden.record(tmp_path / "files", {"vpg": levels.CASES["vpg"]})
    assert written.keys() == {"seed"}


def test_the_page_s_checker_runs(recorded, monkeypatch):
    page = (recorded / "README.md").read_text()
    assert "{files}" not in page
    assert "{version}" not in page
    (checker,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    monkeypatch.chdir(recorded)
    exec(checker, {})


def test_a_configuration_that_is_none_is_recorded_as_little(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown configuration 'vpgg'; did you mean 'vpg'"):
        command.record(command.Record(tmp_path / "files", ("vpgg",)))
    assert not (tmp_path / "files").exists()


def test_golden_files_suffice(recorded):
    """numpy alone, with backpropagation by hand, arrives at the objectives and every gradient."""
    with np.load(recorded / "vpg.npz") as file:
        arrays = dict(file)
    batch = {k.removeprefix("batch."): x for k, x in arrays.items() if k.startswith("batch.")}
    valid, count = batch["valid"], batch["valid"].sum()
    hidden, logits = forward(arrays, "policy", batch["obs"])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_pi = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = np.eye(2)[batch["action"]]
    weight = np.where(valid, arrays["advantage"], 0.0) / count
    slope = -weight[..., None] * (chosen - np.exp(log_pi))  # of -Σ Ψ log π / count, in the logits
    found = {"policy_objective": -np.sum(weight * (log_pi * chosen).sum(axis=-1))}
    found |= backward(arrays, "policy", batch["obs"], hidden, slope)

    hidden, value = forward(arrays, "value", batch["obs"])
    error = np.where(valid, value[..., 0] - arrays["target"], 0.0)
    found["value_objective"] = np.sum(error**2) / count
    found |= backward(arrays, "value", batch["obs"], hidden, 2 * error[..., None] / count)
    expected = {k: x for k, x in arrays.items() if k.startswith(("gradient.", *found))}
    parity.assert_close(found, expected, tolerance=1e-12)
    assert len(found) == 2 + 8


def forward(arrays, network, obs):
    """Hidden activations and outputs of a ReLU network with one hidden layer."""
    layer = {k.removeprefix(f"params.{network}."): x for k, x in arrays.items()}
    hidden = np.maximum(obs @ layer["hidden_0.weight"].T + layer["hidden_0.bias"], 0.0)
    return hidden, hidden @ layer["output.weight"].T + layer["output.bias"]


def backward(arrays, network, obs, hidden, slope):
    """Gradients of the layers, from the objective's slope in the outputs."""
    flat = [x.reshape(-1, x.shape[-1]) for x in (obs, hidden, slope)]
    obs, hidden, slope = flat
    inner = (slope @ arrays[f"params.{network}.output.weight"]) * (hidden > 0)
    return {
        f"gradient.{network}.output.weight": slope.T @ hidden,
        f"gradient.{network}.output.bias": slope.sum(axis=0),
        f"gradient.{network}.hidden_0.weight": inner.T @ obs,
        f"gradient.{network}.hidden_0.bias": inner.sum(axis=0),
    }


def test_a_recorded_config_can_be_read_back(recorded):
    with np.load(recorded / "vpg.npz", allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        assert config["arithmetic"] == "float32_grid"
        steps, envs = file["run_0.action"].shape
        assert (steps, envs) == (config["num_steps"], config["num_envs"])
        fields = dataclasses.asdict(levels.CASES["vpg"]) | {"arithmetic": "float32_grid"}
        assert config == json.loads(json.dumps(fields))


def test_the_table_of_faults_shows_what_is_in_brackets(capsys):
    """Rich would take them for its own marks."""
    said = "An image [height, width] lies on its side."
    command._print([], [faults.Catch("turned", said, "none", "gradients", "kernel[0]", 1.0, 0.1)])
    shown = capsys.readouterr().out
    assert said in shown
    assert "kernel[0]" in shown
