"""How long a run's program took to compile, for the next time: a word to who waits for it."""

import dataclasses
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from jaxpg import files
from jaxpg.core.config import OPTIONAL, STATIC
from jaxpg.population import provenance
from jaxpg.runs.manifests import BUDGETS, Manifest
from jaxpg.words import duration

NAME = "jaxpg-seconds.json"  # in the folder where jax keeps what it compiles


def expectation(manifest: Manifest) -> str:
    """What is compiled, how long that may take, and what is kept of it."""
    what = f"compiling what trains {manifest.lanes} seeds of {manifest.config.env} at once"
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    seconds = _read().get(_key(manifest))
    if seconds is not None:
        return f"{what}: {duration(seconds)} the first time, and less now, since it was kept"
    kept = f"; it is kept in {folder}" if folder else ""
    how_long = f"5 to 30 seconds the first time, or more{kept}"
    return f"{what}: {how_long}. Nothing is saved until it is done"


def remember(manifest: Manifest, seconds: float) -> None:
    """Say so the next time; of a program that was kept before, nothing."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    known = _read()
    if folder and _key(manifest) not in known:
        with suppress(OSError):  # it is a word only
            content = json.dumps({**known, _key(manifest): round(seconds, 1)})
            files.write(Path(folder) / NAME, content + "\n")


def _read() -> dict[str, float]:
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        content = json.loads((Path(folder or os.devnull) / NAME).read_bytes())
    except (OSError, ValueError):
        return {}  # nothing was compiled here yet
    return content if isinstance(content, dict) else {}


def _key(manifest: Manifest) -> str:
    """Of the program: all that it is compiled for."""
    fields = dataclasses.asdict(manifest.config)
    static = {name: fields[name] for name in STATIC if name not in BUDGETS}
    traced = dict.fromkeys(manifest.config.env_params.traced)
    static["env_params"] = {**fields["env_params"], **traced}
    options = {**manifest.options, **dict.fromkeys(manifest.options.traced)}
    versions = provenance.versions(manifest.config.env)
    made = [versions, provenance.device(), manifest.lanes, manifest.segment]
    made += [manifest.source, options] if manifest.build else []
    text = json.dumps([static, *(fields[name] is None for name in OPTIONAL), *made], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
