"""Every measuring script runs to its end at its smallest size; in CI one does."""

import os
import subprocess
import sys

import pytest

SCRIPTS = (  # the first in CI
    *("memory", "article", "certificate", "compile", "divergence", "gpu", "roofline", "scaling"),
    *("cluster", "family", "invariance", "optimum", "ppo", "presets", "race", "reference"),
    *("throughput", "time_to_solve", "tpu", "train", "trust_region"),
)


@pytest.mark.thin(len(SCRIPTS))
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_smoke_of(script, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{script}", "--smoke"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
