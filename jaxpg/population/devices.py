"""The devices that train: accelerators, or each core of a CPU.

jax's own CPU device has a pool with a thread for every core. XLA divides kernels of a few
microseconds among them, which takes longer than the kernels do, and programs that run at the same
time wait for one another. So every core gets a client of its own, with a pool of one thread: its
programs do not even depend on how many cores the machine has.
"""

import functools
import math
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from jaxpg import words
from jaxpg.fast import backend
from jaxpg.population import cgroups

OPTIONS: dict[str, Any] = {  # of XLA, for a core's programs
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": "512",  # where it has them; by itself XLA makes vectors of 256
    # Products alone go to its library: a sum over two actions, of long episodes, is slow there.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


def cpu_count() -> int:
    """The cores that this process may use, a part of one counted as one."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min([cores, *map(math.ceil, _quotas())])


def _quotas() -> Iterator[float]:
    """How much of cores' time this process's control groups may take, where that is limited."""
    for version, group in cgroups.groups("cpu"):
        try:
            if version == 2:
                quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue  # the root has no limit
        if quota != "max" and int(quota) > 0:  # -1 is none in version 1
            yield int(quota) / int(period)


def workers() -> list[Any]:
    """This process's accelerators, or the cores of its CPU, if that is jax's default device.

    A jax that lets nobody make a client trains on its own CPU devices, with a warning.
    """
    local = backend.devices()
    if local[0].platform != "cpu":
        return local
    try:
        return [core(i) for i in range(cpu_count())]
    except (ImportError, AttributeError, TypeError) as error:
        warnings.warn(
            f"jax {jax.__version__} does not give every core a device of its own "
            f"({words.line(error)}): training is slower",
            stacklevel=2,
        )
        return local


@functools.cache
def core(i: int) -> Any:
    """The device of one core, the same one at each call.

    Raises:
      ImportError, AttributeError, TypeError: if this jax has no such thing, which is not public.
    """
    from jaxlib import xla_client

    name = "PJRT_NPROC"  # threads in the pools of a client that is made
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        client: Any = xla_client.make_cpu_client(asynchronous=False)
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return client.local_devices()[0]


def compile_on_each(
    function: Any, arguments: tuple, devices: Sequence[Any]
) -> list[jax.stages.Compiled]:
    """A function for each of the devices, compiled for the first one.

    The others take it from jax's compilation cache: a GPU's compiler measures which code is
    fastest, and two times need not find the same. Where nothing is kept, cores of a CPU get
    copies, and accelerators programs of their own, as cores do where a program calls back into
    Python. (What comes out of that cache cannot be copied.)

    Args:
      function: from `jax.jit`.
      arguments: arrays, or their shapes and dtypes.
    """

    def lower(device: Any) -> jax.stages.Lowered:
        placed = jax.sharding.SingleDeviceSharding(device)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=placed), arguments
        )
        return function.lower(*shapes)

    first, *others = devices
    options = OPTIONS if first.platform == "cpu" else None

    def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        return lowered.compile(options)

    program = compiled(lower(first))
    with ThreadPoolExecutor(len(devices)) as pool:
        if first.platform == "cpu" and not _is_cached() and (code := _code_of(program)):
            return [program, *pool.map(functools.partial(_copy, code), others)]
        return [program, *pool.map(compiled, [lower(one) for one in others])]


def _is_cached() -> bool:
    """Whether jax keeps what it compiles; it does not keep what takes it a second or less."""
    settings: Any = jax.config
    return settings.jax_enable_compilation_cache and bool(settings.jax_compilation_cache_dir)


def _code_of(compiled: jax.stages.Compiled) -> tuple | None:
    """Its machine code, with what goes in and comes out; None where it calls functions of Python's
    (jax.debug.print, say), which cannot be written down."""
    try:
        return serialize_executable.serialize(compiled)
    except (AttributeError, TypeError, pickle.PicklingError):
        return None


def _copy(serialized: tuple, device: Any) -> jax.stages.Compiled:
    """The same machine code on another device."""
    code, inputs, outputs = serialized
    return serialize_executable.deserialize_and_load(
        code, inputs, outputs, backend=device.client, execution_devices=[device]
    )
