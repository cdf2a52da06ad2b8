"""What pyproject.toml declares as the least is at most what is known to work."""

import re

from minima import ROOT, pins


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def known():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_dependency_has_a_least_version_not_above_the_one_that_is_tested():
    found = dict(pin.split("==") for pin in pins())
    assert {"jax", "tyro", "scipy", "torch", "onnx"} <= found.keys()
    tested = known()
    for name, least in found.items():
        version = tested.get(name.lower().replace("_", "-"))
        assert version is None or numbers(least) <= numbers(version), name
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", project, flags=re.DOTALL | re.MULTILINE)
    assert all(">=" in line for line in listed[1].splitlines())
