"""What Ray's threads print stays out of a command's output."""

from __future__ import annotations

import io
import json
import sys
import threading

import click
import pytest

from raykeeper.cli.own_stdout import keep_stdout


def test_only_the_commands_own_threads_print_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    monkeypatch.setattr(sys, "stderr", other)
    keep_stdout()
    for name in ("ray_listen_error_messages", "a watch"):
        thread = threading.Thread(target=print, args=(json.dumps(name),), name=name)
        thread.start()
        thread.join()
    click.echo("1")
    sys.stdout.flush()
    assert [json.loads(line) for line in own.getvalue().splitlines()] == ["a watch", 1]
    assert other.getvalue() == '"ray_listen_error_messages"\n'


def test_the_rest_of_it_is_the_streams_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", own)
    keep_stdout()
    assert sys.stdout.encoding == "utf-8"
    assert sys.stdout.isatty() is False
    click.echo(b"\x00bytes")
    print("text", flush=True)
    assert own.buffer.getvalue() == b"\x00bytes\ntext\n"  # type: ignore[attr-defined]
