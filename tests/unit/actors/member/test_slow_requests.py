"""Which requests are said to be slow, and where their time went."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.events import Proposal, ReadAsked
from raykeeper.actors.member.slow_requests import SlowRequests, describe_command
from raykeeper.actors.member.watches import WatchFigures
from raykeeper.limits import LAG_LOG_REVISIONS, LAG_LOG_S, SLOW_S
from raykeeper.raft import Entry
from raykeeper.raft.messages import EntryKind
from raykeeper.schema.commands import ByUser, Caller, ClientWrite, ClientWrites
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.operations import Delete, Put

PUT = ClientWrites(1, 1, (ClientWrite(1, Put(b"uabc", b"secret")),))


@pytest.fixture
def slow() -> SlowRequests:
    return SlowRequests(MemberLog("member", "c", "m1"))


def parts(line: str) -> dict[str, float]:
    return {what: float(seconds) for seconds, what in re.findall(r"([\d.]+) (waiting|log|quorum|apply|reading)", line)}


def test_where_the_time_of_a_write_went(slow: SlowRequests, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    slow.note_append([Entry(9, 1, EntryKind.NORMAL, b""), Entry(12, 1, EntryKind.NORMAL, b"")], 0.25)
    slow.note_append([Entry(13, 1, EntryKind.NORMAL, b"")], 0.75)  # another's
    slow.apply_began, slow.apply_took = 101.0, 0.125
    slow.wrote(Proposal(b"", 200.0, 100.0, lambda result: None, session=5, decoded=PUT), 11, 100.5)
    (record,) = caplog.records
    assert parts(record.message) == {"waiting": 0.5, "log": 0.25, "quorum": 0.25, "apply": 0.125}
    assert "1.125 s" in record.message
    assert "secret" not in record.message
    assert slow.writes == 1


def test_a_read_is_slow_or_big(slow: SlowRequests, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    slow.read((), 0.0, SLOW_S, 10)
    assert (slow.reads, slow.big_answers) == (1, 0)
    slow.read((), 0.0, 0.0, 1 << 30)
    assert (slow.reads, slow.big_answers) == (1, 1)
    assert len(caplog.records) == 2


def test_a_watcher_is_said_to_lag_once_it_has_for_a_while(slow: SlowRequests, caplog: pytest.LogCaptureFixture) -> None:
    lags = WatchFigures(1, 1, 1, LAG_LOG_REVISIONS, b"a", 3.0, "process 77 of user 0")
    slow.follow_watches(lags, 0.0)
    slow.follow_watches(lags, LAG_LOG_S - 0.1)
    assert not caplog.records
    slow.follow_watches(lags, LAG_LOG_S)
    (record,) = caplog.records
    assert "stream 61 of process 77 of user 0 has 1000 revisions to read" in record.getMessage()
    slow.follow_watches(lags, LAG_LOG_S + 1)
    assert len(caplog.records) == 1
    slow.follow_watches(lags._replace(lag=0), 2 * LAG_LOG_S)
    slow.follow_watches(lags, 2 * LAG_LOG_S + 1)
    assert len(caplog.records) == 1


def test_lines_are_limited(slow: SlowRequests, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        slow.refused(ReadAsked(0.0, lambda refused: None))
    assert slow.floods == 1000
    assert 0 < len(caplog.records) < 100


def test_commands_are_described_without_values() -> None:
    two = ClientWrites(1, 1, (PUT.writes[0], ClientWrite(2, Delete(KeyRange(b"ua", b"")))))
    assert describe_command(two) == "put of 'abc' (6 bytes) and 1 more"
    assert describe_command(ByUser(Caller("someone", 1, 2.0), PUT)) == describe_command(PUT)
    assert describe_command(None) == "a command"


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member() as member:
        member.wait_until_it_leads()
        yield member


def test_a_put_during_a_slow_sync(
    member: OneMember, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a real member: only the log was slow, and that is what the line says."""
    caplog.set_level(logging.INFO)
    log = member.loop.replica.folder.log
    sync = log._store.sync

    def slow_sync() -> None:
        threading.Event().wait(2 * SLOW_S)
        sync()

    with member.client() as kv:
        kv.put("quick", "v")
        monkeypatch.setattr(log._store, "sync", slow_sync)
        kv.put("sluggish", "v")
        monkeypatch.undo()

    def lines() -> list[str]:
        return [record.message for record in caplog.records if "put of 'sluggish'" in record.message]

    until(lambda: lines())  # the put is answered first
    (line,) = lines()
    assert parts(line)["log"] >= 2 * SLOW_S


def test_a_batch_during_a_slow_apply(
    member: OneMember, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    state = member.loop.replica.folder.state
    apply = state.apply_some

    def slow_apply(*arguments: Any) -> Any:
        threading.Event().wait(2 * SLOW_S)
        return apply(*arguments)

    async def put_three() -> None:
        async with member.client().aio as aio:
            await asyncio.gather(*[aio.put(f"b{number}", "v") for number in range(3)])

    with member.client() as kv:
        kv.put("quick", "v")
        monkeypatch.setattr(state, "apply_some", slow_apply)
        asyncio.run(put_three())
        monkeypatch.undo()

    def lines() -> list[str]:
        return [record.message for record in caplog.records if "put of 'b0' (1 bytes) and 2 more" in record.message]

    until(lambda: [line for line in lines() if "slow request" in line])
    line = next(line for line in lines() if "slow request" in line)
    assert parts(line)["apply"] >= 2 * SLOW_S


@pytest.mark.parametrize("what", ["key", "range"])
def test_a_read_that_is_slow(
    member: OneMember, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    caplog.set_level(logging.INFO)
    state = member.loop.replica.folder.state
    find = state.range

    def slow_range(*arguments: Any, **options: Any) -> Any:
        threading.Event().wait(2 * SLOW_S)
        return find(*arguments, **options)

    with member.client() as kv:
        kv.put("k", "v")
        monkeypatch.setattr(state, "range", slow_range)
        if what == "key":
            kv.get("k")
        else:
            kv.range(prefix="k")
        monkeypatch.undo()

    def lines() -> list[str]:
        return [record.message for record in caplog.records if "slow request: read of" in record.message]

    until(lambda: lines())
    assert parts(lines()[0])["reading"] >= 2 * SLOW_S


def test_a_read_that_waits_for_a_quorum(
    member: OneMember, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    reads = member.loop.replica.reads
    answered = reads.round_answered

    def late(*arguments: Any) -> None:
        threading.Event().wait(2 * SLOW_S)
        answered(*arguments)

    with member.client() as kv:
        kv.put("k", "v")
        monkeypatch.setattr(reads, "round_answered", late)
        kv.get("k")
        monkeypatch.undo()

    def lines() -> list[str]:
        return [record.message for record in caplog.records if "slow request: read of 'k'" in record.message]

    until(lambda: lines())
    assert parts(lines()[0])["waiting"] >= 2 * SLOW_S


def test_a_watch_stream_says_from_where_its_client_polls() -> None:
    with one_member() as member, member.client() as kv, kv.watch(prefix="w/"):
        (stream,) = member.loop.replica.watches._streams.values()
        assert stream.source == "an actor call", "as it is without a lane"
