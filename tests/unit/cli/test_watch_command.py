"""`watch -- COMMAND` and `watch -i`: the command that is run for each change, and requests on stdin; by one member."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import click
import pytest

from raykeeper import KeyValue
from raykeeper.actors.client.results import Event
from raykeeper.cli import watch as watching
from raykeeper.cli.watch import environment, quoted


def parsed(*words: str) -> tuple[dict[str, Any], Any]:
    context = watching.watch.make_context("watch", list(words))
    return context.params, context.meta.get(watching._COMMAND)


def test_where_the_command_begins() -> None:
    assert parsed("k")[1] is None
    assert parsed("k", "--", "echo", "-n", "x")[1] == ["echo", "-n", "x"]
    which, command = parsed("k", "l", "--prev-kv", "--", "sh", "-c", "a -- b", "--", "z")
    assert (which["key"], which["end"], which["prev"]) == (b"k", b"l", True)
    assert command == ["sh", "-c", "a -- b", "--", "z"]
    which, command = parsed("--prefix", "--", "-k")
    assert (which["key"], which["prefix"], command) == (b"-k", True, None)
    which, command = parsed("--rev", "3", "--", "-k", "--", "true")
    assert (which["key"], which["rev"], command) == (b"-k", 3, ["true"])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", '"plain"'),
        (b'a"b\\c', '"a\\"b\\\\c"'),
        (b"\x00\x07\n\t\x7f", '"\\x00\\a\\n\\t\\x7f"'),
        (b"\xff\xfe", '"\\xff\\xfe"'),
        ("äλ☃".encode(), '"äλ☃"'),
        ("\u200b\U000e0001".encode(), '"\\u200b\\U000e0001"'),
    ],
)
def test_text_is_quoted_as_go_quotes_it(data: bytes, text: str) -> None:
    assert quoted(data) == text


def test_what_a_command_is_told() -> None:
    event = Event("put", KeyValue(b"k", b"v w", 2, 3, 1), None)
    assert environment(event, 3) == {
        "ETCD_WATCH_REVISION": "3",
        "ETCD_WATCH_EVENT_TYPE": '"PUT"',
        "ETCD_WATCH_KEY": '"k"',
        "ETCD_WATCH_VALUE": '"v w"',
    }


@pytest.mark.parametrize("line", ["", "get k", "watch", "watch 'open", "watch k l --prefix", "watch k --no-such"])
def test_a_line_that_is_no_request_is_reported_and_skipped(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert watching._request(line) is None
    assert capsys.readouterr().err.count("\n") == (1 if line else 0)


def test_a_line_is_read_as_the_command_line_is() -> None:
    request = watching._request("watch 'a b' --prefix --rev 7 -- echo hi\n")
    assert request is not None
    assert request.asked == {"prefix": b"a b", "start_revision": 7, "prev": False, "only": None}
    assert request.command == ["echo", "hi"]


def test_a_key_is_needed_unless_requests_are_read() -> None:
    with pytest.raises(click.UsageError, match="KEY"):
        watching._Request(None, None, False, False, None, False, None, False, ())


# --- whole commands --------------------------------------------------------------------------------------------------


PROGRAM = """
import sys
from lab.onemember import one_member
from raykeeper.cli import main, watch
with one_member() as member:
    watch.open_client = lambda *_: member.client()
    kv = member.client()
    first = kv.put("a", "1").revision
    kv.put("b", 'x "y"')
    kv.delete("a")
    sys.argv = ["raykeeper", *(word.replace("FIRST", str(first)) for word in sys.argv[1:])]
    main.cli(prog_name="raykeeper")
"""
SHOW = 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'


def whole(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_command_is_run_for_each_change_in_order_and_ends_the_watch_when_it_fails() -> None:
    script = f'{SHOW}; [ "$ETCD_WATCH_EVENT_TYPE" != \'"DELETE"\' ]'
    done = whole("watch", "", "--prefix", "--rev", "FIRST", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ended with status 1" in done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith('"')]
    assert said == ['"PUT" "a" "1"', '"PUT" "b" "x \\"y\\""', '"DELETE" "a" ""']
    missing = whole("watch", "", "--prefix", "--rev", "FIRST", "--", "no-such-command")
    assert missing.returncode == 1
    assert "no-such-command" in missing.stderr


def test_several_watches_are_asked_for_on_stdin() -> None:
    asked = "nonsense\nwatch b --rev 2\nwatch a --rev 2 --only delete -- sh -c 'exit 3'\n"
    done = whole("watch", "-i", stdin=asked)
    assert done.returncode == 1
    assert "is not a request" in done.stderr
    assert "ended with status 3" in done.stderr
    assert "DELETE\na\n" in done.stdout


def test_requests_may_have_ended_before_anything_was_asked_for() -> None:
    assert (whole("watch", "-i").returncode, whole("watch", "-i", "k").returncode) == (0, 2)
