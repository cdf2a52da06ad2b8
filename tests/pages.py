"""Pages of the documentation that run."""

import contextlib
import io
import re


def blocks(page):
    """(language, code, line of the first line of code) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        yield match[1], match[2], text[: match.start(2)].count("\n") + 1


def run(page, same=str.__eq__):
    """Run the Python blocks in order and hold what they print against the text blocks after them.

    Args:
      same: (shown, printed) -> whether the page tells the truth.

    Returns:
      How many text blocks there are.
    """
    namespace, printed, checked = {"__name__": "page"}, io.StringIO(), 0
    for language, code, line in blocks(page):
        if language == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        elif language == "text":
            assert same(code, printed.getvalue()), f"line {line}:\n{printed.getvalue()}"
            printed, checked = io.StringIO(), checked + 1
    assert not printed.getvalue()
    return checked
