"""Messages name the command as the user called it."""

import sys

import pytest

from shards.program import command, this_command


@pytest.mark.parametrize(
    ("called", "printed"),
    [
        (["cli.py"], "python cli.py"),
        (["/my house/cli.py"], "python '/my house/cli.py'"),
        (["/bin/sa2va-shards"], "sa2va-shards"),
        (["trainer/train.py"], "sa2va-shards"),
    ],
)
def test_a_command_in_a_message(monkeypatch, called, printed):
    monkeypatch.setattr(sys, "argv", called)
    assert command("merge x") == f"{printed} merge x"


def test_the_command_that_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "cli.py", "shard", "--root", "a b"])
    monkeypatch.setattr(sys, "argv", ["cli.py", "shard", "--root", "a b"])
    assert this_command() == "/bin/python cli.py shard --root 'a b'"
    monkeypatch.setattr(sys, "argv", ["/bin/sa2va-shards", "shard", "--root", "a b"])
    assert this_command() == "sa2va-shards shard --root 'a b'"
