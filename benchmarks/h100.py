"""A program as XLA compiles it for an H100, on a machine that has none.

XLA compiles for a GPU that is only described, if it finds its CUDA plugin. Beside a jax for CPUs
that is put into a folder of its own (jax complains of a plugin without a GPU at every start):

    pip install --no-deps --target cuda jax-cuda12-pjrt==VERSION jax-cuda12-plugin==VERSION
    PYTHONPATH=cuda python -m benchmarks.gpu

VERSION is that of jax, 0.10: XLA of jax 0.11 compiles, too, but does not write the kernels' PTX.
"""

import os
import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

# Of the SXM board. What there is at most, and the part of it that a kernel gets.
LAUNCH_SECONDS = 3e-6  # a kernel within an enqueued loop: 2 to 5 µs
BYTES_PER_SECOND = 0.8 * 3.35e12
FLOP_PER_SECOND = 0.5 * 67e12  # float32, outside of the tensor cores
INSTRUCTIONS_PER_SECOND = 0.5 * 132 * 4 * 1.98e9  # of warps: 4 a cycle in each of 132 cores
DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  device_memory_size: 84929347584  registers_per_core_limit: 65536
  registers_per_block_limit: 65536  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def missing() -> str | None:
    """Why nothing can be compiled for it here, in a line; or None."""
    if not version("jaxlib").startswith("0.10."):
        return f"XLA of jax {version('jaxlib')} writes no PTX of it; that of jax 0.10 does"
    if find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda12"):
        return None
    return "jax's CUDA plugin is not installed; benchmarks/h100.py says how"


def compile_text(make: Callable[[], tuple[Any, tuple]]) -> tuple[str, list[str]]:
    """The optimized HLO of a program, and the PTX of its kernels.

    To be called before anything else uses jax.

    Args:
      make: () -> a jitted function and the shapes of its arguments; called where jax takes its
        backend for a GPU.
    """
    with tempfile.TemporaryDirectory() as directory:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={directory}"
        os.environ["XLA_FLAGS"] = flags.strip()
        os.environ["JAX_PLATFORMS"] = "cpu"  # the plugin has no device
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # nor has it CUDA's libraries
        import jax
        import numpy as np
        from jax.experimental import topologies
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        jax.devices()  # finds the plugins
        described = topologies.get_topology_desc(
            platform="cuda", target_config=DESCRIPTION, topology="1x1x1"
        )
        placed = jax.sharding.SingleDeviceSharding(described.devices[0])
        h100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
        with (
            mock.patch("jax.default_backend", return_value="gpu"),
            use_abstract_mesh(AbstractMesh((), (), abstract_device=h100)),
        ):
            function, arguments = make()
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=placed), arguments
            )
            lowered = function.trace(*shapes).lower(lowering_platforms=("cuda",))
        text = lowered.compile().as_text()
        return text, [path.read_text() for path in sorted(Path(directory).glob("*.ptx"))]


def turns(ptx: list[str]) -> dict[str, int]:
    """The instructions of the longest loop of each kernel that has one, by the kernel's name.

    Of kernels whose names differ in a number that XLA has added, those of the longest.
    """
    found: dict[str, int] = {}
    for text in ptx:
        entry = re.search(r"\.entry (\w+?)(?:__\d+)?\(", text)
        lines = [line.strip() for line in text.splitlines()]
        labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
        for i, line in enumerate(lines):
            target = re.search(r"\bbra(?:\.uni)?\s+(\$\w+);", line)
            if entry and target and labels[target[1]] < i:
                body = lines[labels[target[1]] : i + 1]
                size = sum(bool(re.match(r"(@!?%\w+\s+)?[a-z]", one)) for one in body)
                found[entry[1]] = max(size, found.get(entry[1], 0))
    return found
