"""An environment for each library, over the project's own.

It sees the packages of the environment that makes it, torch and jax among them, and holds the
library itself and what it needs besides, or in another version, all of it pinned.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_TFP = ("decorator==5.3.1", "dm-tree==0.1.10", "gast==0.7.0", "tfp-nightly==0.26.0.dev20261027")
_DISTRAX = ("distrax==0.1.9", "wrapt==2.5.2", *_TFP)


class Library(NamedTuple):
    """What is installed, and who asks it."""

    driver: str  # the module benchmarks.audit.DRIVER
    pins: tuple[str, ...]  # the library's first


LIBRARIES = {
    "rlax": Library("rlax", ("rlax==0.1.9", "dm-env==1.6", *_DISTRAX)),
    "torchrl": Library(
        "torchrl",
        ("torchrl==0.14.1", "tensordict==0.14.3", "hoptorch==0.1.4", "pyvers==0.2.3"),
    ),
    "stable-baselines3": Library("stable_baselines3", ("stable-baselines3==2.9.2",)),
    "tianshou": Library(
        "tianshou",
        (
            *("tianshou==2.0.1", "deepdiff==7.0.1", "h5py==3.16.0", "llvmlite==0.50.0"),
            *("numba==0.68.1", "ordered-set==4.1.0", "orderly-set==5.5.0", "overrides==7.7.0"),
            *("pandas==2.3.3", "pettingzoo==1.27.0", "pytz==2026.6", "sensai-utils==1.6.0"),
        ),
    ),
    "skrl 1": Library(
        "skrl",
        (
            *("skrl==1.4.3", "jax==0.4.38", "jaxlib==0.4.38", "flax==0.10.2", "optax==0.2.4"),
            "numpy==2.1.3",  # of the time of that jax
        ),
    ),
    "skrl 2": Library("skrl", ("skrl==2.1.1",)),
    "rejax": Library("rejax", ("rejax==0.1.3", "dm-env==1.6", *_DISTRAX)),
    "brax": Library(
        "brax",
        (
            *("brax==0.14.2", "flask==3.1.3", "flask-cors==6.0.5", "glfw==2.11.0"),
            *("importlib-resources==7.1.0", "jaxopt==0.8.5", "ml-collections==1.1.0"),
            *("mujoco==3.5.0", "mujoco-mjx==3.5.0"),
            *("pyopengl==3.1.10", "trimesh==5.2.0"),
        ),
    ),
}


class NotInstalledError(RuntimeError):
    """A library could not be installed; says why."""


def make(name: str, into: Path) -> Path:
    """The interpreter of a library's environment, which is made where it is not there.

    Args:
      name: of `LIBRARIES`.
      into: the directory of all environments.

    Raises:
      NotInstalledError: if pip fails.
    """
    pins = LIBRARIES[name].pins
    digest = hashlib.sha256("\n".join(pins).encode()).hexdigest()[:8]
    home = into / f"{name.replace(' ', '-')}-{digest}"  # other pins, another environment
    interpreter, done = home / "bin" / "python", home / "installed"
    if done.exists():
        return interpreter
    python = str(interpreter)
    venv.create(home, with_pip=True, clear=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen = [sysconfig.get_path("purelib"), *_linked()]
    Path(own.stdout.strip(), "under.pth").write_text("\n".join(seen) + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    told = subprocess.run([*pip, "--ignore-installed", *pins], capture_output=True, text=True)
    if told.returncode:
        last = (told.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise NotInstalledError(f"{pins[0]}: {last}")
    done.touch()
    return interpreter


def run(python: Path, module: str, *arguments: str) -> subprocess.CompletedProcess:
    """A module of this project, in another environment, on the CPU."""
    ours = ("JAX_", "XLA_")  # settings that another jax may not know
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def _linked() -> list[str]:
    """Directories that this environment sees by .pth files of its own."""
    home = Path(sysconfig.get_path("purelib"))
    lines = [line for path in home.glob("*.pth") for line in path.read_text().splitlines()]
    return [line for line in lines if line in sys.path and line != str(home)]
