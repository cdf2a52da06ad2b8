import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg.population import devices

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
    cores, x = [devices.core(0), devices.core(1)], X.astype(np.float64)
    try:
        with jax.enable_x64(True):  # which other threads know nothing of
            compiled = devices.compile_on_each(jax.jit(tanh), (x,), cores)
            outputs = [f(jax.device_put(x, core)) for f, core in zip(compiled, cores, strict=True)]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [output.device for output in outputs] == cores
    assert np.array_equal(outputs[0], outputs[1])
    assert np.allclose(outputs[0], np.tanh(np.exp(x) + 0.1), rtol=1e-14)


def test_a_program_of_a_core_is_not_divided_among_threads():
    """XLA would give this one to two threads, where its pool has them."""
    (compiled,) = devices.compile_on_each(jax.jit(tanh), (X,), [devices.core(0)])
    divided = 'outer_dimension_partitions":["'
    assert divided not in compiled.as_text()
    if devices.cpu_count() > 1:
        assert divided in jax.jit(tanh).lower(X).compile().as_text()
