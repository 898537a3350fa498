"""What Ray's threads print stays out of a command's output."""

from __future__ import annotations

import io
import json
import subprocess
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


PRINTS = """
import threading

import click

from raykeeper.cli import main

@main.cli.command("letters")
def _() -> None:
    ray = threading.Thread(target=print, args=("10 worker processes have been started",), name="ray_print_logs")
    ray.start()
    ray.join()
    click.echo("\\u65e5\\u672c")

main.main()
"""


@pytest.mark.parametrize("ending", ["", "2>&-", "2>/dev/null", "<&- 2>&-"])
def test_a_process_prints_its_own_alone_wherever_stderr_leads(ending: str) -> None:
    words = ["sh", "-c", f'PYTHONIOENCODING=latin-1 exec "$@" {ending}', "sh", sys.executable, "-c", PRINTS, "letters"]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout == b"\\u65e5\\u672c\n"
    assert (b"worker processes" in done.stderr) == (not ending)
