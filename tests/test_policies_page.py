"""docs/policies.md runs, and prints what it says."""

import contextlib
import io
import shutil

from benchmarks import readme
from tests.test_parity_tools import blocks

PAGE = readme.ROOT / "docs" / "policies.md"


def test_the_page_is_true(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "runs" / "cartpole")
    monkeypatch.chdir(tmp_path)
    namespace, printed, checked = {"__name__": "page"}, io.StringIO(), 0
    for language, code, line in blocks(PAGE):
        if language == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), namespace)
        elif language == "text":
            assert printed.getvalue() == code, f"line {line}"
            printed, checked = io.StringIO(), checked + 1
    assert not printed.getvalue()
    assert checked == 4
