"""In which form the loops and products are computed: chosen here, for the whole package.

The forms differ in the order of sums and in how an operation rounds, in nothing else. What has been
traced keeps the form it was traced in.
"""

import os

import jax

from jaxpg.core.config import ConfigError

FORMS = ("cpu", "plain", "fused")
VARIABLE = "JAXPG_FORM"
LEAST_CAPABILITY = 8.0  # NVIDIA's number of the oldest GPUs (Ampere) that XLA has Triton for


def form() -> str:
    """`cpu`, what XLA:CPU computes fastest; `fused`, NVIDIA GPUs' kernels; or `plain`, one vmap.

    By itself a CPU gets the first, an NVIDIA GPU that Triton compiles for the second, anything else
    the third. The environment variable JAXPG_FORM chooses another.

    Raises:
      ConfigError: if the variable names none of them.
    """
    chosen = os.environ.get(VARIABLE) or _default()
    if chosen not in FORMS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(FORMS)}; got {chosen!r}")
    return chosen


def _default() -> str:
    platform = jax.default_backend()
    if platform != "gpu":
        return "cpu" if platform == "cpu" else "plain"
    device = jax.devices()[0]
    nvidia = "cuda" in device.client.platform_version.lower()
    return "fused" if nvidia and float(device.compute_capability) >= LEAST_CAPABILITY else "plain"
