"""Where numbers come from: versions, commit and device, for manifests, summaries and benchmarks."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxpg import suites
from jaxpg.population import devices

ROOT = Path(__file__).parents[2]


def versions(env: str = "") -> dict[str, str]:
    """Of Python and of every package that the numbers depend on.

    Args:
      env: the environment that they are of, as brax:ant.
    """
    packages = ["jaxpg", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy"]
    prefix = env.partition(":")[0]
    if suites.has(env) and suites.is_installed(prefix):
        packages.append(suites.SUITES[prefix].package)
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def device() -> dict[str, Any]:
    """What the numbers were computed on, how many devices, or cores of a CPU, and in which form;
    and what last bits depend on: a CPU's instructions, XLA's flags."""
    from jaxpg.fast import backend

    local = backend.devices()
    first = local[0]
    count = devices.cpu_count() if first.platform == "cpu" else len(local)
    found = {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": count,
        "form": backend.form(),
    }
    if first.platform == "cpu":
        found["processor"] = processor()
    return found | {"xla_flags": os.environ.get("XLA_FLAGS", "")}


def processor() -> str:
    """The processor's name, and whether it has the widest vectors; where Linux tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in found.items()}
    wide = " with AVX-512" if "avx512f" in named.get("flags", "").split() else ""
    return named.get("model name", "unknown") + wide


@cache
def source_sha256(*places: Path) -> str:
    """SHA-256 of some Python files, and of all in some folders, as they are when it is first asked
    for."""
    found = hashlib.sha256()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(f"{path.relative_to(place)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it.

    None outside a checkout, and where git is missing or refuses, as in somebody else's folder.
    """
    if not (ROOT / ".git").exists():
        return None
    environment = {name: x for name, x in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
