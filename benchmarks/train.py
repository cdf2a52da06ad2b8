"""Does `vpg` solve CartPole-v1, on how many seeds, and how long does that take?

    python -m benchmarks.train [--smoke]

Runs the command of `make train` and keeps its summary (benchmarks/results/train-cpu.json) and its
picture (docs/cartpole.png). The seeds, 0 to 255, were never used for tuning (10000 and above were).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import command_line
from benchmarks.record import write

PICTURE = Path(__file__).parents[1] / "docs" / "cartpole.png"


def main() -> None:
    """Train, print the summary, write."""
    smoke = command_line(__doc__).parse_args().smoke
    size = ["--seeds", "4", "--total-steps", "8192"] if smoke else ["--seeds", "256"]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "jaxpg", "train", "vpg", *size, "--out", str(out)]
        subprocess.run(command, check=True)
        summary = json.loads((out / "summary.json").read_text())
        if not smoke:
            write("train", {"device": summary["device"], "summary": summary})
            shutil.copy(out / "curve.png", PICTURE)


if __name__ == "__main__":
    main()
