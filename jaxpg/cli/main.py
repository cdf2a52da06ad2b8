"""The entry of the `jaxpg` command: it makes the process its own before anything takes its time."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or with 2 after one sentence on what was wrong.

    A run that was asked to stop exits with 75, one that hangs with 76.

    Args:
      arguments: the words after `jaxpg`; None for those of this process, which is then ours.
    """
    from jaxpg.cli import machine, streams
    from jaxpg.runs.watch import EXIT_INTERRUPTED

    ours = arguments is None
    if ours:
        streams.rely()
        machine.own()
    try:
        from jaxpg.cli.commands import run

        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("jaxpg: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if ours and streams.lost():
            print(f"jaxpg: standard output is incomplete ({streams.lost()})", file=sys.stderr)
