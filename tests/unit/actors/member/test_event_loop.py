"""The loop of a member: how it ends when it cannot go on."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from lab.onemember import one_member
from lab.patience import PATIENCE, until
from raykeeper import RequestTimeout, Unavailable
from raykeeper.actors.member import event_loop
from raykeeper.actors.member.events import Proposal
from raykeeper.schema import commands


class Unheard(msgspec.Struct, frozen=True, array_like=True, tag=99):
    """A command of a version to come."""

    what: str


def test_a_command_of_a_newer_version_ends_the_loop_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ended there would be followed by others that end at the same entry."""
    monkeypatch.setitem(commands.SINCE, Unheard, 2)
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        answers: list[object] = []
        data = commands.encode(Unheard("x"))  # type: ignore[arg-type]
        assert member.loop.inbox.put_event(Proposal(data, time.monotonic() + 1e6, 0.0, answers.append), len(data))
        until(lambda: member.gave_up)
        assert "version 2" in member.gave_up[0]
        until(lambda: not member.loop._thread.is_alive())
        assert len(answers) == 1, "a waiting caller is answered"
        with pytest.raises((Unavailable, RequestTimeout)):
            kv.put("a", "2", timeout=0.3)


def test_without_a_thread_to_say_so_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the member would be half dead: its loop over, and its status that of one that serves."""
    monkeypatch.setitem(commands.SINCE, Unheard, 2)
    ended: list[str] = []
    monkeypatch.setattr(event_loop, "die", lambda log, why: ended.append(why))
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "gave up":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    with one_member() as member:
        data = commands.encode(Unheard("x"))  # type: ignore[arg-type]
        assert member.loop.inbox.put_event(Proposal(data, time.monotonic() + 1e6, 0.0, lambda answer: None), len(data))
        until(lambda: ended)
        until(lambda: not member.loop._thread.is_alive())
    assert len(ended) == 1


def test_a_turn_that_does_not_end_is_told_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with one_member() as member:
        loop, go_on, inside = member.loop, threading.Event(), threading.Event()
        turn = loop.replica.turn

        def stuck(*arguments: object) -> None:
            inside.set()
            assert go_on.wait(PATIENCE)
            turn(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop.replica, "turn", stuck)
        try:
            assert inside.wait(PATIENCE)
            until(lambda: loop.stuck_for() > 0.05)
        finally:
            monkeypatch.undo()
            go_on.set()
        until(lambda: loop.stuck_for() == 0.0)
