"""The public path of `jaxpg.core.types`: the data that flows between the parts."""

from jaxpg.core.types import *  # noqa: F403
