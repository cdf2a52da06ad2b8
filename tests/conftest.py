"""Strict mode for every test: no silent broadcasting, no warning unseen, one torch thread."""

import ctypes
import gc
import os
import platform
import signal
from collections import Counter
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a test's time is XLA's: LLVM at level 0 compiles random draws 5 times faster, and the
# older emitter of fused loops, where XLA still has it, compiles all programs twice as fast as
# MLIR's; not cut into parts for threads of their own, a program is compiled in a seventh less. The
# plain form of an algorithm is traced in two thirds of the time. Users have none of these: what is
# marked as_users_run has to hold without them, and is run without them alone; tests/fast chooses
# its forms itself.
FAST_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)
if os.environ["XLA_FLAGS"] == FAST_COMPILE:
    os.environ.setdefault("JAXPG_FORM", "plain")
# Compiled programs are kept between runs and shared by subprocesses.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

MEMORY = 2**30  # bytes that a worker may keep from one module to the next

import hypothesis
import jax
import pytest
import torch

hypothesis.settings.register_profile(
    "no test asserts a time",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("no test asserts a time")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)  # two test workers on two cores
gc.freeze()  # what is imported stays; tracing makes many objects, and little garbage
gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test that is marked thin(n), all but every n-th are slow; of those that are
    not slow, and of those that are, every n-th is optimized where it is marked as_users_run(n)."""
    seen = Counter()
    for item in items:
        thin = item.get_closest_marker("thin")
        if thin:
            if seen[item.function] % thin.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[item.function] += 1
        as_users_run = item.get_closest_marker("as_users_run")
        if as_users_run:
            alike = (item.function, item.get_closest_marker("slow") is None)
            if seen[alike] % as_users_run.args[0] == 0:
                item.add_marker(pytest.mark.optimized)
                if os.environ["XLA_FLAGS"] == FAST_COMPILE:
                    item.add_marker(pytest.mark.skip(reason="as users run: needs XLA_FLAGS="))
            seen[alike] += 1


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """What modules compiled is dropped when it has become too much: a worker that kept everything
    grew to 5 GB."""
    yield
    if _resident() < MEMORY:
        return
    jax.clear_caches()
    if platform.libc_ver()[0] == "glibc":  # gives back to the system what it has freed
        ctypes.CDLL(None).malloc_trim(0)


def _resident():
    """Bytes of memory that this process has; where the system does not say, what it may have."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return MEMORY
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def programs_kept():
    """Populations of one shape share a program in this module; a new one takes a second to trace.

    For tests of what is done with runs, not of how they are compiled: what is patched in the core
    after a first training is not seen. An algorithm of one's own is known by its module's source.
    """
    from jaxpg import fast
    from jaxpg.population import chunks, devices, own

    kept, compile_programs = {}, chunks.compile_programs

    def once(chunk, length, workers=None, build=fast.build):
        given = (chunk.config, chunk.options, chunk.keys, chunk.params)
        leaves, static = jax.tree.flatten(given)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        episodes = chunk.evaluating and chunk.evaluating.episodes
        source = own.source(build)
        known = source and source.sha256 and own.is_importable(source.name)
        made = source if known else build
        key = (static, shapes, length, len(devices.workers()[:workers]), made, episodes)
        if key not in kept:
            kept[key] = compile_programs(chunk, length, workers, build)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "compile_programs", once)
        yield compile_programs


@pytest.fixture
def compiled_anew(programs_kept, monkeypatch):
    """No program that this module has kept is taken."""
    from jaxpg.population import chunks

    monkeypatch.setattr(chunks, "compile_programs", programs_kept)


@pytest.fixture
def stop_after(monkeypatch):
    """A reporter that asks to stop, as a supervisor's SIGTERM does, at one of its calls.

    The handler is called, not the process signalled: that is heard when the main thread gets to it,
    which may be after the end of so short a run. (test_faults.py sends signals.) Each segment is
    saved and reported: a slow disk would leave 7 updates with their end alone.
    """
    from jaxpg.runs import run

    def reporter(reports, seen=None, number=signal.SIGTERM):
        seen = [] if seen is None else seen

        def report(at):
            seen.append(at)
            if len(seen) == reports:
                signal.getsignal(number)(number, None)

        return report

    monkeypatch.setattr(run, "SAVE_RATIO", 0.0)
    return reporter


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
    from jaxpg.runs import directories, planning, run

    config = Config(num_envs=4, num_steps=64, total_steps=256 * 8, hidden_sizes=(16,))
    directory = tmp_path_factory.mktemp("trained") / "run"
    directories.begin(directory, planning.plan("vpg", config, [2, 9, 4, 0, 5], 2))
    run.train(directory, stall_seconds=600.0)
    return directory
