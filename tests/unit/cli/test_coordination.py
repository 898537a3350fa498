"""The commands on watches, leases, locks and elections, against one real member; signals and pipes are real ones."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from click.testing import CliRunner, Result

from lab import patience
from lab.onemember import OneMember, in_thread, one_member
from lab.patience import PATIENCE
from raykeeper import Client, Op
from raykeeper.actors.client.adoption import adopted
from raykeeper.cli import keys, lock, main, options, txn, watch
from raykeeper.cli import lease as cli_lease

Until = Callable[..., None]
Stream = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def member() -> Iterator[OneMember]:
    with one_member() as made:
        yield made


@pytest.fixture
def kv(member: OneMember, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Client]:
    """What the commands see: a namespace of the test's own."""
    space = f"{request.node.name}/"
    for module in (keys, txn, watch, cli_lease, lock):
        name = "open_keys" if hasattr(module, "open_keys") else "open_client"
        monkeypatch.setattr(module, name, lambda *_: member.client().namespace(space))
    with member.client() as client:
        yield client.namespace(space)


@pytest.fixture
def until() -> Until:
    """Waits for a condition."""
    return patience.until


def run(*args: str) -> Result:
    return CliRunner().invoke(main.cli, args)


def good(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stream:
    """Runs a command whose output is a pipe, beside a thread that uses its other end.

    Gives its exit status, and what it said on stderr.
    """

    def go(*args: str, beside: Callable[[TextIO], Any]) -> tuple[int, str]:
        read, write = os.pipe()
        reader = os.fdopen(read)
        over = threading.Event()
        with monkeypatch.context() as patch, os.fdopen(write, "w") as output, harmless_signals():
            patch.setattr(sys, "stdout", output)

            def look_on() -> None:
                try:
                    beside(reader)
                except BaseException:
                    while not over.wait(0.2):  # or the command would go on forever
                        interrupt()
                    raise

            other = in_thread(look_on)
            try:
                with pytest.raises(SystemExit) as ended:
                    main.cli(args, prog_name="raykeeper")
            finally:
                over.set()
                other.thread.join(PATIENCE)
        other.result()
        reader.close()
        status = ended.value.code
        assert isinstance(status, int)
        return status, capsys.readouterr().err

    return go


@contextlib.contextmanager
def harmless_signals() -> Iterator[None]:
    """A signal that comes when the command has ended, or before it has begun, does not end the tests."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda number, frame: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


# --- watch -----------------------------------------------------------------------------------------------------------


def test_watch_prints_what_happened_from_a_revision_on(kv: Client, stream: Stream) -> None:
    first = kv.put("a", "1").revision
    kv.txn([], [Op.put("a", "2"), Op.put("b", b"\xff")])
    kv.delete("a")
    seen: list[dict[str, Any]] = []

    def read(output: TextIO) -> None:
        seen.extend(json.loads(output.readline()) for _ in range(4))
        interrupt()

    assert stream("watch", "", "--prefix", "--rev", f"{first}", "--prev-kv", "-o", "json", beside=read) == (130, "")
    assert [(each["type"], each["kv"]["key"], each["kv"]["mod_revision"] - first) for each in seen] == [
        ("put", "a", 0),
        ("put", "a", 1),
        ("put", "b", 1),
        ("delete", "a", 2),
    ]
    assert [each["prev"] and each["prev"]["value"] for each in seen] == [None, "1", None, "2"]
    assert (seen[2]["kv"]["value"], seen[2]["kv"]["base64"]) == ("/w==", ["value"])


def test_watch_prints_as_etcdctl_does(kv: Client, stream: Stream) -> None:
    first = kv.put("a", "1").revision
    kv.delete("a")

    def read(output: TextIO) -> None:
        lines = ["PUT", "a", "1", "DELETE", "a", "1", "a", ""]
        assert [output.readline() for _ in lines] == [f"{line}\n" for line in lines]
        interrupt(signal.SIGTERM)

    assert stream("watch", "a", "--rev", f"{first}", "--prev", beside=read) == (143, "")


def test_watch_says_where_it_begins_and_prints_only_what_is_wanted(kv: Client, stream: Stream) -> None:
    def read(output: TextIO) -> None:
        began = json.loads(output.readline())
        assert began["type"] == "progress"
        put = kv.put("k", "v")
        assert put.revision > began["revision"]
        deleted = kv.delete("k")
        event = json.loads(output.readline())
        assert (event["type"], event["kv"]["mod_revision"]) == ("delete", deleted.revision)
        interrupt()

    assert stream("watch", "k", "--only", "delete", "--progress", "-o", "json", beside=read)[0] == 130


def test_watch_ends_with_its_reader_even_if_nothing_happens(kv: Client, stream: Stream) -> None:
    revision = kv.put("k", "v").revision

    def read(output: TextIO) -> None:
        assert output.readline() == "PUT\n"
        output.close()

    assert stream("watch", "k", "--rev", f"{revision}", beside=read) == (0, "")


def test_a_signal_ends_a_watch_whose_reader_does_not_read(kv: Client, stream: Stream, until: Until) -> None:
    revision = kv.put("k", "v" * 1_000_000).revision

    def read(output: TextIO) -> None:
        def waiting() -> int:
            (count,) = struct.unpack("i", fcntl.ioctl(output.fileno(), termios.FIONREAD, b"\0" * 4))
            return int(count)

        until(lambda: waiting() >= 4096)  # the rest finds no room
        interrupt(signal.SIGTERM)

    assert stream("watch", "k", "--rev", f"{revision}", beside=read) == (143, "")


def test_watch_of_a_past_that_is_gone_is_an_error(kv: Client) -> None:
    revision = kv.put("k", "v").revision
    kv.put("k", "w")
    kv.compact(revision + 1)
    result = run("watch", "k", "--rev", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"raykeeper: revisions below {revision + 1} are compacted\n"


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_from_grant_to_revoke(kv: Client) -> None:
    id = f"{json.loads(good('lease', 'grant', '60', '-o', 'json'))['id']:x}"
    good("put", "k", "v", "--lease", id)
    assert good("lease", "ttl", id, "--keys").startswith(f"lease {id} granted with TTL(60s), remaining(")
    told = json.loads(good("lease", "timetolive", id, "--keys", "-o", "json"))
    assert (told["id"], told["ttl"], told["keys"]) == (int(id, 16), 60, ["k"])
    assert 0 < told["remaining"] <= 60
    assert id in good("lease", "list").splitlines()[1:]
    assert int(id, 16) in [each["id"] for each in json.loads(good("lease", "list", "-o", "json"))["leases"]]
    for table in (good("lease", "list", "-o", "table"), good("get", "k", "-o", "table")):
        assert f" {id} " in table
    assert good("txn", "--compare", f"lease(k) = {id}").startswith("SUCCESS")
    assert good("lease", "keep-alive", id, "--once") == f"lease {id} keepalived with TTL(60s)\n"
    assert good("lease", "revoke", id) == f"lease {id} revoked\n"
    assert kv.get("k") is None
    for command in ("revoke", "keep-alive", "ttl"):
        result = run("lease", command, id)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"raykeeper: lease {id} does not exist, or has expired\n"


def test_a_keep_alive_that_was_confirmed_before_anybody_looked_counts(kv: Client, until: Until) -> None:
    made = kv.lease(600, keep_alive=False)
    held = adopted(kv, made.id, keep_alive=True)
    until(lambda: held.keep_alives)
    said = list[str]()

    async def once() -> int:
        command = SimpleNamespace(write=lambda write: said.append("a line"))
        return await asyncio.wait_for(
            cli_lease._keep(command, held, True, "simple"), PATIENCE
        )  # the next comes after 200 s

    assert (asyncio.run(once()), said) == (0, ["a line"])


def test_a_lease_is_kept_until_a_signal_and_not_ended_by_it(kv: Client, stream: Stream) -> None:
    lease = kv.lease(12, keep_alive=False)
    kv.put("k", "v", lease=lease.id)

    def read(output: TextIO) -> None:
        line = f"lease {lease.id:x} keepalived with TTL(12s)\n"
        assert [output.readline() for _ in range(2)] == [line] * 2  # a third of the TTL between two
        assert kv.get("k") is not None
        interrupt()

    assert stream("lease", "keep-alive", f"{lease.id:x}", beside=read) == (130, "")
    assert kv.time_to_live(lease.id).remaining > 0


def test_keeping_a_lease_that_ends_is_an_error(kv: Client, stream: Stream) -> None:
    lease = kv.lease(9, keep_alive=False)

    def read(output: TextIO) -> None:
        assert output.readline()
        lease.revoke()

    status, said = stream("lease", "keep-alive", f"{lease.id:x}", beside=read)
    assert status == 1
    assert said.startswith(f"raykeeper: lease {lease.id:x} has ended")


# --- lock ------------------------------------------------------------------------------------------------------------


def sh(script: str) -> tuple[str, ...]:
    return "--", "sh", "-c", script


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (sh("exit 0"), 0),
        (sh("exit 7"), 7),
        (sh("kill -KILL $$"), 137),
        (("--", "no-such-command"), 127),
        (("--", "/etc/passwd"), 126),
    ],
)
def test_lock_leaves_with_the_status_of_its_command(kv: Client, command: tuple[str, ...], status: int) -> None:
    assert run("lock", "a", *command).exit_code == status
    assert kv.lock("a").holder() is None


def test_a_command_knows_its_lock_and_writes_under_its_guard(
    kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (options.LOCK_NAME, options.LOCK_KEY, options.LOCK_TOKEN)
    good("lock", "a b", *sh(f'printf \'%s\\n\' "${names[0]}" "${names[1]}" "${names[2]}" >{tmp_path}/said'))
    name, key, token = (tmp_path / "said").read_text().splitlines()
    assert name == "a b"
    overtaken = {options.LOCK_KEY: key, options.LOCK_TOKEN: token}
    with kv.lock("a b") as held:
        assert int(token) < held.token
        key = f"lock/{held._holder.current_ticket().key.decode()}"
        for name, value in {options.LOCK_KEY: key, options.LOCK_TOKEN: f"{held.token}"}.items():
            monkeypatch.setenv(name, value)
        assert good("put", "k", "v", "--guard") == "OK\n"
        assert good("del", "other", "--guard") == "0\n"
        assert good("txn", "--guard", "--success", "get k") == "SUCCESS\n\nk\nv\n"
        for name, value in overtaken.items():
            monkeypatch.setenv(name, value)
        for command in (("put", "k", "w"), ("del", "k"), ("txn", "--success", "del k")):
            result = run(*command, "--guard")
            assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert kv.get("k") is not None
    monkeypatch.delenv(options.LOCK_KEY)
    assert run("put", "k", "w", "--guard").exit_code == 2


def test_lock_hands_signals_on_to_its_command(
    kv: Client, tmp_path: Path, until: Until, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_terminal_told", lambda number: False)  # wherever these tests are started
    ready, script = tmp_path / "ready", "trap 'exit 9' {}; touch {}; while :; do sleep 0.02; done"
    for name in ("INT", "TERM", "HUP"):

        def beside(output: TextIO, name: str = name) -> None:
            until(ready.exists)
            assert kv.lock("a").holder() is not None
            interrupt(getattr(signal, f"SIG{name}"))

        assert stream("lock", "a", *sh(script.format(name, ready)), beside=beside) == (9, "")
        ready.unlink()
    assert kv.lock("a").holder() is None


@pytest.mark.parametrize(("on_term", "grace"), [("exit", 60.0), ("touch {}", 5.0)])
def test_a_command_is_ended_when_its_lock_is_lost(
    kv: Client, tmp_path: Path, until: Until, stream: Stream, on_term: str, grace: float
) -> None:
    """By SIGTERM, and, if it takes no notice of that, by SIGKILL."""
    ready, told = tmp_path / "ready", tmp_path / "told"
    script = f"trap 'touch {told}; {on_term.format(told)}' TERM; touch {ready}; while :; do sleep 0.02; done"

    def beside(output: TextIO) -> None:
        until(ready.exists)
        holder = kv.lock("a").holder()
        assert holder is not None
        adopted(kv, holder.lease, keep_alive=False).revoke()

    status, said = stream("lock", "a", "--grace", f"{grace}", *sh(script), beside=beside)
    assert status == lock.LOST == 125
    assert said.startswith("raykeeper: the lock a is lost: sh -c ")
    assert said.count("\n") == 1
    assert told.exists()


def test_lock_waits_no_longer_than_it_was_told(kv: Client, tmp_path: Path) -> None:
    with kv.lock("a") as held:
        result = run("lock", "a", "--timeout", "0.1", *sh(f"touch {tmp_path}/ran"))
        assert (result.exit_code, result.stderr) == (124, "raykeeper: the lock a was not free within 0.1 s\n")
        assert held.waiters() == []
    assert not (tmp_path / "ran").exists()


def test_a_signal_ends_the_wait_for_a_lock_and_leaves_no_place(kv: Client, until: Until, stream: Stream) -> None:
    with kv.lock("a") as held:

        def beside(output: TextIO) -> None:
            until(lambda: held.waiters())
            interrupt(signal.SIGTERM)

        assert stream("lock", "a", *sh("exit 7"), beside=beside) == (143, "")
        assert held.waiters() == []


def test_without_a_command_a_lock_is_held_until_a_signal_comes(kv: Client, stream: Stream) -> None:
    def beside(output: TextIO) -> None:
        key, token = output.readline(), output.readline()
        holder = kv.lock("a/b").holder()
        assert holder is not None
        assert token == f"{holder.token}\n"
        assert key.startswith("lock/")
        assert key.endswith(f"{holder.lease:x}\n")
        interrupt()

    assert stream("lock", "a/b", beside=beside) == (130, "")
    assert kv.lock("a/b").holder() is None


def test_a_lock_that_is_held_and_lost_says_so(kv: Client, stream: Stream) -> None:
    def beside(output: TextIO) -> None:
        said = json.loads(output.readline())
        holder = kv.lock("a").holder()
        assert holder is not None
        assert (said["name"], said["token"]) == ("a", holder.token)
        adopted(kv, holder.lease, keep_alive=False).revoke()

    assert stream("lock", "a", "-o", "json", beside=beside) == (125, "raykeeper: the lock a is lost\n")


# --- elect -----------------------------------------------------------------------------------------------------------


def test_elect_leads_until_a_signal_and_then_resigns(kv: Client, stream: Stream) -> None:
    def beside(output: TextIO) -> None:
        key, token, value = (output.readline().rstrip("\n") for _ in range(3))
        leader = kv.election("e").leader()
        assert leader is not None
        assert (leader.value, f"{leader.token}") == (b"me", token)
        assert (value, key.partition("/")[0]) == ("me", "election")
        interrupt(signal.SIGTERM)

    assert stream("elect", "e", "me", beside=beside) == (143, "")
    assert kv.election("e").leader() is None


def test_elect_gives_up_in_time_and_says_when_it_is_lost(kv: Client, stream: Stream) -> None:
    election = kv.election("e")
    election.campaign("first")
    result = run("elect", "e", "me", "--timeout", "0")
    assert (result.exit_code, result.stderr) == (124, "raykeeper: not elected in e within 0 s\n")

    def beside(output: TextIO) -> None:
        election.resign()
        said = json.loads(output.readline())
        assert said["value"].endswith(f":{os.getpid()}")
        adopted(kv, int(said["key"].rpartition("/")[2], 16), keep_alive=False).revoke()

    assert stream("elect", "e", "-o", "json", beside=beside) == (125, "raykeeper: the leadership in e is lost\n")


def test_listening_prints_each_leader_and_what_it_says_in_order(kv: Client, stream: Stream) -> None:
    def beside(output: TextIO) -> None:
        said = []
        for name in ("one", "two"):
            election = kv.election("e")
            election.campaign(name)
            election.proclaim(f"{name} and more")
            token = election.token
            said += [{"token": token, "value": name}, {"token": token, "value": f"{name} and more"}]
            election.resign()
        assert [json.loads(output.readline()) for _ in range(4)] == said
        output.close()

    observed = kv.election("e")
    observed.campaign("zero")

    def first(output: TextIO) -> None:
        assert json.loads(output.readline())["value"] == "zero"
        observed.resign()
        beside(output)

    assert stream("elect", "e", "--listen", "-o", "json", beside=first) == (0, "")


# --- bad usage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch"],
        ["watch", "a", "-o", "table"],
        ["watch", "a", "b", "--prefix"],
        ["watch", "a", "--rev", "0"],
        ["watch", "a", "--only", "get"],
        ["lease", "grant"],
        ["lease", "grant", "long"],
        ["lease", "revoke", "xyz"],
        ["lease", "revoke", "0"],
        ["lease", "shorten", "1"],
        ["lock"],
        ["lock", "a", "--timeout", "-1"],
        ["elect", "e", "v", "--listen"],
        ["elect", "e", "--listen", "-o", "table"],
    ],
)
def test_bad_usage_is_status_two(kv: Client, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments", [["lease", "grant", "0.1"], ["lock", "", "--", "true"], ["lock", "a", "--ttl", "0.01"]]
)
def test_what_the_client_refuses_is_one_line_and_status_one(kv: Client, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
