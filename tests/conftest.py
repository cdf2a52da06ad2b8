"""Strict mode for every test: no silent broadcasting, no warning unseen, one torch thread."""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a test's time is LLVM's, which at level 0 compiles random draws 5 times faster.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)
# Compiled programs are kept between runs and shared by subprocesses.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
import torch

jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)  # two test workers on two cores


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test that is marked thin(n), all but every n-th are slow."""
    seen = Counter()
    for item in items:
        thin = item.get_closest_marker("thin")
        if thin:
            if seen[item.function] % thin.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[item.function] += 1


@pytest.fixture(autouse=True)
def environment():
    """What a command that is run in this process sets for itself does not outlive the test."""
    before = os.environ.copy()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def x64():
    """JAX's 64-bit mode, for this test alone."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of five seeds of CartPole, tiny; to be read, not changed."""
    from jaxpg.core.config import Config
    from jaxpg.runs import run

    config = Config(num_envs=4, num_steps=64, total_steps=256 * 8, hidden_sizes=(16,))
    directory = tmp_path_factory.mktemp("trained") / "run"
    run.begin(directory, run.plan("vpg", config, [2, 9, 4, 0, 5], 2))
    run.train(directory, stall_seconds=600.0)
    return directory
