"""Transactions of the command line: how they are read, what they ask of the client, and how answers are printed."""

from __future__ import annotations

import json

import pytest

from lab.commands import A, FakeClient, good, run
from raykeeper.actors.client.results import DeleteResult, PutResult, RangeResult, TxnResult
from raykeeper.cli import stdio


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
