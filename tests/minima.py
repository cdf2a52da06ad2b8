"""The smallest version of everything that pyproject.toml declares, as pip's constraints.

python tests/minima.py > constraints.txt; `make minima` installs them and runs every command.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# For use; the others are for work.
EXTRAS = (
    "brax", "craftax", "export", "jumanji", "navix", "optuna", "playground", "ray", "tensorboard",
    "torch", "wandb",
)  # fmt: skip


def pins() -> Iterator[str]:
    """NAME==VERSION of each requirement, those of extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in EXTRAS]
    for requirement in itertools.chain(project["dependencies"], *extras):
        least = re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement)
        if least:
            yield f"{least[1]}=={least[2]}"


if __name__ == "__main__":
    print(*pins(), sep="\n")
