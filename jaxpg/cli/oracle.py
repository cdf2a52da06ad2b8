"""jaxpg oracle."""

import dataclasses
import json
import sys

from jaxpg import files
from jaxpg.cli.arguments import File
from jaxpg.cli.show import say
from jaxpg.core.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Hold every estimator against the exact policy gradient of two small problems.

    Exits with 1 if one that theory calls unbiased is not.
    """

    horizon: int = 7
    """Steps of CartPole, in [4, 12]; where there are too many pairs of trajectories, estimators
    that couple them are held at 7 steps."""
    json: File = None
    """For every row."""
    out: File = None
    """For the picture, a PNG."""


def oracle(options: Oracle) -> None:
    """jaxpg oracle."""
    if not 4 <= options.horizon <= 12:
        raise ConfigError(f"--horizon must be an integer in [4, 12]; got {options.horizon}")
    files.check(options.json, "--json")
    files.check(options.out, "--out")
    import jax
    from rich.console import Console

    from jaxpg.proof import oracle
    from jaxpg.report.oracle import draw

    with jax.enable_x64(True):
        say("writing down every trajectory")
        poles = [oracle.cartpole(options.horizon)]
        if poles[0].trajectory.valid.shape[1] ** 2 > oracle.MAX_BATCHES:
            poles.append(oracle.cartpole())
        found = oracle.rows([*poles, oracle.tabular()], report=say)
    if options.json:
        lines = ",\n".join(json.dumps(row._asdict(), ensure_ascii=False) for row in found)
        files.save(options.json, f"[\n{lines}\n]\n")
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(oracle.table(found))
    if options.out:
        draw(found, options.out)
    unbiased = [row for row in found if row.unbiased_by_theory]
    worst = max(unbiased, key=lambda row: row.relative_bias)
    wrong = sum(not row.relative_bias <= oracle.TOLERANCE for row in unbiased)  # NaN is wrong too
    print(
        f"{len(found)} estimators held against the exact gradient; theory calls {len(unbiased)} "
        f"unbiased, of which the furthest is off by {worst.relative_bias:.1e} of ‖∇U‖"
    )
    if wrong:
        print(f"{wrong} that should be unbiased are off by more than {oracle.TOLERANCE:g}")
        sys.exit(1)
