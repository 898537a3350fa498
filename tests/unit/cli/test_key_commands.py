"""Commands on keys: what they ask of the client, and how they print what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lab.commands import BINARY, A, FakeClient, good, run
from raykeeper import END, KEEP
from raykeeper.actors.client.results import DeleteResult, PutResult, RangeResult
from raykeeper.cli import keys, txn
from raykeeper.cli.options import LOCK_KEY


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
