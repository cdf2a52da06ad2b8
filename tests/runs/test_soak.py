"""A long run in a small machine: its memory stays flat, and it leaves no file behind."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from jaxpg import files
from jaxpg.core.config import Config
from jaxpg.runs import checkpoints, directories, planning, run
from jaxpg.runs.results import FILES

SEEDS = int(os.environ.get("JAXPG_SOAK_SEEDS", "256"))


def resident() -> int:
    """Bytes of this process's memory that are in RAM."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(tmp_path):
    """500 updates of many seeds; every chunk is saved at least once."""
    config = Config(num_envs=2, num_steps=32, total_steps=64 * 500)
    used: list[int] = []
    directories.begin(tmp_path / "run", planning.plan("vpg", config, list(range(SEEDS)), 16))
    run.train(tmp_path / "run", report=lambda at: used.append(resident()), stall_seconds=600.0)
    at_first = used[len(used) // 20]  # once every worker has trained and saved some chunks
    print(
        f"{SEEDS} seeds: {at_first / 1e6:.0f} MB, {used[-1] / 1e6:.0f} MB after {len(used)} saves"
    )
    assert max(used[len(used) // 20 :]) < 1.05 * at_first
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    kept = {path for path in left if checkpoints.NAME.fullmatch(path)}
    assert not [name for name in left if name.startswith(files.TEMPORARY)]
    assert len(kept) <= checkpoints.KEPT * -(-SEEDS // 16)
    assert left - kept >= {*FILES, "manifest.json", "lock", run.LOG}
    with np.load(tmp_path / "run" / "results.npz", allow_pickle=False) as results:
        assert results["env_steps"].shape == (SEEDS, 500)
