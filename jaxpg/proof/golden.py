"""`jaxpg parity record DIR`: golden files, to check a port to another framework without ours.

One npz for each configuration, and a page that explains every array. Recorded twice on one machine
they are the same bytes.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpg.core import trace
from jaxpg.core.config import Config
from jaxpg.files import whole_directory, write
from jaxpg.names import to_torch
from jaxpg.proof import batch, pairs
from jaxpg.proof.levels import CASES

SEED = 0
PAGE = Path(__file__).with_name("golden.md")


def record(
    out: Path, cases: Mapping[str, Config] = CASES, report: Callable[[str], None] = lambda _: None
) -> None:
    """Write the golden files of some configs into a new directory.

    Args:
      out: new or empty; complete or not there.
      cases: configs by label.
      report: told which config is next.

    Raises:
      RunError: if `out` holds something or cannot be written.
    """
    with whole_directory(out, "DIR") as partial:
        for i, (label, config) in enumerate(cases.items(), 1):
            report(f"recording {label} ({i} of {len(cases)})")
            np.savez_compressed(partial / f"{_slug(label)}.npz", **arrays(config))
        listed = "\n".join(f"- `{_slug(label)}.npz`: {label}" for label in cases)
        text = PAGE.read_text(encoding="utf-8")
        text = text.replace("{files}", listed).replace("{version}", version("jaxpg"))
        write(partial / "README.md", text)


def arrays(config: Config) -> dict[str, Any]:
    """Everything that one file holds, by name; `golden.md` explains it."""
    grid = dataclasses.replace(config, arithmetic="float32_grid")
    small = dataclasses.replace(batch.small(config), arithmetic="float64")
    with jax.enable_x64(True):
        results = dict(pairs.our_gradients(small, SEED))
        del results["scale"]
        return {
            "version": np.array(version("jaxpg")),
            "seed": np.int64(SEED),
            "config": _json(grid),
            **pairs.prefixed("initial", pairs.our_parameters(grid, SEED)),
            **pairs.prefixed("noise_0", pairs.draws(grid, SEED, 0)),
            **pairs.prefixed("noise_1", pairs.draws(grid, SEED, 1)),
            **pairs.prefixed("run_0", next(trace.records(grid, SEED, 1))),
            "batch_config": _json(small),
            **pairs.prefixed("batch", batch.fields(small, SEED)),
            **pairs.prefixed("params", to_torch(batch.parameters(small, SEED))),
            **_scale(small),
            **results,
            **pairs.our_updates(small, SEED),
        }


def _scale(config: Config) -> dict[str, Any]:
    """What rewards are scaled by before the batch, where they are."""
    scale = batch.reward_scale(config, SEED)
    named = {} if scale is None else {"returns": scale.returns, **scale.moments}
    return pairs.prefixed("scale", named)


def _json(config: Config) -> np.ndarray:
    return np.array(json.dumps(dataclasses.asdict(config)))


def _slug(label: str) -> str:
    return re.sub("[^a-z0-9]+", "-", label.lower().replace("σ", "sigma"))
