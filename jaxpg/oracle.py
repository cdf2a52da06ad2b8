"""The public path of the oracle: the exact gradient, and estimators and algorithms against it."""

from jaxpg.proof.bias import Bias as Bias
from jaxpg.proof.bias import estimator_bias as estimator_bias
from jaxpg.proof.family import findings as findings
from jaxpg.proof.finding import Finding as Finding
from jaxpg.proof.oracle import *  # noqa: F403
from jaxpg.proof.problems import *  # noqa: F403
from jaxpg.proof.tables import markdown as markdown
from jaxpg.proof.tables import rich as rich
from jaxpg.report.oracle import draw as draw
from jaxpg.report.oracle import draw_bias as draw_bias
from jaxpg.report.oracle import draw_family as draw_family
