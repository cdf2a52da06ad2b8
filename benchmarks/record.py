"""What every benchmark records beside its numbers, and how it prints them."""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, content: dict[str, Any]) -> Path:
    """Write results/NAME-PLATFORM.json with the command, commit, versions and device."""
    import jax

    from jaxpg.population.provenance import commit, device, processor, versions

    record = {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "versions": versions(),
        "device": device(),
        "processor": processor(),
        **content,
    }
    path = RESULTS / f"{name}-{jax.default_backend()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {path}", file=sys.stderr)
    return path


def read(name: str, platform: str = "cpu") -> dict[str, Any] | None:
    """What was written; None where nothing was."""
    path = RESULTS / f"{name}-{platform}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def commits(record: dict[str, Any]) -> str:
    """Of which commits its rows are: commit 1a2b3c, or commits 1a2b3c and 4d5e6f."""
    *before, last = _of_rows(record, "commit")
    return f"commits {', '.join(before)} and {last}" if before else f"commit {last}"


def processors(record: dict[str, Any]) -> str:
    """Which of them its rows were measured on."""
    return "; ".join(_of_rows(record, "processor"))


def _of_rows(record: dict[str, Any], what: str) -> list[str]:
    """The values that its rows have, or else the record; each once."""
    return list(dict.fromkeys(row.get(what, record[what]) for row in record.get("rows", [{}])))


def fill(text: str, parts: dict[str, str]) -> str:
    """The text with each named part put between its markers, which must be there."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = f"{text[:start]}\n{part}\n{text[stop:]}"
    return text


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
