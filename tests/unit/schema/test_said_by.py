"""What a process says of itself with an actor call: it is there to read, and changes nothing else."""

from __future__ import annotations

import msgspec
import pytest

from raykeeper.actors.member.actor import deadline_of
from raykeeper.errors import RequestTooLarge
from raykeeper.limits import MAX_IDENTITY_LETTERS, Limits
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.frame_validation import check_request
from raykeeper.schema.frames import AsUser, BareRequest, KeepAlive, Login, Request, WatchPoll, is_poll
from raykeeper.schema.operator_frames import AskStatus
from raykeeper.schema.said_by import encode_said, said_by

WHO = ClientIdentity(host="here", pid=41, job="01")
SAID = encode_said(WHO)
REQUESTS = (AskStatus(), KeepAlive(1, 2.0, 3), Login(1, 2.0, "ann", "secret"), WatchPoll(1, 2.0, b"stream", True))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
@pytest.mark.parametrize("token", [b"", b"t" * 40, b"t" * 300])
def test_a_request_says_who_sends_it(request_: BareRequest, token: bytes) -> None:
    bare = msgspec.msgpack.encode(request_)
    # as the client wraps it (``UserLogin.wrap``), and as others do
    for frame in (
        msgspec.msgpack.encode((AsUser.__struct_config__.tag, token, msgspec.Raw(bare))),
        *([bare] if not token else []),
    ):
        said = said_by(frame, SAID)
        assert msgspec.msgpack.decode(said, type=Request) == AsUser(token, request_, WHO)
        assert said_by(said, encode_said(ClientIdentity(pid=9))) == said, "once"
        assert is_poll(said) == isinstance(request_, WatchPoll)
        assert deadline_of(said) == deadline_of(frame)


def test_it_is_bounded() -> None:
    check_request(AsUser(b"", AskStatus(), WHO), Limits())
    with pytest.raises(RequestTooLarge):
        check_request(AsUser(b"", AskStatus(), ClientIdentity(host="x" * (MAX_IDENTITY_LETTERS + 1))), Limits())
