"""The one writer: whole or not at all, in UTF-8, and a sentence where the file system refuses."""

import ast
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from jaxpg import files
from jaxpg.errors import RunError

ROOT = Path(__file__).parents[1]


def fail(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write(path, "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "new")
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("x.json", "old")]


def test_a_log_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "log"
    files.append(path, "1")
    with path.open("a") as file:
        file.write("2")
    files.append(path, "3")
    assert path.read_text() == "1\n2\n3\n"


def test_folders_that_are_made_are_kept_by_those_they_lie_in(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    synced.clear()
    files.make_folder(tmp_path / "a" / "b")
    assert not synced


def test_a_directory_that_is_forsaken_gets_no_name(tmp_path, monkeypatch):
    """Its files go one by one, while another thread would give it one."""
    out, real = tmp_path / "out", shutil.rmtree

    def fill():
        with files.whole_directory(out, "--out") as at:
            (at / "some").write_text("")
            (at / "more").write_text("")

            def removed(path, **options):
                (path / "some").unlink()
                with suppress(OSError):
                    at.rename(out)
                real(path, **options)

            with monkeypatch.context() as patch:
                patch.setattr(shutil, "rmtree", removed)
                files.forsake()

    with pytest.raises(RunError, match="cannot be written"):
        fill()
    assert not list(tmp_path.iterdir())


def test_text_is_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    files.write(tmp_path / "a", "Ψ")
    files.append(tmp_path / "b", "Ψ")
    files.save(tmp_path / "c", "Ψ")
    contents = [(tmp_path / name).read_bytes().strip() for name in "abc"]
    assert contents == ["Ψ".encode()] * 3


def test_save_makes_folders_keeps_links_and_writes_to_pipes(tmp_path):
    files.save(tmp_path / "deep" / "file", b"1")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    files.save(tmp_path / "link", b"2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "file").read_bytes() == b"2"
    reader, writer = os.pipe()
    files.save(Path(f"/dev/fd/{writer}"), b"3")
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"3"
    assert Path(f"/dev/fd/{reader}").parent.exists()


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path, "--json must be a file; "),
        (tmp_path / "file" / "x", "--json must be a file that can be written; "),
    ):
        with pytest.raises(RunError, match=words):
            files.check(path, "--json")
        with pytest.raises(RunError, match=r"cannot be written \("):
            files.save(path, "")
    with pytest.raises(RunError, match=r"cannot be written \("):
        files.save(Path("/proc/jaxpg/x"), "")  # where even root may not
    for fine in (None, tmp_path / "new" / "x", tmp_path / "file", Path("/dev/stdout")):
        files.check(fine, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_is_whole_or_not_there(tmp_path):
    with files.whole_directory(tmp_path / "a", "--out") as partial:
        (partial / "x").write_text("")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    with pytest.raises(ZeroDivisionError), files.whole_directory(tmp_path / "b", "--out"):
        1 / 0  # noqa: B018
    with pytest.raises(RunError, match="No space"), files.whole_directory(tmp_path / "b", "--out"):
        fail()
    with (
        pytest.raises(RunError, match="--out must be a new or empty directory"),
        files.whole_directory(tmp_path / "a", "--out"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_who_leaves_at_once_forsakes_what_is_unfinished(tmp_path):
    with files.whole_directory(tmp_path / "a", "--out") as partial:
        files.forsake()
        assert not partial.exists()
        partial.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def opened(path: Path):
    """The calls in a module that open a file, or run a program, as text: line and keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {word.arg for word in node.keywords}
        words = [x.value for x in node.args if isinstance(x, ast.Constant)]
        modes = [x for x in words if isinstance(x, str) and set(x) <= set("rwab+x")]
        if getattr(getattr(node.func, "value", None), "id", "") == "os":
            continue  # descriptors, which are bytes
        if (
            name in ("read_text", "write_text", "TextIOWrapper")
            or (name in ("open", "fdopen") and not any("b" in mode for mode in modes))
            or "text" in keywords
        ):
            yield node.lineno, keywords


def test_every_file_that_is_opened_names_its_encoding():
    unnamed = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / "jaxpg").rglob("*.py")
        if path.name != "memory.py"  # which reads /proc
        for line, keywords in opened(path)
        if "encoding" not in keywords
    }
    assert not unnamed
