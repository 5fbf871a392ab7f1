"""Run a training from the command line: what a user can mend ends it with one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shards.errors import UserError
from shards.printable import os_error_text, set_up_output

_TIMED_OUT = ("Timed out waiting", "collective operation timeout")
"""Words of gloo's and NCCL's errors where another process did not answer in time."""
_LOST = ("closed by peer", "reset by peer", "remote process exited")
"""Words of gloo's and NCCL's errors where another process ended."""


def run_command(main: Callable[[list[str]], None], manual: str | None) -> None:
    """Run `main` with the command line's arguments.

    Args:
        main: a mistake of the user in it, a full disk or a lost process is one line and exit status 1.
        manual: what `--help` prints.
    """
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(manual)
        sys.exit()
    set_up_output()
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        from trainer.checkpoints.run_folder import NO_ROOM  # imports what takes seconds

        do = "; make room, and start the same command again" if error.errno in NO_ROOM else ""
        sys.exit(f"error: {os_error_text(error)}{do}")
    except RuntimeError as error:
        if any(words in str(error) for words in _TIMED_OUT):
            problem = "another process of this run did not answer in time (collective_timeout)"
        elif any(words in str(error) for words in _LOST):
            problem = "another process of this run ended before its time"
        else:
            raise
        sys.exit(f"error: {problem}; the same command goes on")
