"""docs/extending.md runs, and parts of one's own are really used."""

import dataclasses
import re
import shlex
import sys
from itertools import chain, pairwise

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from benchmarks import readme
from jaxpg.cli.main import main
from jaxpg.core import env
from jaxpg.core.config import Config, ConfigError
from tests import pages

pytestmark = pytest.mark.usefixtures("programs_kept")

PAGE = readme.ROOT / "docs" / "extending.md"
TINY = Config(num_envs=2, num_steps=16, total_steps=32 * 4, hidden_sizes=(4,))


def test_the_page_is_true():
    """Every Python block runs, in order, and prints what the page says."""
    assert pages.run(PAGE) == 7


def test_its_command_lines_are_true(tmp_path, monkeypatch, capsys):
    """Those after the file mine.py, in order, on fewer and smaller updates."""
    found = list(pages.blocks(PAGE))
    (at,) = (i for i, (_, code, _) in enumerate(found) if "def power_of_td(" in code)
    (tmp_path / "mine.py").write_text(found[at][1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (console,) = re.findall(
        r"^```\nexport PYTHONPATH=\.\n(.*?)^```$", PAGE.read_text(), re.S | re.M
    )
    small = {"--num-envs": "2", "--num-steps": "16", "--total-steps": "128", "--lanes": "2"}
    less = {
        "train": {**small, "--seeds": "4"},
        "sweep": {**small, "--seeds": "2"},
        "race": {**small, "--first-round": "6", "--max-seeds": "8"},
        "evaluate": {"--episodes": "2"},
    }
    lines = [shlex.split(line)[1:] for line in console.splitlines()]
    for words in lines:
        wanted = dict(less.get(words[0], {}))
        words = [wanted.pop(before, word) for before, word in pairwise(["", *words])]
        main([*words, *chain.from_iterable(wanted.items())])
    assert [words[0] for words in lines] == [
        *("train", "train", "report", "compare", "sweep", "race", "evaluate", "export"),
    ]
    assert "B beats A with probability" in capsys.readouterr().out
    for name, shown in (("sign", "mine:power_of_td with power=0.0"), ("power", "option.power")):
        assert shown in (tmp_path / "runs" / name / "report.html").read_text()
    sys.modules.pop("mine")


@pytest.mark.slow
def test_a_population_is_trained_by_the_algorithm_that_build_makes():
    """Ψ = 0 leaves the policy where it started, and only that."""

    def build(config):
        algorithm = jaxpg.build(config)
        return algorithm._replace(advantage=lambda t, *values, **_: jnp.zeros_like(t.reward))

    ours = jaxpg.train_population(TINY, [3, 4], lanes=2, build=build)
    start = jaxpg.init(TINY, jaxpg.key(3), jaxpg.build(TINY)).params
    for part, moved in (("policy", False), ("value", True)):
        before = np.asarray(start[part]["output"]["kernel"])
        after = ours.params[part]["output"]["kernel"][0]
        assert np.allclose(before, after, rtol=1e-6) != moved


MODULE = """
import gymnax
from gymnax.environments.classic_control.cartpole import CartPole


class Slow(CartPole):
    @property
    def default_params(self):
        return super().default_params.replace(max_steps_in_episode=7)


gymnax.register("Slow-v0", Slow)
"""


@pytest.mark.slow
def test_the_command_trains_an_environment_of_a_module(tmp_path, monkeypatch, capsys):
    import gymnax

    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    options = ["--num-envs", "2", "--num-steps", "16", "--total-steps", "64", "--seeds", "2"]
    main(["train", "vpg", "--env", "mine:Slow-v0", *options, "--out", str(out)])
    run = jaxpg.load(out)
    assert run.config.env == "mine:Slow-v0"
    assert (run.population.final_return == 7.0).all()
    assert run.policy(0).act(np.zeros(4)) in (0, 1)
    sys.modules.pop("mine")
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    gymnax.registered_envs.remove("Slow-v0")


def test_load_imports_no_module_that_a_run_names(trained, tmp_path, monkeypatch):
    import shutil

    from jaxpg.runs import directories, manifests

    directory = shutil.copytree(trained, tmp_path / "run")
    read = manifests.read(directory)
    other = read._replace(config=dataclasses.replace(read.config, env="boom:CartPole-v1"))
    manifests.write(directory, other)
    summary = (directory / "summary.json").read_text()
    sha256 = manifests.sha256(trained)
    (directory / "summary.json").write_text(summary.replace(sha256, manifests.sha256(directory)))
    (tmp_path / "boom.py").write_text("raise SystemError('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = jaxpg.load(directory)
    assert directories.is_finished(directory)
    loaded.to_frame()
    loaded.params(9)
    with pytest.raises(ConfigError, match=r"'boom'.*\(SystemError: executed\)"):
        loaded.policy(9)


def test_modules_that_are_not_there_get_a_sentence():
    with pytest.raises(ConfigError, match="module 'no_such' of environment 'no_such:X-v0'"):
        env.make("no_such:X-v0")
    with pytest.raises(ConfigError, match="unknown environment 'CartPol-v1'; did you mean"):
        env.make("json:CartPol-v1")
