"""From where a request came, as the audit log says it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raykeeper.actors.member.request_source import ACTOR_CALL, source_of
from raykeeper.limits import MAX_IDENTITY_LETTERS
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.commands import ClientWrites, HashContent
from raykeeper.schema.frames import BareRequest, Close, Login, Open, Reads, Writes
from raykeeper.schema.operator_frames import Administer

IDENTITY = ClientIdentity(host="a\nb", pid=7, job="0100", actor="it's")
SAID = f"{ACTOR_CALL} that says it is process 7 on 'a\\nb', job '0100', actor \"it's\""


def source(request: BareRequest, lane: Any = None, said: ClientIdentity | None = None) -> str:
    state: Any = SimpleNamespace(clients={3: SimpleNamespace(identity=IDENTITY)})
    return source_of(state, request, lane, said)


def test_a_lane_is_what_the_kernel_says() -> None:
    lane = SimpleNamespace(source="process 9 of user 0 on here")
    assert source(Open(1, 1.0, b"n", IDENTITY), lane, IDENTITY) == lane.source


def test_an_actor_call_is_what_comes_with_it() -> None:
    """Requests without a session, too: reads, logins, changes of members and settings."""
    other = ClientIdentity(host="b", pid=9)
    for request in (Reads(1, 1.0, False, ()), Login(1, 1.0, "ann"), Administer(1, 1.0, HashContent())):
        assert source(request, None, other) == f"{ACTOR_CALL} that says it is process 9 on 'b'"
    assert source(Close(1, 1.0, 3), None, other) == f"{ACTOR_CALL} that says it is process 9 on 'b'"


def test_an_actor_call_is_what_the_client_says_of_its_session() -> None:
    assert source(Open(1, 1.0, b"n", IDENTITY)) == SAID
    assert source(Close(1, 1.0, 3)) == SAID
    assert source(Writes(1, 1.0, ClientWrites(3, 1, ()))) == SAID
    assert "\n" not in SAID, "one line"


def test_what_names_no_client() -> None:
    too_long = ClientIdentity(host="x" * (MAX_IDENTITY_LETTERS + 1))
    for request in (Close(1, 1.0, 4), Reads(1, 1.0, False, ()), Open(1, 1.0, b"n"), Open(1, 1.0, b"n", too_long)):
        assert source(request) == ACTOR_CALL
