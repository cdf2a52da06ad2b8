"""Benchmarks that take long: a row is written when it is there; a second call goes on."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.record import read, write
from jaxpg.core.config import Config
from jaxpg.population.provenance import commit, processor
from jaxpg.runs.manifests import parse_config


def rows(
    name: str,
    wanted: Sequence[tuple[dict[str, Any], Config]],
    measure: Callable[..., dict[str, Any]],
    common: dict[str, Any],
    table: Callable[[list[dict[str, Any]]], str],
    by: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure what benchmarks/results/NAME-PLATFORM.json does not have; all rows in order.

    A row belongs to a config: one of a preset that has changed since is measured again. It says of
    which commit it is, and on which processor it was measured.

    Args:
      name: of the benchmark.
      wanted: what a row begins with (labels), and the config that it is of.
      measure: gives the rest of the row, of a config.
      common: what else decides the numbers (how many seeds …); if that changes, all begin anew.
      table: of rows, as Markdown; kept in the record.
      by: labels that a row belongs to beside its config; `measure` is given them by name.
    """
    import jax

    record = read(name, jax.default_backend()) or {}
    same = record and {key: record.get(key) for key in common} == common
    old = [(parse_config(row["config"]), row) for row in record["rows"]] if same else []

    def known(labels: dict[str, Any], config: Config) -> dict[str, Any] | None:
        for before, row in old:
            if before == config and all(row[name] == labels[name] for name in by):
                made = {what: record[what] for what in ("commit", "processor")}
                return {**made, **row, **labels}
        return None

    found = [known(labels, config) for labels, config in wanted]
    for i, (labels, config) in enumerate(wanted):
        if found[i] is None:
            print(*labels.values(), file=sys.stderr, flush=True)
            own = measure(config, **{name: labels[name] for name in by})
            made = {"commit": commit(), "processor": processor()}
            found[i] = {**labels, "config": dataclasses.asdict(config), **made, **own}
            there = [row for row in found if row is not None]
            write(name, {**common, "rows": there, "table": table(there)})
    return [row for row in found if row is not None]
