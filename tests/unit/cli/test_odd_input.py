"""Every command, whatever bytes it is given, whatever numbers, and wherever its output goes.

The commands are those that the group has, so that a new one is tested too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lab.patience import PATIENCE
from raykeeper import ClusterNotFound, KeyValue, RequestTooLarge
from raykeeper.actors.client.results import Batch, DeleteResult, Event, PutResult, RangeResult, TxnResult
from raykeeper.actors.cluster.status import ClusterStatus, MemberInfo
from raykeeper.cli import keys, lease, lock, main, maintenance, options, proxy, stdio, txn, up_down, watch
from raykeeper.cli.own_stdout import keep_stdout
from raykeeper.cli.render import CommandResult, show

ODD = [b"\xff", b"\xe9t\xe9", b"a\nb", "\u2028".encode(), b"\x1b[31m", b"", b"-", b"\xed\xa0\x80"]
NUMBERLESS = ["-1", "nan", "inf", "1e400", "9" * 30, "9" * 5000, str(1 << 64), "x", "", " ", "1_0", "\u0661", "\u00b2"]
ABSURD = [*NUMBERLESS, "-inf", "-" + "9" * 30, "0x10", "1_0 0", "1e-300"]


def commands(group: click.Group = main.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands())
PLAIN = {"lease": "7", "ttl": "1", "id": "7", "name": "m1", "revision": "1"}


def call(path: tuple[str, ...], changed: click.Parameter | None = None, value: str = "") -> list[str]:
    """The command with everything it must have, and with one parameter of its own."""
    words = [*path]
    arguments = []
    for parameter in ALL[path].params:
        if parameter is changed and isinstance(parameter, click.Option):
            words.append(f"{parameter.opts[0]}={value}" if parameter.opts[0].startswith("--") else parameter.opts[0])
        if isinstance(parameter, click.Argument) and (parameter.required or parameter is changed):
            arguments.append(value if parameter is changed else PLAIN.get(parameter.name or "", "1"))
    return [*words, "--", *arguments]


@pytest.fixture(autouse=True)
def _nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever passes the checks of the command line finds no cluster."""

    def nobody(*_: Any, **__: Any) -> Any:
        raise ClusterNotFound("no cluster is there")

    for module in (main, options, maintenance):
        for name in ("open_client", "open_keys", "open_cluster", "open_operations", "join"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, nobody)
    for module in {sys.modules[command.callback.__module__] for command in ALL.values()}:
        for name in ("open_client", "open_keys", "open_cluster", "open_operations", "join"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, nobody)
    monkeypatch.setattr(up_down, "RayHead", lambda: _NoHead())


class _NoHead:
    def start_if_none_runs(self) -> bool:
        return False

    def runs(self) -> bool:
        return False


def run(words: list[str]) -> Result:
    return CliRunner().invoke(main.cli, words, input=b"")


def in_order(result: Result, words: list[str], *statuses: int) -> None:
    assert isinstance(result.exception, (SystemExit, type(None))), (words, result.exception)
    assert result.exit_code in statuses, (words, result.output)
    if result.exit_code == 1:
        assert result.stderr.count("\n") == 1, (words, result.stderr)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_bytes_of_any_kind_are_an_argument_or_bad_usage(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if not (isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count)):
            for value in ODD:
                words = call(path, parameter, os.fsdecode(value))
                in_order(run(words), words, 1, 2)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_absurd_numbers_are_bad_usage_or_a_typed_error(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if not (isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count)):
            for value in ABSURD:
                words = call(path, parameter, value)
                in_order(run(words), words, 1, 2)


TIMES = {"timeout", "ttl", "grace", "each", "interval"}
NUMBERS = {"after", "lines", "limit", "rev", "revision", "in_flight", "size", "rounds"}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_command_takes_a_time_or_a_number_that_is_none(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if parameter.name in TIMES | NUMBERS:
            none = path in {("lock",), ("elect",)} and parameter.name in {"timeout", "grace"}
            zero = ["0"] if parameter.name in TIMES and not none else []
            for value in [*zero, *NUMBERLESS]:
                words = call(path, parameter, value)
                in_order(run(words), words, 2)


IDS = {"lease", "id"}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_command_takes_an_id_or_a_member_that_is_none(path: tuple[str, ...]) -> None:
    """And none needs a cluster to say so."""
    for parameter in ALL[path].params:
        member = parameter.name == "name" and (path[0] == "member" or path == ("move-leader",))
        if parameter.name in IDS or member:
            for value in {*NUMBERLESS, "0", "-0", "+1", "m1" if not member else "m"} - {"1e400", "9" * 30}:
                words = call(path, parameter, value)
                words = [*words[: len(path)], "--destroy", "--yes", *words[len(path) :]] if path == ("down",) else words
                in_order(run(words), words, 2)


@pytest.mark.parametrize("token", [*NUMBERLESS, "0", "+1", "1.0", os.fsdecode(b"\xff")])
def test_a_guard_needs_a_lock_that_can_be_one(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 0 above all: a key that is not there has it, so the guard of a lock that is gone would let all through."""
    for file in (keys, txn):
        monkeypatch.setattr(file, "open_keys", lambda *_: contextlib.nullcontext(object()))
    environment = {options.LOCK_KEY: "lock/k", options.LOCK_TOKEN: token}
    for words in (["put", "k", "v"], ["del", "k"], ["txn", "--success", "put k v"]):
        result = CliRunner().invoke(main.cli, [*words, "--guard"], env=environment)
        in_order(result, words, 2)


def test_whatever_is_a_number_is_known_to_the_test_above() -> None:
    for path, command in ALL.items():
        for parameter in command.params:
            kind = parameter.type
            if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)) or kind.name.startswith("sec"):
                assert parameter.name in TIMES | NUMBERS, (path, parameter.name)


# --- output ----------------------------------------------------------------------------------------------------------

ITEM = KeyValue("é漢\u2028".encode() + b"\xff", "é漢".encode(), 1 << 60, 3, 2, (1 << 62) + 1)
MEMBER = MemberInfo(1, "m1", "leader", node="é漢", why_not_serving="漢")
RESULTS = {
    "put": PutResult(1, ITEM),
    "range": RangeResult((ITEM,), 1, False, 1 << 60),
    "delete": DeleteResult(1, (ITEM,), 1),
    "txn": TxnResult(True, (PutResult(1, None), RangeResult((ITEM,), 1, False, 1)), 1),
    "event": Batch(1, (Event("put", ITEM, ITEM),)),
    "said": CommandResult({"name": "é漢".encode(), "id": (1 << 62) + 1}, ["é漢\u2028"]),
    "fields": {"path": os.fsdecode(b"\xff\xe9"), "n": (1 << 62) + 1},
    "status": ClusterStatus("n", 1 << 62, 1, 1, 1, ("漢", os.fsdecode(b"\xff")), (MEMBER,)),
}
FORMS = [(kind, form) for kind, form in itertools.product(RESULTS, ("simple", "json", "table"))]
FORMS.remove(("event", "table"))


def printing(kind: str, form: str) -> click.Group:
    """A group of commands as the real one, with one that prints such a result."""
    group = type(main.cli)(name="raykeeper")

    @group.command("show")
    def _() -> None:
        show(RESULTS[kind], form)

    return group


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp437"])
@pytest.mark.parametrize("kept", [True, False], ids=["as in a process of its own", "in another program"])
def test_a_terminal_that_does_not_know_a_letter_gets_an_escape(
    kind: str, form: str, encoding: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(seen, encoding=encoding))
    if kept:
        keep_stdout()
    with pytest.raises(SystemExit) as ended:
        printing(kind, form)(["show"])
    assert not ended.value.code
    assert seen.getvalue()


def into_a_full_disk(command: click.Group, words: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            command(words, prog_name="raykeeper")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_what_cannot_be_written_is_one_line_and_status_one(
    kind: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert into_a_full_disk(printing(kind, form), ["show"]) == 1
    assert capsys.readouterr().err == "raykeeper: No space left on device\n"


@pytest.mark.parametrize("path", [(), *ALL], ids=" ".join)
def test_help_that_cannot_be_written(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert into_a_full_disk(main.cli, [*path, "--help"]) == 1
    assert capsys.readouterr().err == "raykeeper: No space left on device\n"


@pytest.mark.parametrize(
    "ending", [">/dev/full", ">&-", "2>&- >&-", "2>/dev/full >/dev/full", "<&- >/dev/full", "2>/dev/full <&- x"]
)
def test_a_process_ends_in_order_wherever_its_streams_lead(ending: str) -> None:
    words = f"{sys.executable} -m raykeeper --version"
    done = subprocess.run(["sh", "-c", f"{words} {ending}"], capture_output=True, check=False)
    assert done.returncode == (0 if ending.endswith("x") else 1), done
    assert b"Traceback" not in done.stderr + done.stdout
    assert done.stderr.count(b"\n") <= 1


@pytest.mark.parametrize("told", [b"\xff\n", b"\0\n", b"", "é".encode("latin-1")])
def test_an_answer_of_any_bytes_is_no_yes(told: bytes) -> None:
    words = [sys.executable, "-m", "raykeeper", "down", "--destroy"]
    done = subprocess.run(words, input=told, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(b"Aborted!\n")
    assert b"Traceback" not in done.stderr


def test_stdin_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "MAX_STDIN_BYTES", 1000)
    with open("/dev/zero") as endless, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", endless)
        with pytest.raises(RequestTooLarge):
            stdio.read_stdin("it")


def test_at_a_terminal_it_is_told_that_stdin_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    master, slave = os.openpty()
    with open(master, "wb", buffering=0) as keyboard, open(slave) as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", terminal)
        keyboard.write(b"x\n\x04")
        assert stdio.read_stdin("the value") == b"x\n"
    assert "the value is read from this terminal" in capsys.readouterr().err
    with open(os.devnull) as empty, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", empty)
        assert stdio.read_stdin("the value") == b""
    assert capsys.readouterr().err == ""


def test_json_has_no_number_that_readers_round(capsys: pytest.CaptureFixture[str]) -> None:
    show(RangeResult((KeyValue(b"k", b"v", 1 << 53, (1 << 53) + 1, 1, (1 << 62) + 1),), 1, False, 1), "json")
    [item] = json.loads(capsys.readouterr().out, parse_int=float)["items"]
    assert item["create_revision"] == float(1 << 53)
    assert (item["mod_revision"], item["lease"]) == (str((1 << 53) + 1), str((1 << 62) + 1))


# --- transactions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("put k 'a\nb'\n\nput x \"c\n\nd\"\n", [["put k 'a\nb'"], ['put x "c\n\nd"'], []]),
        ("put k 'a\u2028b'\n\nput k a\x0bb\x1cc\n", [["put k 'a\u2028b'"], ["put k a\x0bb\x1cc"], []]),
        ("# it's a comment\nput k v\n#\n", [["put k v"], [], []]),
        ("put k it\\'s\nput k v\r\n", [["put k it\\'s", "put k v\r"], [], []]),
        ("put k v\\ \n", [["put k v\\ "], [], []]),
        ('put k "a\\"\nb"\nput k \'\\\'\n', [['put k "a\\"\nb"', "put k '\\'"], [], []]),
        ("\n\nput k v # 'no comment'", [[], [], ["put k v # 'no comment'"]]),
        ("put '#' \u3000\n \t\nget k", [["put '#' \u3000"], ["get k"], []]),
        ("", [[], [], []]),
    ],
)
def test_lines_of_a_transaction_end_where_a_shell_ends_them(text: str, blocks: list[list[str]]) -> None:
    assert txn._blocks(line for line, _ in txn._lines(io.StringIO(text, newline="\n"))) == blocks


@pytest.mark.parametrize(
    ("line", "key", "operand"),
    [
        ('value("k") = "x) = y"', b"k", b"x) = y"),
        ("value('a)b') = c", b"a)b", b"c"),
        ("\tvalue( a\\)b )=='c'\r", b"a)b", b"c"),
        ('value("a\\")") = a\\ ', b'a")', b"a "),
        ("value('') = ''", b"", b""),
        ("value('\u2028\0\udcff') = '\0\n'", "\u2028\0".encode() + b"\xff", b"\0\n"),
    ],
)
def test_a_comparison_ends_its_key_where_no_quote_holds_it(line: str, key: bytes, operand: bytes) -> None:
    condition = txn._comparison(line)
    assert (condition.key, condition.operand) == (key, operand)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "value",
        "value(",
        "value()",
        "value() = 1",
        "value(k) 1",
        "value(k) = ",
        "value(a b) = 1",
        "x(k) = 1",
        "value('k) = 1",
    ],
)
def test_what_is_no_comparison_is_bad_usage(line: str) -> None:
    with pytest.raises(click.UsageError, match="comparison"):
        txn._comparison(line)


@pytest.mark.parametrize("blocks", [b"x" * 1_000_000, b"\0" * 1_000_000, b"\n\nput k '" + b"x" * 1_000_000])
def test_what_is_wrong_with_much_is_said_in_short(blocks: bytes) -> None:
    result = CliRunner().invoke(main.cli, ["txn"], input=blocks)
    in_order(result, ["txn"], 2)
    assert len(result.stderr) < 1000


def test_operands_are_taken_as_they_are() -> None:
    assert txn._comparison("value(k) = '\u2028\n'") is not None
    with pytest.raises(click.UsageError, match="63 bits"):
        txn._comparison("version(k) = " + "9" * 30)
    with pytest.raises(click.UsageError, match="quot"):
        txn._operation("put k 'open")


# --- signals ---------------------------------------------------------------------------------------------------------

JOINING = """
import os, signal, sys
from raykeeper.cli import options
from raykeeper.actors import ray_session

def join(address):
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(99))  # as Ray does, below Python
    print("joining", flush=True)
    if sys.argv[1] == "meanwhile":
        sys.stdin.readline()

ray_session.join_ray = join
options.join(None)
print("joined", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("moment", ["meanwhile", "then"])
def test_sigterm_is_not_ray_s(moment: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", JOINING, moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "joining\n"
        if moment == "then":
            assert process.stdout.readline() == "joined\n"
        process.terminate()
        process.stdin.write("\n" * (moment == "meanwhile"))
        process.stdin.flush()
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_no_command_that_runs_until_it_is_stopped_has_a_deadline() -> None:
    """Its ``--timeout`` is for starting, or for each request: one that covered all would end its calls some day."""
    lasting = [watch.watch, lock.lock, lock.elect, proxy.proxy, lease.lease.commands["keep-alive"]]
    for command in lasting:
        for option in command.params:
            assert option.name != "timeout" or option.callback is None, command.name
