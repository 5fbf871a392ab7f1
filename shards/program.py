"""The program's name as the user called it, for messages that print a command."""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePath

INSTALLED = "sa2va-shards"
_SCRIPT = "cli.py"


def program() -> str:
    """Return what the user types before a verb: "python cli.py", with its path as given, or "sa2va-shards".

    A process that began otherwise, such as a training, gets the installed name: it needs no path.
    """
    return f"python {shlex.quote(sys.argv[0])}" if _is_script() else INSTALLED


def command(arguments: str) -> str:
    """Return the command line of a verb with its arguments, to print in a message."""
    return f"{program()} {arguments}"


def check_set() -> str:
    """Return the advice to check a set that contradicts itself."""
    return f"check the set with {command('verify-shard')}"


def copy_again() -> str:
    """Return the advice for a set that is incomplete or differs from the one that was written."""
    return f"copy the set again; {command('verify-shard')} says more"


def copy_changed() -> str:
    """Return the advice for a file that differs from its recorded checksum."""
    return f"it has changed since it was written: {copy_again()}"


def this_command() -> str:
    """Return the command line that started this process, quoted for a shell."""
    return shlex.join(sys.orig_argv if _is_script() else [INSTALLED, *sys.argv[1:]])


def _is_script() -> bool:
    return PurePath(sys.argv[0]).name == _SCRIPT
