"""The public path of `jaxpg.proof.oracle`: the exact gradient, and every estimator against it."""

from jaxpg.proof.oracle import *  # noqa: F403
from jaxpg.report.oracle import draw as draw
