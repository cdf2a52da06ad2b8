"""The record of an audit as parts of docs/audit.md and docs/parity.md."""

from typing import Any

from benchmarks.record import markdown

Row = dict[str, Any]


def audit(record: Row) -> str:
    """Every function at every event; where they differ; what the exact gradient says of that."""
    rows = record["rows"]
    parted = [row for row in rows if _parts(row)]
    lines = [table(rows), f"## Where they part\n\n{_differences(parted)}"]
    lines.append(f"## What that does to the gradient\n\n{_biases(parted)}")
    left_out = [f"Left out: {name}, {why}." for name, why in record["left_out"].items()]
    return "\n\n".join([*lines, *left_out, _origin(record)])


def twins(record: Row) -> str:
    """What skrl_twins.py printed, for each version and kind of policy."""
    pairs = record["twins"]
    said = [f"# {one['library']}, {one['policy']}\n{one['with'].strip()}" for one in pairs]
    assert all(one["equal_without"] for one in pairs), "they differ by more than the bonus"
    without = f"With a coefficient of 0 all {len(pairs)} pairs are equal."
    return "```none\n" + "\n\n".join(said) + f"\n```\n\n{without} {_origin(record)}"


def table(rows: list[Row]) -> str:
    """Whether each function is equal at each event, or the largest error of any γ and λ."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        lines = tables.setdefault(tuple(row["events"]), [])
        lines.append([*_names(row), row["quantity"], *map(_cell, row["events"].values())])
    columns = ["library", "function", "is"]
    return "\n\n".join(markdown([*columns, *events], x) for events, x in tables.items())


def _cell(event: Row | None) -> str:
    if event is None:  # it cannot be asked that
        return "–"
    held = "=" if event.get("equal") else _size(event["error"]) if "error" in event else ""
    if "raised" not in event:
        return held
    return f"raises, else {held}" if held else "raises"


def _size(error: float) -> str:
    return f"{error:.0%}" if error >= 0.01 else f"{error:.0e}"


def _parts(row: Row) -> bool:
    return any(_cell(event) not in ("=", "–") for event in row["events"].values())


def _differences(rows: list[Row]) -> str:
    """A paragraph for each reason, with the first number that shows it."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        assert row["why"], f"{_title(row)} parts, and its driver does not say why"
        alike.setdefault(row["why"], []).append(row)
    paragraphs = []
    for why, group in alike.items():
        library, _ = _names(group[0])
        functions = "; ".join(_names(row)[1] for row in group)
        paragraphs.append(f"**{library}, {functions}.** {why} {_shown(group[0])}")
    return "\n\n".join(paragraphs)


def _title(row: Row) -> str:
    return ", ".join(_names(row))


def _names(row: Row) -> tuple[str, str]:
    option = f", {row['option']}" if row["option"] else ""
    return f"{row['library'].split()[0]} {row['version']}", f"`{row['function']}`{option}"


def _shown(row: Row) -> str:
    """What it raised, or the first event that it answers differently."""
    for name, event in row["events"].items():
        if event and "raised" in event:
            return f"It says: {event['raised']['says']}."
        if event and not event["equal"]:
            asked = f", {_asked(event)}" if event["asked"] else ""
            place = f"*{name}*{asked}, index {tuple(event['at'])}"
            return f"At {place}: {event['theirs']:.6g}, and {event['ours']:.6g} here."
    raise AssertionError(f"{_title(row)} does not part")


def _asked(event: Row) -> str:
    return ", ".join(f"{x} = {y:g}" for x, y in zip("γλ", event["asked"], strict=True))


def _biases(rows: list[Row]) -> str:
    rows = [row for row in rows if row["bias"]]
    views = list(rows[0]["bias"])
    lines = [["GAE here", *(_bias(rows[0]["bias"][view]["ours"]) for view in views)]]
    lines += [
        [_title(row), *(_bias(row["bias"][view]["theirs"]) for view in views)] for row in rows
    ]
    return markdown(["", *views], lines)


def _bias(found: tuple[float, float]) -> str:
    bias, cosine = found
    return f"{bias:.0e}" if bias < 1e-6 else f"{bias:.1%} ({cosine:.3f})"


def _origin(record: Row) -> str:
    return f"`{record['command']}`, commit {record['commit']}, jax {record['versions']['jax']}."
