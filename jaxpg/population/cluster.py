"""Being in a Ray cluster, and what of it trains. `ray` is imported by who joins one."""

import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any, NamedTuple

from jaxpg.core.config import ConfigError
from jaxpg.population import provenance

# What a worker has one of (the first that the cluster has), and how it is asked for.
RESOURCES: dict[str, dict[str, Any]] = {
    "TPU": {"num_cpus": 0, "resources": {"TPU": 1}},
    "GPU": {"num_cpus": 0, "num_gpus": 1},
    "CPU": {"num_cpus": 1},
}
POLL = 1.0  # seconds in which a signal, a loss and a node that joins are noticed
PATIENCE = 20.0  # seconds without a worker after which a person is told
ANSWERS = 20.0  # seconds in which a node does
HEAD_ANSWERS = 5.0  # seconds in which the head does
# How names begin, in the environment, that workers have, too: bits may depend on them.
SETTINGS = ("JAX_", "JAXPG_", "XLA_", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


class Cluster(NamedTuple):
    """A cluster that this process is in."""

    ray: Any  # the module
    resource: str  # of RESOURCES
    device: dict[str, Any]  # that trains, as of `provenance.device`; the count is of all
    mixed: bool  # whether workers may differ from this process in what bits may depend on
    note: Callable[[str], None]  # called with a sentence for a person, from any thread

    @property
    def size(self) -> int:
        """Workers that there is room for now."""
        return int(self.ray.cluster_resources().get(self.resource, 0))

    def answers(self) -> bool:
        """Whether its head does."""
        host, _, port = self.ray.get_runtime_context().gcs_address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), HEAD_ANSWERS).close()
        except OSError:
            return False
        return True


@contextmanager
def joined(
    address: str | None, mixed: bool = False, note: Callable[[str], None] | None = None
) -> Iterator[Cluster | None]:
    """Be in a Ray cluster until the end of a `with`; None where no address is given.

    Waits until the cluster has something that trains. That is its accelerators, if it has any and
    JAX_PLATFORMS is not cpu.

    Args:
      address: HOST:PORT of its first node, or auto, for the one that this machine is in.
      mixed: whether workers may differ from this process in what bits may depend on.
      note: called with a sentence for a person, from any thread; None logs it.

    Raises:
      ConfigError: if there is no such cluster, or no ray.
    """
    if address is None:
        if mixed:
            raise ConfigError("mixed is of a cluster's nodes, and no cluster is given")
        yield None
        return
    host, _, port = address.rpartition(":")
    named = host and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16
    if address != "auto" and not named:
        raise ConfigError(f"--cluster must be auto or HOST:PORT; got {address!r}")
    note = note or getLogger("jaxpg").warning
    ray = _imported()
    is_ours = not ray.is_initialized()
    if is_ours:
        _enter(ray, address)
    try:
        resource = _resource(ray, note)
        yield Cluster(ray, resource, _device(ray, resource, note), mixed, note)
    finally:
        if is_ours:
            ray.shutdown()


def device_of(nodes: Cluster | None) -> dict[str, Any]:
    """What trains, the cluster or this machine, as of `provenance.device`."""
    return provenance.device() if nodes is None else nodes.device


def options(resource: str) -> dict[str, Any]:
    """Of an actor or a task that computes: what it has to itself, and the environment of here."""
    ours = {"XLA_FLAGS": ""}  # a node's own would compile other programs
    ours |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SETTINGS)
        and not name.startswith("JAX_PLATFORM")
        and not name.endswith("VISIBLE_DEVICES")  # of this machine; Ray says what a worker sees
    }
    if resource == "CPU":
        ours["JAX_PLATFORMS"] = "cpu"
    environment = {"runtime_env": {"env_vars": ours}}
    return {**RESOURCES[resource], **environment, "scheduling_strategy": "SPREAD"}


def said(error: Exception) -> str:
    """What ray says, without its explanations: the cause where it tells one, which is what follows
    the indented lines about an actor."""
    text = str(error).strip()
    _, indented, rest = text.rpartition("\n\t")
    cause = rest.partition("\n")[2].strip() if indented else ""
    line = (cause or text).partition("\n")[0]
    return textwrap.shorten(line, 200, placeholder=" …").rstrip(".") or type(error).__name__


def raised_there(error: Exception) -> str:
    """What was raised in a process of ray's, which is where its traceback ends."""
    return str(error).strip().rpartition("\n")[2].strip()


def _imported() -> Any:
    """The module `ray`.

    Raises:
      ConfigError: if it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it warns otherwise
    # Else `uv run` here is `uv run` on each node, in an environment made there for each worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("ray is not installed: pip install 'jaxpg[ray]'") from None
    return ray


def _enter(ray: Any, address: str) -> None:
    """Join the cluster; what SIGTERM does stays as it is.

    Raises:
      ConfigError: if there is no such cluster.
    """
    host, _, port = address.rpartition(":")
    try:
        if host:  # not auto; ray would try for minutes
            socket.create_connection((host, int(port)), ANSWERS).close()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--cluster {address}: nobody answers there ({error})") from None
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--cluster {address}: there is no Ray cluster that this machine is in "
            f"({said(error)}); ray start --head begins one, and ray start --address joins it; "
            "where it asks for a token, RAY_AUTH_MODE=token sends this machine's"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _resource(ray: Any, note: Callable[[str], None]) -> str:
    """What workers have one of; waits until there is any."""
    known = ["CPU"] if os.environ.get("JAX_PLATFORMS") == "cpu" else list(RESOURCES)

    def there() -> str | None:
        has = ray.cluster_resources()
        return next((name for name in known if has.get(name, 0) >= 1), None)

    if there() is None:
        note(f"no node of the cluster has a {known[-1]} for a worker: waiting for one that joins")
    while (found := there()) is None:
        time.sleep(POLL)
    return found


def _device(ray: Any, resource: str, note: Callable[[str], None]) -> dict[str, Any]:
    """What trains: of CPUs this process says it, of accelerators one of the nodes that have them.

    Raises:
      ConfigError: if jax finds none there, or the node cannot say.
    """
    count = {"count": int(ray.cluster_resources().get(resource, 0))}
    if resource == "CPU":
        return provenance.device() | count
    # Its process ends with it (max_calls): who has looked at an accelerator holds it.
    asked = ray.remote(**options(resource), max_calls=1)(provenance.device)
    answer = asked.remote()
    if not ray.wait([answer], timeout=PATIENCE)[0]:
        note(f"no {resource} of the cluster is free: waiting for one, to ask it what it is")
    try:
        found = ray.get(answer)
    except ray.exceptions.RayError as error:
        raise ConfigError(
            f"the node of a {resource} cannot say what it is: {raised_there(error)}"
        ) from error
    if found["platform"] != resource.lower():
        raise ConfigError(
            f"the cluster has a {resource}, and jax finds none there: install what jax needs for "
            "it, or say JAX_PLATFORMS=cpu"
        )
    return found | count
