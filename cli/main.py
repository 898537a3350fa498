"""The command `raykeeper`: starting and stopping a cluster, and its keys from a shell. docs/cli.md has examples.

Exit status 0 is success, 1 a ``KeeperError`` (one line on stderr, never a traceback), 2 wrong usage, 130 Ctrl-C. The
commands only translate: the client says what they mean, ``render.py`` how they print. Each subject has a file, which is
loaded when one of its commands is asked for: a command must not wait for what the others import.
"""

from __future__ import annotations

import importlib
import signal
from typing import Any

import click

from .. import __version__
from ..errors import KeeperError
from .options import warnings_told
from .own_stdout import keep_stdout
from .ray_messages import ray_messages_last
from .stdio import run_with_streams, tell, tell_bug

_FILES = {
    "bench": ("bench",),
    "event_commands": ("events",),
    "health_command": ("health",),
    "holders": ("locks", "semaphores", "elections", "queues", "barriers", "services", "clients"),
    "completion": ("completion",),
    "config": ("config",),
    "doctor": ("doctor",),
    "endpoint": ("endpoint", "alarm", "defrag"),
    "keys": ("put", "get", "del"),
    "lease": ("lease",),
    "lock": ("lock", "elect"),
    "node_log_command": ("logs",),
    "check": ("check",),
    "maintenance": ("backup", "restore", "compact"),
    "mirror": ("make-mirror",),
    "member_commands": ("status", "member", "move-leader", "upgrade"),
    "proxy": ("proxy",),
    "snapshot": ("snapshot",),
    "top": ("top",),
    "txn": ("txn",),
    "up_down": ("up", "down"),
    "user_commands": ("auth", "user", "role"),
    "watch": ("watch",),
}
"""Where each command is. In its file it is called as in the shell, with ``_`` for ``-``, and ``del`` is ``delete``."""
_FILE_OF = {command: file for file, commands in _FILES.items() for command in commands}

_FOR_THE_CALLER = (click.ClickException, click.exceptions.Exit, click.Abort, EOFError, OSError)
"""Exceptions that click and ``run_with_streams`` know."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_FILE_OF, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in _FILE_OF:
            name = "delete" if cmd_name == "del" else cmd_name.replace("-", "_")
            self.add_command(getattr(importlib.import_module(f".{_FILE_OF[cmd_name]}", __package__), name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def main(self, *arguments: Any, **named: Any) -> Any:
        return run_with_streams(lambda: super(_Commands, self).main(*arguments, **named))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_told(), ray_messages_last():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:
            if isinstance(error, KeeperError) or type(error).__module__.startswith("ray."):
                tell(str(error))
            elif isinstance(error, _FOR_THE_CALLER):
                raise
            else:
                tell_bug(error)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raykeeper")
def cli() -> None:
    """RayKeeper: a replicated key-value store whose members are Ray actors."""


def main() -> None:
    """Entry point of the command `raykeeper`."""
    keep_stdout()
    try:
        cli(prog_name="raykeeper")
    finally:
        # Only detaching from Ray remains. A signal ends that at once, without a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
