"""A leader that is flooded has no room in its log for what nobody waits for any more."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
from onemember import one_member

from raykeeper.actors.clock import member_clock
from raykeeper.actors.events import Proposal
from raykeeper.actors.protocol import Refusal, Refused
from raykeeper.store.commands import OpenSession, SessionOpened

encode = msgspec.msgpack.Encoder().encode


def test_a_proposal_whose_time_was_over_in_the_inbox_is_refused_and_has_no_effect() -> None:
    outcomes: list[Any] = []
    over = threading.Event()

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            over.set()

    with one_member() as member, member.client() as kv:
        kv.put("k", "v")  # somebody leads
        inbox, sessions = member.loop.inbox, len(member.loop.server.state.sessions)
        for nonce, seconds in ((b"late", -0.01), (b"in time", 30.0)):
            now = member_clock()
            data = encode(OpenSession(nonce, 60.0))
            assert inbox.put_event(Proposal(data, now + seconds, now - 1.0, done), len(data))
        assert over.wait(20)
        late, in_time = outcomes
        assert isinstance(late, Refused)
        assert late.refusal is Refusal.OVERLOADED
        assert isinstance(in_time[0], SessionOpened)
        assert len(member.loop.server.state.sessions) == sessions + 1
