"""Where numbers come from: a commit is known or unknown, and costs nothing else."""

import re

import pytest

from jaxpg import suites
from jaxpg.population import provenance


def test_it_is_the_commit_of_this_checkout_whatever_git_is_told_of_another(monkeypatch, tmp_path):
    if not (provenance.ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    commit = provenance.commit()
    assert commit is not None
    assert re.fullmatch(r"[0-9a-f]{12}\+?", commit)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
    assert provenance.commit() == commit


@pytest.mark.parametrize("git", [None, "exit 128", "exit 0"])
def test_without_git_or_where_it_refuses_the_commit_is_unknown(git, monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    if git is not None:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{git}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_outside_a_checkout_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() is None
    assert provenance.versions()["jaxpg"]


def test_the_version_of_a_suite_is_told_where_it_is_used(monkeypatch):
    monkeypatch.setitem(suites.SUITES, "ours", suites.Suite("no_module", "pytest", ""))
    monkeypatch.setitem(suites.SUITES, "theirs", suites.Suite("no_module", "no_such_package", ""))
    own = provenance.versions("ours:pole").keys() - provenance.versions("CartPole-v1").keys()
    assert own == {"pytest"}
    assert provenance.versions("theirs:pole") == provenance.versions()


def test_the_device_is_told(monkeypatch):
    """And what its last bits depend on."""
    monkeypatch.delenv("XLA_FLAGS")
    known = {"platform": "cpu", "kind": "cpu", "processor": provenance.processor()}
    assert known.items() <= provenance.device().items()
    assert provenance.device().keys() == {*known, "count", "form", "xla_flags"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    assert provenance.device()["xla_flags"] == "--xla_cpu_max_isa=SSE4_2"
