"""A training from the command line: what went wrong is one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shards.errors import UserError
from shards.printable import os_error_text, set_up_output

_LATE = ("Timed out waiting", "collective operation timeout")  # of the same
_LOST = ("closed by peer", "reset by peer", "remote process exited")  # gloo's and NCCL's words


def run_command(main: Callable[[list[str]], None], manual: str | None) -> None:
    """Run `main` with the command line's arguments; what a user can mend is one line and exit status 1."""
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
        if any(late in str(error) for late in _LATE):
            said = "another process of this run did not answer in time (collective_timeout)"
            sys.exit(f"error: {said}; the same command goes on")
        if not any(lost in str(error) for lost in _LOST):
            raise
        sys.exit("error: another process of this run ended before its time; the same command goes on")
