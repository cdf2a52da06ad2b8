"""Every command of an installed jaxpg, at its smallest, in the folder in which this is run.

`make minima`, `make newest` and `make wheel` run it, by the Python that jaxpg is installed for.
What an extra brings is used where it is there; where it is missing, the command must say so.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

SHORT = "--lanes 2 --num-envs 2 --num-steps 32 --total-steps 256 --lr-schedule constant"
# A command, and the extra that it needs.
LINES = (
    ("train vpg --seeds 4 --lanes 2 --total-steps 20000 --out run", ""),
    (f"train vpg {SHORT} --seeds 2 --track tensorboard --out tracked", "tensorboard"),
    (f"train vpg {SHORT} --seeds 2 --out a", ""),
    (f"train vpg {SHORT} --seeds 2:4 --out b", ""),
    ("resume run", ""),
    ("status run", ""),
    ("merge a b --out both", ""),
    ("extend both --total-steps 320", ""),
    ("report run", ""),
    ("compare a b", ""),
    ("retrace a --seed 1 --update 1", ""),
    ("evaluate run --episodes 5", ""),
    ("render run --out run.gif", ""),
    ("export run --to safetensors", ""),
    ("export run --to stablehlo", "export"),
    ("export run --to onnx", "export"),
    ("export run --to torch", "torch"),
    ("sweep reinforce --env Pendulum-v1 --grid gamma=0.9,0.99 --seeds 2 --lanes 2"
     " --total-episodes 64 --out sweep", ""),
    (f"race vpg vpg,gamma=0.9 {SHORT}"
     " --first-round 8 --max-seeds 8 --out race", ""),
    ("bench vpg --lanes 2 --rounds 1 --seconds 0.1", ""),
    ("envs", ""),
    ("check-env CartPole-v1", ""),
    ("presets", ""),
    ("oracle --horizon 4", ""),
    ("parity --level noise", "torch"),
    ("parity record golden", "torch"),
)  # fmt: skip
BRINGS = {"export": "onnx", "tensorboard": "tensorboardX", "torch": "torch"}  # to be imported


def main() -> None:
    """Run them in this order; exits with a sentence at the first that does not do as it should."""
    for line, extra in LINES:
        missing = extra and importlib.util.find_spec(BRINGS[extra]) is None
        print(f"jaxpg {line}{f', without {extra}' if missing else ''}", flush=True)
        done = subprocess.run(
            [Path(sys.executable).with_name("jaxpg"), *line.split()], capture_output=True, text=True
        )
        if done.returncode != (2 if missing else 0):
            sys.exit(f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if missing and "is not installed: pip install" not in done.stderr:
            sys.exit(f"it does not say what is missing:\n{done.stderr}")
    learnt = json.loads(Path("run/summary.json").read_bytes())["final_return"]["iqm"]
    if not learnt > 20:
        sys.exit(f"it has not learnt: a return of {learnt}")


if __name__ == "__main__":
    main()
