"""What is declared and what is tested agree: versions, Pythons, commands."""

import re
import subprocess
import sys
import tomllib

import every_command
import pytest
import yaml
from minima import ROOT, pins
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from jaxpg.cli.commands import COMMANDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
TESTED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def known(python):
    """{name: version} with this Python; each name once."""
    chosen = [one for one in TESTED
              if not one.marker or one.marker.evaluate({"python_version": python})]  # fmt: skip
    names = [canonicalize_name(one.name) for one in chosen]
    assert len(names) == len(set(names))
    pinned = (str(one.specifier).removeprefix("==") for one in chosen)
    return dict(zip(names, pinned, strict=True))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_least_version_not_above_the_one_that_is_tested(python):
    found = dict(pin.split("==") for pin in pins())
    assert {"jax", "tyro", "scipy", "torch", "onnx"} <= found.keys()
    versions = known(python)
    assert {"jax", "jaxlib", "flax", "gymnax"} <= versions.keys()
    for name, least in found.items():
        version = versions.get(canonicalize_name(name))
        assert version is None or Version(least) <= Version(version), name
    assert all(">=" in line for line in PROJECT["dependencies"])


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_tested_is_allowed(python):
    versions = known(python)
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]:
        one = Requirement(line)
        version = versions.get(canonicalize_name(one.name))
        assert version is None or version in one.specifier, (line, version)


def test_the_pythons_are_named_alike_everywhere():
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == PYTHONS
    page = (ROOT / "docs" / "dev" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (3\.[\d., ]+) \| ([\d.]+) \|", page, flags=re.MULTILINE)
    said = {python: jax for pythons, jax in rows for python in pythons.split(", ")}
    assert said == {python: known(python)["jax"] for python in PYTHONS}


def test_every_command_is_run_by_make_minima_newest_and_wheel():
    lines = [line for line, _ in every_command.LINES]
    assert {name for name in COMMANDS for line in lines if f"{line} ".startswith(f"{name} ")} == {
        *COMMANDS
    }
    extras = PROJECT["optional-dependencies"]
    assert {extra for _, extra in every_command.LINES if extra} <= extras.keys()


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    """Built, checked, installed where there is nothing else; every command does as it should."""
    command = ["make", "wheel", f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(
        [*command, f"DIST={tmp_path}/dist"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
