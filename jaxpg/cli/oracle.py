"""jaxpg oracle."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from jaxpg import files
from jaxpg.cli.arguments import File
from jaxpg.cli.streams import say
from jaxpg.core.config import ConfigError
from jaxpg.report import terminal


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Hold every estimator against the exact policy gradient of two small problems.

    PPO, natural gradients, group baselines and truncated GAE are compared with references of their
    own. Exits with 1 if one that theory calls unbiased is biased, or a bias differs from theory's.
    """

    horizon: int = 7
    """Steps of CartPole, in [4, 12]; where there are too many pairs of trajectories, estimators
    that couple them are held at 7 steps."""
    json: File = None
    """For every row."""
    out: File = None
    """For the picture of the estimators, a PNG."""
    family_out: File = None
    """For the picture of PPO, natural gradients and truncated GAE, a PNG."""


def oracle(options: Oracle) -> None:
    """jaxpg oracle."""
    if not 4 <= options.horizon <= 12:
        raise ConfigError(f"--horizon must be an integer in [4, 12]; got {options.horizon}")
    files.check(options.json, "--json")
    files.check(options.out, "--out")
    files.check(options.family_out, "--family-out")
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU only emulates float64
    import jax

    from jaxpg.proof import family, finding, oracle, tables
    from jaxpg.report.oracle import draw, draw_family

    with jax.enable_x64(True):
        say("writing down every trajectory")
        poles = [oracle.cartpole(options.horizon)]
        if poles[0].trajectory.valid.shape[1] ** 2 > oracle.MAX_BATCHES:
            poles.append(oracle.cartpole())
        found = oracle.rows([*poles, oracle.tabular()], report=say)
    findings = family.findings(report=say)
    if options.json:
        parts: dict[str, Sequence[Any]] = {"estimators": found, "family": findings}
        listed = [f'"{name}": [\n{_lines(part)}\n]' for name, part in parts.items()]
        files.save(options.json, "{\n" + ",\n".join(listed) + "\n}\n")
    console = terminal.console()
    console.print(tables.rich(oracle.tables(found)))
    console.print(tables.rich(finding.tables(findings)))
    if options.out:
        draw(found, options.out)
    if options.family_out:
        draw_family(findings, options.family_out)
    unbiased = [row for row in found if row.unbiased_by_theory]
    worst = max(unbiased, key=lambda row: row.relative_bias)
    wrong = sum(not oracle.as_theory_says(row) for row in found)
    print(
        f"{len(found)} estimators held against the exact gradient; theory calls {len(unbiased)} "
        f"unbiased, of which the furthest is off by {worst.relative_bias:.1e} of ‖∇U‖"
    )
    known = sum(f.expected is not None for f in findings)
    unknown = sum(f.open for f in findings)
    others = sum(not finding.as_theory_says(f) for f in findings)
    print(
        f"{len(findings)} findings on the rest of the family; theory knows the amount of {known}, "
        f"and of {len(findings) - known - unknown} others that it is not 0"
    )
    if wrong:
        print(f"{wrong} that should be unbiased are off by more than {oracle.TOLERANCE:g}")
    if others:
        print(f"{others} findings are not what theory says; each has a (!)")
    if wrong or others:
        sys.exit(1)


def _lines(rows: Sequence[Any]) -> str:
    """Named tuples as JSON, one a line."""
    return ",\n".join(json.dumps(row._asdict(), ensure_ascii=False) for row in rows)
