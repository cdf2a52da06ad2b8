"""docs/policies.md runs, and prints what it says."""

import shutil

from benchmarks import readme
from tests import pages

PAGE = readme.ROOT / "docs" / "policies.md"


def test_the_page_is_true(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert pages.run(PAGE) == 4
