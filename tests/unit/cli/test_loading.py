"""What a command loads: its own file, and not what only others need."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from raykeeper.cli.main import cli

HEAVY = ("ray", "rocksdict", "asyncio", "yaml", "rich", "raykeeper.raft", "raykeeper.actors.client.hub")


def loaded_for(command: str) -> set[str]:
    """The modules that the shell loads to find this command."""
    program = f"""
import sys
import click
from raykeeper.cli.main import cli
assert cli.get_command(click.Context(cli), {command!r}) is not None
print(*sys.modules)
"""
    return set(subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split())


@pytest.mark.parametrize("command", ["put", "get", "del"])
def test_a_command_on_keys_loads_little(command: str) -> None:
    assert sorted(loaded_for(command).intersection(HEAVY)) == []


def test_every_command_has_its_name_and_a_line_of_help() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str()
    assert cli.get_command(context, "no-such-command") is None
