"""What can go wrong without a fault in the code: each is one sentence for a person.

    ConfigError      what is asked for has no meaning, or cannot be done on this machine
        DoesNotFit   there is not enough memory for it
    RunError         a file or a directory cannot be used as asked
        Foreign      a checkpoint is whole, but of another run or version
        InUse        another process trains what is in a directory
        Unreadable   the file system does not give what is in a file
    Stopped          training was asked to stop; everything that it reported is saved

The command answers those of REFUSED with their sentence and exit code 2.
"""

from jaxpg.core.config import ConfigError as ConfigError  # there, since torch_ref raises it too


class DoesNotFit(ConfigError):
    """There is not enough memory; with `lanes` there would be, if it is not None."""

    def __init__(self, sentence: str, lanes: int | None = None):
        super().__init__(sentence)
        self.lanes = lanes


class RunError(Exception):
    """A file or directory, as that of a run, cannot be used as asked: a sentence says why."""


class Foreign(RunError):
    """A checkpoint is whole, but not of this run, or not as this version writes them."""


class InUse(RunError):
    """Another process holds a run directory."""


class Unreadable(RunError):
    """The file system does not give a file's content, which may be whole."""


class Stopped(Exception):
    """Training was asked to stop; everything that it reported is on the disk."""


REFUSED = (ConfigError, RunError)
