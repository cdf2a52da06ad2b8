"""Put the figures of benchmarks/results into README.md.

    python -m benchmarks.readme [--check]

With --check nothing is written, and the exit code is 1 if the README says something else.
"""

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Write the README, or check it."""
    text = README.read_text()
    current = render(text)
    if "--check" in sys.argv[1:]:
        sys.exit(text != current)
    README.write_text(current)


def render(text: str) -> str:
    """The README with each generated part made anew."""
    for name, make in (("train", _train), ("parity", _parity)):
        record = json.loads((RESULTS / f"{name}-cpu.json").read_text())
        part = f"<!-- {name}: begin -->\n{make(record)}\n<!-- {name}: end -->"
        text = re.sub(
            f"<!-- {name}: begin -->.*<!-- {name}: end -->", lambda _: part, text, flags=re.S
        )
    return text


def _train(record: dict[str, Any]) -> str:
    s = record["summary"]
    spread = s["final_return"]
    text = (
        f"{s['solved_fraction']:.1%} of {s['seeds']} seeds end with a mean return of at least "
        f"{s['solved_at']:g} over their last 100 episodes; IQM {spread['iqm']:.1f} (95 % interval "
        f"{spread['ci95_low']:.1f} to {spread['ci95_high']:.1f}), worst seed {spread['min']:.1f}. "
        f"{s['total_env_steps'] / 1e6:.0f} million environment steps in {s['wall_seconds']:.0f} s "
        f"on {s['device']['count']} CPU cores, {s['env_steps_per_second'] / 1e6:.2f} million a "
        f"second, compiling ({s['compile_seconds']:.0f} s) aside: `{record['command']}`, commit "
        f"{record['commit']}, jax {s['versions']['jax']}."
    )
    return textwrap.fill(text, 100)


def _parity(record: dict[str, Any]) -> str:
    versions = record["versions"]
    return (
        f"{record['table']}\n\n`{record['command']}`, commit {record['commit']}, "
        f"jax {versions['jax']}, torch {record['torch']}, on a CPU."
    )


if __name__ == "__main__":
    main()
