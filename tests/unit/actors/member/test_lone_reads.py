"""What a member does for a lone read, and for a question after its term: with one real member, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper.raft import Node
from raykeeper.schema.frames import AskTerm, CurrentTerm, LoneRead, Read, ReadReply, Reply, Request, UnconfirmedRead
from raykeeper.schema.key_spaces import USER_SPACE
from raykeeper.schema.operations import KeyRange, Range
from raykeeper.store.engine.rocks import RocksDisk

KEY = KeyRange(USER_SPACE + b"k")


@pytest.fixture
def member(tmp_path: Path) -> Iterator[OneMember]:
    with one_member(RocksDisk(), str(tmp_path / "member")) as made:
        made.wait_until_it_leads()
        made.client().put("k", "v")
        yield made


def ask(member: OneMember, request: Request, *, in_loop: bool = True) -> tuple[Reply, bool]:
    """The reply, and whether a turn would find nothing to do."""
    replies: list[bytes] = []
    ready = threading.Event()

    def done(make: Callable[[], bytes]) -> None:
        replies.append(make())
        ready.set()

    at_once = member.loop.handler.handle_request(msgspec.msgpack.encode(request), done, in_loop=in_loop)
    assert ready.wait(PATIENCE)
    return msgspec.msgpack.decode(replies[0], type=Reply), at_once


def lone(member: OneMember, keys: KeyRange = KEY) -> LoneRead:
    return LoneRead(member.cluster, 60.0, Read(Range(keys)))


def value(reply: Reply) -> bytes:
    """Of the one key, whichever kind of reply it is."""
    answer = reply.answer if isinstance(reply, UnconfirmedRead) else reply.answers[0]  # type: ignore[union-attr]
    return bytes(answer.items[0].value)  # type: ignore[union-attr]


def test_a_leader_names_its_term_and_the_voters(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "confirming_voters", lambda node: (2, 3))
    reply, at_once = ask(member, lone(member))
    assert isinstance(reply, UnconfirmedRead)
    assert (reply.term, reply.voters, at_once) == (member.loop.replica.term, (2, 3), True)
    assert b"v" in value(reply)


def test_without_such_voters_it_confirms_itself(member: OneMember) -> None:
    reply, at_once = ask(member, lone(member))
    assert isinstance(reply, ReadReply)
    assert not at_once
    assert b"v" in value(reply)


def test_on_another_thread_than_the_loops_it_is_answered_in_a_turn(
    member: OneMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop may be in the midst of a turn, in which role, term and commit index change."""
    monkeypatch.setattr(Node, "confirming_voters", lambda node: (2, 3))
    answered_by: list[str] = []
    make = member.loop.handler.reads._run_reads

    def run_reads(*arguments: object) -> bytes:
        answered_by.append(threading.current_thread().name)
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(member.loop.handler.reads, "_run_reads", run_reads)
    reply, at_once = ask(member, lone(member), in_loop=False)
    assert isinstance(reply, UnconfirmedRead)
    assert (answered_by, at_once) == (["member loop"], False)


def test_a_range_goes_the_ordinary_way(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "confirming_voters", lambda node: (2, 3))
    assert isinstance(ask(member, lone(member, KeyRange(USER_SPACE, USER_SPACE + b"z")))[0], ReadReply)


def test_a_leader_that_has_not_applied_all_that_is_committed_waits(
    member: OneMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "confirming_voters", lambda node: (2, 3))
    ahead = member.loop.replica.state.applied_index + 1
    kept = Node.commit_index
    monkeypatch.setattr(Node, "commit_index", property(lambda node: ahead))
    try:
        answered = threading.Event()
        frame = msgspec.msgpack.encode(lone(member))
        at_once = member.loop.handler.handle_request(frame, lambda make: answered.set(), in_loop=True)
    finally:
        monkeypatch.setattr(Node, "commit_index", kept)
    assert not at_once
    assert answered.wait(PATIENCE)


@pytest.mark.parametrize("in_loop", [True, False])
def test_any_member_tells_its_term_to_anyone_of_its_cluster(member: OneMember, in_loop: bool) -> None:
    reply, at_once = ask(member, AskTerm(member.cluster, 60.0), in_loop=in_loop)
    assert reply == CurrentTerm(1, member.loop.replica.term)
    assert at_once
    reply, _ = ask(member, AskTerm(member.cluster + 1, 60.0), in_loop=in_loop)
    assert not isinstance(reply, CurrentTerm)
