"""Workers of a cluster that meet a fault; they are imported where they work."""

import contextlib
import os
import signal
import time
from pathlib import Path

import jax

from jaxpg.population.crew import Worker

FAULTS = "JAXPG_TEST_FAULTS"  # names a folder, where a fault that was met leaves a file


class Killed(Worker):
    """By the system, before its third increment, once in all."""

    sent = 0

    def train(self, *arguments):
        """As that of a worker."""
        self.sent += 1
        if self.sent == 3:
            with contextlib.suppress(FileExistsError):
                (Path(os.environ[FAULTS]) / "met").touch(exist_ok=False)
                self.fault()
        return super().train(*arguments)

    def fault(self):
        """What happens."""
        os.kill(os.getpid(), signal.SIGKILL)


class Hung(Killed):
    """It hangs instead."""

    def fault(self):
        """What happens."""
        time.sleep(1000)


class Stillborn(Worker):
    """By the system, before it can train."""

    def compile(self, *arguments):
        """As that of a worker."""
        os.kill(os.getpid(), signal.SIGKILL)


class Sick(Worker):
    """On a node of which SICK is said, its device breaks whenever it trains."""

    def train(self, *arguments):
        """As that of a worker."""
        if "SICK" in os.environ:
            raise jax.errors.JaxRuntimeError("INTERNAL: uncorrectable ECC error")
        return super().train(*arguments)
