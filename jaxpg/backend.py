"""In which form the loops and products are computed: chosen here, for the whole package.

The forms differ in the order of sums and in how an operation rounds, in nothing else. What has been
traced keeps the form it was traced in.
"""

import os

import jax

from jaxpg.config import ConfigError

FORMS = ("cpu", "plain", "fused")
VARIABLE = "JAXPG_FORM"


def form() -> str:
    """`cpu`, what XLA:CPU computes fastest; `plain`, one vmap; or `fused`, NVIDIA GPUs' kernels.

    By itself a CPU gets the first and anything else the second. The environment variable
    JAXPG_FORM chooses another.

    Raises:
      ConfigError: if the variable names none of them.
    """
    default = "cpu" if jax.default_backend() == "cpu" else "plain"
    chosen = os.environ.get(VARIABLE, default)
    if chosen not in FORMS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(FORMS)}; got {chosen!r}")
    return chosen
