"""In which form the loops and products are computed: chosen here, for the whole package.

The forms differ in the order of sums and in how an operation rounds, in nothing else. What has been
traced keeps the form it was traced in.
"""

import os
from typing import Any

import jax

from jaxpg.core.config import ConfigError

FORMS = ("cpu", "plain", "fused")
VARIABLE = "JAXPG_FORM"
LEAST_CAPABILITY = 8.0  # NVIDIA's number of the oldest GPUs (Ampere) that XLA has Triton for


def form() -> str:
    """`cpu`, what XLA:CPU computes fastest; `fused`, NVIDIA GPUs' kernels; or `plain`, one vmap.

    By itself a CPU gets the first, NVIDIA GPUs that Triton compiles for the second, anything else
    the third. The environment variable JAXPG_FORM chooses another.

    Raises:
      ConfigError: if the variable names none of them.
    """
    chosen = os.environ.get(VARIABLE) or _default()
    if chosen not in FORMS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(FORMS)}; got {chosen!r}")
    return chosen


def devices() -> list[Any]:
    """This process's devices of the kind on which jax computes where nobody says which."""
    settings: Any = jax.config
    asked = settings.jax_default_device  # None, a platform's name or a device
    if asked is None or isinstance(asked, str):
        return jax.local_devices(backend=asked)
    return asked.client.local_devices()


def _default() -> str:
    local = devices()
    first = local[0]
    if first.platform != "gpu":
        return "cpu" if first.platform == "cpu" else "plain"
    if "cuda" not in first.client.platform_version.lower():
        return "plain"
    oldest = min(float(one.compute_capability) for one in local)
    return "fused" if oldest >= LEAST_CAPABILITY else "plain"
