"""The public path of the oracle: the exact gradient, and estimators and algorithms against it."""

from jaxpg.proof.family import Finding as Finding
from jaxpg.proof.family import findings as findings
from jaxpg.proof.oracle import *  # noqa: F403
from jaxpg.proof.problems import *  # noqa: F403
from jaxpg.report.oracle import draw as draw
from jaxpg.report.oracle import draw_family as draw_family
