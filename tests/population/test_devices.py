import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxpg.core.config import Config
from jaxpg.population import cgroups, devices
from jaxpg.runs.python import train_population

TINY = Config(num_envs=2, num_steps=16, total_steps=64, hidden_sizes=(4,), value_steps=1)
X = np.linspace(-3, 3, 1024 * 64, dtype=np.float32).reshape(1024, 64)


def tanh(x):
    return jnp.tanh(jnp.exp(x) + 0.1)


def test_a_core_is_one_device_of_its_own(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "3")
    first, second = devices.core(0), devices.core(1)
    assert os.environ["PJRT_NPROC"] == "3"
    assert first is devices.core(0)
    assert first.client is not second.client
    assert {first.platform, second.platform} == {"cpu"}


@pytest.mark.parametrize("cached", [True, False])
def test_every_core_has_the_same_program(cached, monkeypatch, tmp_path):
    """From jax's cache, or copied where there is none."""
    monkeypatch.setattr(devices, "_is_cached", lambda: cached)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path) if cached else None)
    compilation_cache.reset_cache()  # jax 0.11 would go on with the one before
    cores, x = [devices.core(0), devices.core(1)], X.astype(np.float64)
    try:
        with jax.enable_x64(True):  # which other threads know nothing of
            compiled = devices.compile_on_each(jax.jit(tanh), (x,), cores)
            outputs = [f(jax.device_put(x, core)) for f, core in zip(compiled, cores, strict=True)]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    assert [output.device for output in outputs] == cores
    assert np.array_equal(outputs[0], outputs[1])
    assert np.allclose(outputs[0], np.tanh(np.exp(x) + 0.1), rtol=1e-14)


def test_a_program_that_calls_back_is_compiled_for_each_core(monkeypatch):
    """As jax.debug.print in a loss of one's own does: it cannot be copied."""
    monkeypatch.setattr(devices, "_is_cached", lambda: False)
    seen, cores = [], [devices.core(0), devices.core(1)]

    def told(x):
        jax.debug.callback(lambda y: seen.append(float(y)), x.sum())
        return x + 1.0

    compiled = devices.compile_on_each(jax.jit(told), (X,), cores)
    outputs = [f(jax.device_put(X, core)) for f, core in zip(compiled, cores, strict=True)]
    jax.effects_barrier()
    assert [output.device for output in outputs] == cores
    assert len(seen) == 2


def test_an_accelerators_program_is_compiled_before_those_of_the_others(monkeypatch):
    """Which take it from jax's cache; compiled at once, each would be tuned for itself."""
    compiled = []

    def lower(x):
        device = x.sharding.device
        assert device == "gpu:0" or compiled == ["gpu:0"]

        def compile(options):
            assert options is None  # those of cores are no GPU's
            compiled.append(device)
            return f"program of {device}"

        return SimpleNamespace(compile=compile)

    class Gpu(str):
        platform = "gpu"

    def placed(gpu):
        return SimpleNamespace(device=gpu)

    def shape(*of_array, sharding):
        return SimpleNamespace(sharding=sharding)

    monkeypatch.setattr(jax.sharding, "SingleDeviceSharding", placed)
    monkeypatch.setattr(jax, "ShapeDtypeStruct", shape)
    gpus = [Gpu(f"gpu:{i}") for i in range(3)]
    programs = devices.compile_on_each(SimpleNamespace(lower=lower), (X,), gpus)
    assert programs == [f"program of {gpu}" for gpu in gpus]


def test_a_program_of_a_core_is_not_divided_among_threads():
    """XLA would give this one to two threads, where its pool has them."""
    (compiled,) = devices.compile_on_each(jax.jit(tanh), (X,), [devices.core(0)])
    divided = 'outer_dimension_partitions":["'
    assert divided not in compiled.as_text()
    if devices.cpu_count() > 1:
        assert divided in jax.jit(tanh).lower(X).compile().as_text()


def hide(monkeypatch, how):
    """A jax that lets nobody make a client; cores that were made before do not count."""
    from jaxlib import xla_client

    if how == "missing":
        monkeypatch.delattr(xla_client, "make_cpu_client")
    else:
        monkeypatch.setattr(xla_client, "make_cpu_client", lambda: None)
    monkeypatch.setattr(devices, "core", devices.core.__wrapped__)


@pytest.fixture(scope="module")
def ours():
    return train_population(TINY, [3, 4, 5], lanes=2)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_without_private_parts_of_jax_its_own_devices_train(ours, monkeypatch, how):
    hide(monkeypatch, how)
    with pytest.warns(UserWarning, match="a device of its own .*: training is slower"):
        theirs = train_population(TINY, [3, 4, 5], lanes=2)
    np.testing.assert_array_equal(ours.final_return, theirs.final_return)
    np.testing.assert_allclose(ours.metrics.policy_loss, theirs.metrics.policy_loss, rtol=1e-3)


def limited(monkeypatch, root, groups, **files):
    """The process lies in these groups, below a root in which there are these files."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    real = Path.read_text

    def read_text(path, *rest, **named):
        return groups if path == Path("/proc/self/cgroup") else real(path, *rest, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(cgroups, "ROOT", root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("300000 100000", 3), ("150000 100000", 2), ("5000 100000", 1)],
)
def test_a_quota_of_a_control_group_counts(monkeypatch, tmp_path, limit, cores):
    """Version 2, of the group itself or of one that it lies in; a part of a core is one."""
    for inner, outer in ((limit, "max 100000"), ("max 100000", limit), (limit, "900000 100000")):
        files = {"job__step__cpu_max": f"{inner}\n", "job__cpu_max": f"{outer}\n"}
        limited(monkeypatch, tmp_path, "0::/job/step\n", **files)
        assert devices.cpu_count() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2), ("250000", 3)])
def test_and_so_does_one_of_version_1(monkeypatch, tmp_path, quota, cores):
    """In a container, which does not see the group that it lies in."""
    files = {"cpu__cpu_cfs_quota_us": quota, "cpu__cpu_cfs_period_us": "100000"}
    groups = "9:name=systemd:/docker/1\n4:cpuacct,cpu:/docker/1\n2:memory:/docker/1\n"
    limited(monkeypatch, tmp_path, groups, **files)
    assert devices.cpu_count() == cores
    limited(monkeypatch, tmp_path / "none", groups)
    assert devices.cpu_count() == 8
