"""The command line: what it asks of the client, how it prints what comes back, and its exit status."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import raykeeper
from raykeeper import END, KEEP, ClusterNotFound, KeeperError, KeyValue, MembersMissing, SpecError, Unavailable, errors
from raykeeper.actors.client.results import DeleteResult, PutResult, RangeResult, TxnResult
from raykeeper.actors.cluster.status import ClusterStatus, MemberInfo
from raykeeper.actors.deadline import time_left
from raykeeper.cli import keys, main, member_commands, ray_head, stdio, txn, up_down
from raykeeper.cli.json_forms import FORMS, misfit
from raykeeper.cli.options import LOCK_KEY

A = KeyValue(b"a", b"1", 2, 3, 2)
BINARY = KeyValue(b"b\xff", b"\x1b[31m\x00", 4, 4, 1)


class FakeClient:
    """Notes what it is asked and gives back what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = None

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


@pytest.fixture
def kv(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    for file in (keys, txn):
        monkeypatch.setattr(file, "open_keys", lambda *_: client)
    return client


def run(*args: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main.cli, args, input=stdin)


def good(*args: str, stdin: bytes | None = None) -> str:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- keys ------------------------------------------------------------------------------------------------------------


def test_put_passes_on_key_value_and_options(kv: FakeClient) -> None:
    kv.answer = PutResult(5, A)
    assert good("put", "a", "1", "--lease", "7", "--prev", "--request-id", "r") == "OK\na\n1\n"
    assert kv.asked == [("put", (b"a", b"1"), {"lease": 7, "prev": True, "request_id": b"r"})]


def test_put_reads_a_value_of_any_bytes_from_stdin(kv: FakeClient) -> None:
    kv.answer = PutResult(5)
    good("put", "a", "-", stdin=b"x\x00\xff\n")
    assert kv.asked[0][1] == (b"a", b"x\x00\xff\n")


def test_put_reads_a_value_that_is_left_out_from_stdin(kv: FakeClient) -> None:
    kv.answer = PutResult(5)
    good("put", "a", stdin=b"x\n")
    assert kv.asked == [("put", (b"a", b"x\n"), {"lease": None, "prev": False, "request_id": None})]


def test_put_keeps_what_it_is_told_to_keep(kv: FakeClient) -> None:
    kv.answer = PutResult(5)
    good("put", "a", "--ignore-value", "--lease", "7", stdin=b"not read")
    good("put", "a", "1", "--ignore-lease")
    good("put", "a", "--ignore-value", "--ignore-lease")
    assert [(args, asked["lease"]) for _, args, asked in kv.asked] == [
        ((b"a", KEEP), 7),
        ((b"a", b"1"), KEEP),
        ((b"a", KEEP), KEEP),
    ]


@pytest.mark.parametrize(
    "words",
    [
        "put k - --ignore-value",
        "put k --lease 5 --ignore-lease",
        "put k --guard",
        "put k --guard --endpoint h:1",
        "put k --request-id r --endpoint h:1",
        "txn --guard",
        "txn --guard --endpoint h:1",
        "txn -i --request-id r --endpoint h:1",
    ],
)
def test_stdin_is_read_only_once_the_arguments_are_right(
    kv: FakeClient, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def read(*_: str) -> Any:
        raise AssertionError("stdin is read")

    for file, name in ((keys, "read_stdin"), (txn, "read_stdin"), (txn, "read_stdin_lines")):
        monkeypatch.setattr(file, name, read)
    monkeypatch.delenv(LOCK_KEY, raising=False)
    assert run(*words.split()).exit_code == 2
    assert kv.asked == []


@pytest.mark.parametrize("words", ["a 1 --ignore-value", "a - --ignore-value", "a 1 --ignore-lease --lease 7"])
def test_what_is_kept_is_not_given_too(kv: FakeClient, words: str) -> None:
    assert run("put", *words.split(), stdin=b"x").exit_code == 2
    assert run("txn", "--success", f"put {words}").exit_code == 2
    assert kv.asked == []


@pytest.mark.parametrize(
    ("words", "serializable"),
    [("", False), ("--consistency=l", False), ("--consistency=s", True), ("--serializable", True)],
)
def test_get_is_linearizable_or_serializable_in_etcdctl_s_words(kv: FakeClient, words: str, serializable: bool) -> None:
    kv.answer = RangeResult((), 0, False, 9)
    good("get", "a", *words.split())
    assert kv.asked[0][2]["serializable"] is serializable


def test_get_takes_no_two_words_of_its_consistency_that_contradict(kv: FakeClient) -> None:
    assert run("get", "a", "--consistency", "l", "--serializable").exit_code == 2
    assert kv.asked == []
    kv.answer = RangeResult((), 0, False, 9)
    good("get", "a", "--consistency", "s", "--serializable")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("CREATE", "create_revision"), ("MODIFY", "mod_revision"), ("VERSION", "version"), ("KEY", "key")],
)
def test_get_sorts_in_etcdctl_s_words(kv: FakeClient, theirs: str, ours: str) -> None:
    kv.answer = RangeResult((), 0, False, 9)
    good("get", "a", "--prefix", f"--sort-by={theirs}", "--order=DESCEND")
    assert (kv.asked[0][2]["sort"], kv.asked[0][2]["order"]) == (ours, "descend")
    assert run("get", "a", "--sort-by=SIZE").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["a"], {"key": b"a", "end": None}),
        (["a", "c"], {"key": b"a", "end": b"c"}),
        (["a", "--prefix"], {"prefix": b"a"}),
        (["", "--prefix"], {"prefix": b""}),
        (["a", "--from-key"], {"key": b"a", "end": END}),
    ],
)
def test_get_and_del_say_which_keys(kv: FakeClient, arguments: list[str], where: dict[str, Any]) -> None:
    kv.answer = RangeResult((), 0, False, 9)
    assert good("get", *arguments) == ""
    kv.answer = DeleteResult(0, (), 9)
    assert good("del", *arguments) == "0\n"
    for _, args, asked in kv.asked:
        assert args == ()
        assert {name: asked[name] for name in ("key", "end", "prefix") if name in asked} == where


def test_get_passes_on_all_its_options(kv: FakeClient) -> None:
    kv.answer = RangeResult((A,), 4, True, 9)
    options = ["--limit", "1", "--rev", "3", "--sort", "version", "--order", "descend", "--keys-only", "--serializable"]
    assert good("get", "a", "--prefix", *options) == "a\n"
    assert kv.asked[0][2] == {
        "prefix": b"a",
        "limit": 1,
        "revision": 3,
        "sort": "version",
        "order": "descend",
        "keys_only": True,
        "count_only": False,
        "serializable": True,
    }
    assert good("get", "a", "--prefix", "--count-only").splitlines()[0] == "4"


def test_bytes_that_are_no_text_cannot_steer_the_terminal(kv: FakeClient) -> None:
    kv.answer = RangeResult((A, BINARY), 2, False, 9)
    assert good("get", "", "--prefix") == "a\n1\nb\\xff\n\\x1b[31m\\x00\n"
    table = good("get", "", "--prefix", "-o", "table")
    assert "b\\xff" in table
    assert "\\x1b[31m\\x00" in table
    assert "\x1b" not in table


def test_json_says_which_fields_are_base64(kv: FakeClient) -> None:
    kv.answer = RangeResult((A, BINARY), 2, False, 9)
    said = json.loads(good("get", "", "--prefix", "-o", "json"))
    numbers = {"create_revision": 2, "mod_revision": 3, "version": 2, "lease": 0}
    assert said["items"][0] == {"key": "a", "value": "1", **numbers}
    assert said["items"][1]["base64"] == ["key"]
    assert base64.b64decode(said["items"][1]["key"]) == b"b\xff"
    assert said["items"][1]["value"] == "\x1b[31m\x00"
    assert (said["count"], said["more"], said["revision"]) == (2, False, 9)


def test_value_only_prints_the_bytes_as_they_are(kv: FakeClient) -> None:
    kv.answer = RangeResult((BINARY,), 1, False, 9)
    result = run("get", "b", "--value-only")
    assert result.stdout_bytes == b"\x1b[31m\x00"


def test_del_prints_how_many_and_what(kv: FakeClient) -> None:
    kv.answer = DeleteResult(1, (A,), 9)
    assert good("del", "a", "--prev") == "1\na\n1\n"
    assert json.loads(good("del", "a", "--prev", "-o", "json"))["prev"][0]["key"] == "a"
    assert "a = 1" in good("del", "a", "--prev", "-o", "table")


# --- txn -------------------------------------------------------------------------------------------------------------


def shown(kv: FakeClient) -> list[list[str]]:
    """The one transaction that was asked, as the reprs of its parts."""
    ((name, args, _),) = kv.asked
    assert name == "txn"
    return [[repr(part) for part in block] for block in args]


TXN = b"""# comparisons
version("k") = 0
mod(k) > 3
value('a b') != "x y"

put k "v 1" --prev
get k k9 --limit 2

del k --prefix
"""
COMPARISONS = ["<version of b'k' equal 0>", "<mod_revision of b'k' greater 3>", "<value of b'a b' not_equal b'x y'>"]


def test_txn_reads_three_blocks_from_stdin(kv: FakeClient) -> None:
    kv.answer = TxnResult(True, (), 9)
    assert good("txn", stdin=TXN) == "SUCCESS\n"
    compare, success, failure = shown(kv)
    assert compare == COMPARISONS
    assert success[0] == "Op.put(key=b'k', value=b'v 1', prev=True)"
    assert success[1].startswith("Op.range(key=b'k', end=b'k9', limit=2")
    assert failure == ["Op.delete(prefix=b'k')"]


def test_txn_keeps_values_and_leases(kv: FakeClient) -> None:
    kv.answer = TxnResult(True, (), 9)
    good("txn", "--success", "put k --ignore-value --lease 7", "--success", "put k v --ignore-lease")
    assert shown(kv)[1] == [
        "Op.put(key=b'k', value=raykeeper.KEEP, lease=7)",
        "Op.put(key=b'k', value=b'v', lease=raykeeper.KEEP)",
    ]


def test_txn_asks_for_each_block_and_ends_at_the_third_empty_line(kv: FakeClient) -> None:
    kv.answer = TxnResult(True, (), 9)
    result = run("txn", "-i", stdin=b"version(k) = 0\n\nput k 1\nget k\n\ndel k\n\nput not read\n")
    assert (result.exit_code, result.stdout) == (0, "SUCCESS\n"), result.output
    assert result.stderr == "compares:\nsuccess requests (get, put, del):\nfailure requests (get, put, del):\n"
    assert [len(block) for block in shown(kv)] == [1, 2, 1]
    assert run("txn", "-i", "--success", "get k").exit_code == 2


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"\n\n",
        b"version(k) = 0\n",
        b"\nput k 1\n\ndel k\n",
        b"\nput k 1\n\ndel k",
        b"\nput k 1\n\ndel k\n  ",
        b"\nput k 'a\n\nb\n\n",
    ],
)
def test_txn_sends_nothing_of_what_was_cut_off(kv: FakeClient, stdin: bytes) -> None:
    result = run("txn", "-i", stdin=stdin)
    assert result.exit_code == 2
    assert "third empty line" in result.stderr
    assert kv.asked == []


@pytest.mark.parametrize("asked", [("-i",), ()])
def test_txn_does_not_end_a_block_at_an_empty_line_in_quotes(kv: FakeClient, asked: tuple[str, ...]) -> None:
    kv.answer = TxnResult(True, (), 9)
    good("txn", *asked, stdin=b"# it's no quote\n\nput k 'a\n\nb'\nput l \"\n\n\"\n\ndel k\n\n")
    assert shown(kv) == [
        [],
        ["Op.put(key=b'k', value=b'a\\n\\nb')", "Op.put(key=b'l', value=b'\\n\\n')"],
        ["Op.delete(key=b'k')"],
    ]


@pytest.mark.parametrize("asked", [("-i",), ()])
def test_txn_reads_no_more_than_a_request_can_be(
    kv: FakeClient, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.setattr(stdio, "MAX_STDIN_BYTES", 1000)
    result = run("txn", *asked, stdin=b"put k v\n" * 1000)
    assert result.exit_code == 1
    assert "stdin has more than 1000 bytes" in result.stderr
    assert kv.asked == []


def test_a_get_of_a_transaction_takes_its_consistency_and_is_linearizable(kv: FakeClient) -> None:
    kv.answer = TxnResult(True, (), 9)
    good("txn", *[f"--success=get k {words}".strip() for words in ("", "--consistency=s", "--serializable")])
    _, success, _ = shown(kv)
    assert len(success) == 3
    assert len(set(success)) == 1
    assert run("txn", "--success", "get k --consistency=l --serializable").exit_code == 2


def test_txn_takes_options_instead(kv: FakeClient) -> None:
    kv.answer = TxnResult(False, (), 9)
    options = ["--compare", "create(k) < 9", "--compare", "lease(k)==0", "--success", "put a b", "--failure", "get a"]
    assert good("txn", *options, "--request-id", "r") == "FAILURE\n"
    compare, success, failure = shown(kv)
    assert compare == ["<create_revision of b'k' less 9>", "<lease of b'k' equal 0>"]
    assert success == ["Op.put(key=b'a', value=b'b')"]
    assert failure[0].startswith("Op.range(key=b'a'")
    assert kv.asked[0][2]["request_id"] == b"r"


@pytest.mark.parametrize("stdin", [b"", b"\n\n\n\n", b"# nothing\n"])
def test_an_empty_transaction_is_one(kv: FakeClient, stdin: bytes) -> None:
    kv.answer = TxnResult(True, (), 9)
    good("txn", stdin=stdin)
    assert shown(kv) == [[], [], []]


@pytest.mark.parametrize(
    "stdin",
    [
        b"size(k) = 0\n",
        b"version(k) = zero\n",
        b"version(a b) = 0\n",
        b"version(k) = \n",
        b"value(k) = 'open\n",
        b"\nfly k\n",
        b"\nput k\n",
        b"\nget k --nonsense\n",
        b"\nget a b --prefix\n",
        b"\n\n\nget a\n",
    ],
)
def test_a_transaction_that_cannot_be_read_is_bad_usage(kv: FakeClient, stdin: bytes) -> None:
    result = run("txn", stdin=stdin)
    assert result.exit_code == 2
    assert kv.asked == []


def test_txn_prints_each_response(kv: FakeClient) -> None:
    kv.answer = TxnResult(True, (PutResult(9), RangeResult((A,), 1, False, 9), None, DeleteResult(2, (), 9)), 9)
    assert good("txn", stdin=b"") == "SUCCESS\n\nOK\n\na\n1\n\n\n2\n"
    said = json.loads(good("txn", "-o", "json", stdin=b""))
    assert said["succeeded"] is True
    assert said["responses"][2] is None
    assert said["responses"][3] == {"deleted": 2, "prev": [], "revision": 9}
    assert "success at revision 9" in good("txn", "-o", "table", stdin=b"")


# --- exit status -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.RequestTimeout, errors.InvalidArgument, ClusterNotFound])
def test_a_keeper_error_is_one_line_and_status_one(kv: FakeClient, kind: type[errors.KeeperError]) -> None:
    kv.answer = kind("it went\nwrong")
    result = run("get", "a")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "raykeeper: it went wrong\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["get", "a", "b", "--prefix"],
        ["put"],
        ["fly"],
        ["get", "a", "-o", "xml"],
        ["get", "a", "--limit", "-1"],
    ],
)
def test_bad_usage_is_status_two(kv: FakeClient, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert kv.asked == []


@pytest.mark.parametrize("arguments", ["get --timeout 5", "get --timeout 5 k --limit x", "lock --timeout 5"])
def test_bad_usage_leaves_no_deadline(kv: FakeClient, arguments: str) -> None:
    """The process may go on: Click closes no context whose arguments are wrong."""
    result = run(*arguments.split())
    assert (result.exit_code, time_left()) == (2, float("inf"))


def test_the_timeout_covers_the_whole_command(kv: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float] = []
    monkeypatch.setattr(keys, "open_keys", lambda *_: left.append(time_left()) or kv)
    good("get", "k", "--timeout", "1000")
    assert 0 < left[0] <= 1000


def test_control_c_is_status_130(kv: FakeClient) -> None:
    kv.answer = KeyboardInterrupt()
    assert run("get", "a").exit_code == 130


def test_a_wrong_spec_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "c.yaml").write_text("member: 3\n")
    result = run("up", str(tmp_path / "c.yaml"))
    assert result.exit_code == 1
    assert result.stderr.endswith("c.yaml: member: expected a known field; did you mean members?\n")


# --- the cluster -----------------------------------------------------------------------------------------------------

STATUS = ClusterStatus(
    name="default",
    id=0xABC,
    leader=1,
    term=4,
    revision=9,
    alarms=("m2 does not serve: no data",),
    members=(
        MemberInfo(
            id=1,
            name="m1",
            role="leader",
            node="0123456789",
            pid=77,
            term=4,
            raft_index=20,
            applied_index=19,
            revision=9,
            db_size=2_000_000,
            actor=object(),
            address="10.0.0.1",
            free_bytes=31 * 10**9,
            version=1,
            role_for=400.0,
        ),
        MemberInfo(
            2,
            "m2",
            "silent",
            why_not_serving="no data",
            address="10.0.0.2",
            folder="/data/default/m2",
            silent_for=75.0,
        ),
        MemberInfo(
            3,
            "m3",
            "follower",
            pid=78,
            raft_index=20,
            applied_index=12,
            lag=7,
            lag_seconds=3.0,
            puts=1204.4,
            without_lane={1: "refused"},
        ),
    ),
    sessions=3,
)


class FakeCluster:
    def __init__(self) -> None:
        self.done: list[str] = []

    def status(self, *, timeout: float = 5.0) -> ClusterStatus:
        return STATUS

    def shutdown(self) -> None:
        self.done.append("shutdown")

    def destroy(self) -> None:
        self.done.append("destroy")


class FakeHead:
    def __init__(self, running: bool = True, idle: bool = True) -> None:
        self.running, self.is_idle = running, idle

    def __call__(self) -> FakeHead:
        return self

    def runs(self) -> bool:
        return self.running

    def start_if_none_runs(self) -> bool:
        return False

    def idle(self, ended: str) -> bool:
        return self.is_idle

    def stop(self) -> None:
        self.running = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    for file in (member_commands, up_down):
        for name in ("open_cluster", "open_operations"):
            monkeypatch.setattr(file, name, lambda cluster, address: fake, raising=False)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    return fake


def test_status_prints_every_member_and_why_it_does_not_serve(cluster: FakeCluster) -> None:
    shown = run("status")
    assert shown.exit_code == 1, "a member does not serve"
    assert shown.stdout.splitlines() == [
        "cluster default (abc): term 4, revision 9, 3 sessions; one more loss stops writes",
        "m1 leader for 7 min: pid 77 on 10.0.0.1 (node 01234567), applied 19 of 20, 2.0 MB, 31.0 GB free, "
        "commands version 1",
        "m2 silent: last at 10.0.0.2 in /data/default/m2, silent for 75 s",
        "m3 follower: pid 78 on node , applied 12 of 20, lag 7 entries (3 s), 1,204 puts and 0 gets a second, "
        "0.0 MB, by actor calls to m1",
        "alarm: m2 does not serve: no data",
    ]
    said = json.loads(run("status", "-o", "json").stdout)
    assert said["members"][1]["why_not_serving"] == "no data"
    assert "actor" not in said["members"][0]
    assert said["members"][2]["without_lane"] == {"1": "refused"}
    table = run("status", "-o", "table").stdout
    assert "no data" in table
    assert all(f"alarm: {alarm}" in table for alarm in STATUS.alarms)


def test_a_lost_member_is_shown_with_the_moment_that_the_cluster_has_recorded(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = time.time() - 4 * 86_400
    lost = replace(STATUS.members[1], lost_since=since, silent_for=1.0)
    monkeypatch.setattr(cluster, "status", lambda timeout: replace(STATUS, members=(STATUS.members[0], lost)))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    assert f"m2 silent: last at 10.0.0.2 in /data/default/m2, lost since {when} (4.0 d)\n" in run("status").stdout
    assert json.loads(run("status", "-o", "json").stdout)["members"][1]["lost_since"] == since


def test_down_stops_and_keeps_the_data(cluster: FakeCluster) -> None:
    assert "destroyed: False" in good("down")
    assert cluster.done == ["shutdown"]


def test_down_destroys_only_after_a_yes(cluster: FakeCluster) -> None:
    assert run("down", "--destroy", stdin=b"n\n").exit_code == 1
    assert run("down", "--destroy", stdin=b"").exit_code == 1
    assert cluster.done == []
    good("down", "--destroy", stdin=b"y\n")
    good("down", "--destroy", "--yes")
    assert cluster.done == ["destroy", "destroy"]


@pytest.mark.parametrize(
    ("running", "idle", "stopped"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_down_stops_ray_only_if_up_started_it_and_nobody_else_is_on_it(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, running: bool, idle: bool, stopped: bool
) -> None:
    head = FakeHead(running, idle)
    monkeypatch.setattr(up_down, "RayHead", head)
    said = json.loads(good("down", "-o", "json"))
    assert said["ray_stopped"] is stopped
    assert misfit(FORMS["down"], said) == ""
    assert head.running is (running and not stopped)


def test_down_without_a_cluster_stops_the_head_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cluster: str, address: str | None) -> Any:
        raise ClusterNotFound("no cluster")

    monkeypatch.setattr(up_down, "open_cluster", none)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    assert run("down").exit_code == 1
    monkeypatch.setattr(up_down, "RayHead", FakeHead())
    assert json.loads(good("down", "-o", "json")) == {
        "cluster": "default",
        "stopped": False,
        "destroyed": False,
        "ray_stopped": True,
    }
    monkeypatch.setattr(up_down, "RayHead", FakeHead(idle=False))
    assert run("down").exit_code == 1


# --- a cluster whose nodes are away ----------------------------------------------------------------------------------


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> FakeHead:
    """A head that `up` starts."""
    head = FakeHead(running=False)

    def start() -> bool:
        head.running = True
        return True

    monkeypatch.setattr(head, "start_if_none_runs", start)
    monkeypatch.setattr(up_down, "RayHead", head)
    monkeypatch.setattr(up_down, "join", lambda address: None)
    return head


@pytest.mark.parametrize(
    ("error", "runs_on"),
    [(MembersMissing("m1 is away"), True), (Unavailable("no quorum"), False), (SpecError("s", "f", "more"), False)],
)
def test_up_leaves_the_head_running_only_for_nodes_that_are_missing(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, error: KeeperError, runs_on: bool
) -> None:
    def launch(spec: Any) -> Any:
        raise error

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    result = run("up")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"raykeeper: {error}"
    assert head.running is runs_on
    assert ("keeps running" in result.stderr) is runs_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_what_ends_up_while_it_launches_ends_its_head_too(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def launch(spec: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(20)

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    before = signal.getsignal(number)
    assert run("up").exit_code == 128 + number
    assert not head.running
    assert signal.getsignal(number) is before


def test_what_ends_up_while_its_head_begins_ends_that_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(head: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_head, "_ray_runs", lambda: False)
    monkeypatch.setattr(ray_head, "_RAY", (sys.executable, "-c", "import time; time.sleep(100)"))
    head = ray_head.RayHead(tmp_path)
    monkeypatch.setattr(head, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        head.start_if_none_runs()
    assert not head.runs()


@pytest.mark.parametrize("home", ["/dev/null", "/nonexistent", "x" * 5000, "a\nb\udcff"])
def test_a_home_that_holds_nothing_has_no_head(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        with monkeypatch.context() as patch:
            patch.delenv("XDG_STATE_HOME", raising=False)
            patch.setenv(name, home)
            head = ray_head.RayHead()
            assert not head.runs()
            assert head.address() is None


def test_up_says_on_stderr_what_the_launch_warns_of(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = []

    def launch(spec: Any) -> Any:
        specs.append(spec)
        logging.getLogger("raykeeper").warning("all on one host")
        return FakeCluster()

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    monkeypatch.setattr(up_down, "UP_SETTLE_S", 0.0)
    result = run("up", "--cluster", "jobs", "--bootstrap", "never")
    assert result.exit_code == 1, "a member does not serve"
    assert "m1 leader" in result.stdout
    assert result.stderr == "raykeeper: warning: all on one host\n"
    assert (specs[0].name, specs[0].bootstrap) == ("jobs", "never")


def test_every_command_says_on_stderr_in_one_line_what_the_package_logs(
    kv: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(*_: object) -> None:
        try:
            raise LookupError("x")
        except LookupError:
            logging.getLogger("raykeeper.client").exception("the callback of a request failed")

    monkeypatch.setattr(FakeClient, "__exit__", close)
    kv.answer = PutResult(7, None)
    result = run("put", "a", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == "raykeeper: error: the callback of a request failed\n"


def test_a_bug_is_one_line_and_its_traceback_a_file_that_is_named(
    kv: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kv.answer = LookupError("a\nb")
    result = run("put", "a", "1")
    assert result.exit_code == 1
    (file,) = tmp_path.iterdir()
    assert result.stderr == f"raykeeper: a bug: LookupError: a b; {file} has the traceback, for a report\n"
    text = file.read_text()
    assert text.startswith("Traceback")
    assert text.endswith("LookupError: a\nb\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    result = run("put", "a", "1")
    assert (result.exit_code, result.stderr) == (1, "raykeeper: a bug: LookupError: a b\n")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("--id", "1f"), ("jobs", 0x1F, "~/.raykeeper")),
        (("--id", "1f", "--data-dir", "/d"), ("jobs", 0x1F, "/d")),
        (("--data-dir", "/d"), ("jobs", None, "/d")),
    ],
)
def test_down_gives_up_a_cluster_that_does_not_run(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], given: tuple[Any, ...]
) -> None:
    asked = []
    monkeypatch.setattr(up_down, "join", lambda address: None)
    monkeypatch.setattr(
        "raykeeper.cluster.discard", lambda name, id, *, data_dir: asked.append((name, id, data_dir)) or id
    )
    command = ("down", "--cluster", "jobs", "--destroy", *arguments)
    assert run(*command, stdin=b"n\n").exit_code == 1
    assert asked == []
    good(*command, "--yes")
    assert asked == [given]
    assert cluster.done == []


@pytest.mark.parametrize("error", [None, ClusterNotFound("nothing is there")])
def test_what_an_error_advises_works_where_the_ray_of_its_process_has_ended(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, error: KeeperError | None
) -> None:
    """A Ray is started to read this machine's disk, and stopped again in any case."""

    def discard(name: str, id: int | None, *, data_dir: str) -> int:
        assert head.running
        if error is not None:
            raise error
        return 0x1F

    monkeypatch.setattr("raykeeper.cluster.discard", discard)
    result = run("down", "--destroy", "--id", "1f", "--data-dir", "/d", "--yes")
    assert result.exit_code == (error is not None), result.output
    assert not head.running


def test_a_head_that_ran_before_is_only_stopped_if_it_is_idle(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.cluster.discard", lambda *_, **__: 1)
    monkeypatch.setattr(head, "start_if_none_runs", lambda: False)
    head.running, head.is_idle = True, False
    good("down", "--destroy", "--id", "1f", "--yes")
    assert head.running


@pytest.mark.parametrize("arguments", [("--cluster", "../x"), ("--data-dir", "relative"), ("--data-dir", "")])
def test_no_folder_is_deleted_that_can_be_no_cluster_s(head: FakeHead, arguments: tuple[str, ...]) -> None:
    result = run("down", "--destroy", "--id", "1f", "--yes", *arguments)
    assert result.exit_code == 1
    assert not head.running
    with pytest.raises(SpecError):
        raykeeper.discard("..", 1)
    with pytest.raises(SpecError):
        raykeeper.discard("x", 1, data_dir="relative")


def test_down_says_how_to_give_up_what_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cluster: str, address: str | None) -> Any:
        raise ClusterNotFound("no cluster default runs")

    monkeypatch.setattr(up_down, "open_cluster", none)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    assert "add --data-dir" in run("down", "--destroy", "--yes").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--id", "1f"),
        ("--data-dir", "/d"),
        ("--destroy", "--id", "m1"),
        ("--destroy", "--id", "0"),
        ("--destroy", "--id", "-3"),
    ],
)
def test_down_takes_no_half_said_order(cluster: FakeCluster, arguments: tuple[str, ...]) -> None:
    assert run("down", "--yes", *arguments).exit_code == 2
    assert cluster.done == []
