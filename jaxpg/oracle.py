"""The public path of the oracle: the exact gradient, and estimators and algorithms against it."""

from jaxpg.proof.bias import Bias, estimator_bias
from jaxpg.proof.family import findings
from jaxpg.proof.finding import Finding
from jaxpg.proof.oracle import (
    TOLERANCE,
    Comparison,
    Moments,
    Row,
    Truth,
    against,
    as_theory_says,
    expectation,
    hold,
    rows,
    tables,
)
from jaxpg.proof.problems import (
    BASE,
    Problem,
    ascend,
    cartpole,
    exact_gradient,
    exact_value,
    probability,
    relative_gradient,
    tabular,
    utility,
    written,
)
from jaxpg.proof.tables import markdown, rich
from jaxpg.report.oracle import draw, draw_bias, draw_family

__all__ = [
    "BASE",
    "TOLERANCE",
    "Bias",
    "Comparison",
    "Finding",
    "Moments",
    "Problem",
    "Row",
    "Truth",
    "against",
    "as_theory_says",
    "ascend",
    "cartpole",
    "draw",
    "draw_bias",
    "draw_family",
    "estimator_bias",
    "exact_gradient",
    "exact_value",
    "expectation",
    "findings",
    "hold",
    "markdown",
    "probability",
    "relative_gradient",
    "rich",
    "rows",
    "tables",
    "tabular",
    "utility",
    "written",
]
