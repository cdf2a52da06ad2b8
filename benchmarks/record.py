"""What every benchmark records beside its numbers, and how it prints them."""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, content: dict[str, Any]) -> Path:
    """Write results/NAME-PLATFORM.json with the command, commit, versions and device."""
    import jax

    from jaxpg.results import commit, device, versions

    record = {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "versions": versions(),
        "device": device(),
        **content,
    }
    path = RESULTS / f"{name}-{jax.default_backend()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {path}", file=sys.stderr)
    return path


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
