"""A leader that is flooded has no room in its log for proposals whose callers no longer wait."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from lab.onemember import one_member
from lab.patience import PATIENCE
from raykeeper.actors.member.clock import member_clock
from raykeeper.actors.member.events import Proposal
from raykeeper.schema.answers import SessionOpened
from raykeeper.schema.commands import OpenSession
from raykeeper.schema.frames import Refusal, Refused

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
        inbox, sessions = member.loop.inbox, len(member.loop.replica.state.sessions)
        for nonce, seconds in ((b"late", -0.01), (b"in time", 30.0)):
            now = member_clock()
            data = encode(OpenSession(nonce, 60.0))
            assert inbox.put_event(Proposal(data, now + seconds, now - 1.0, done), len(data))
        assert over.wait(PATIENCE)
        late, in_time = outcomes
        assert isinstance(late, Refused)
        assert late.refusal is Refusal.OVERLOADED
        assert isinstance(in_time[0], SessionOpened)
        assert len(member.loop.replica.state.sessions) == sessions + 1
