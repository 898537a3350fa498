"""Requests to one member, past the hub: what does this very member answer?"""

from __future__ import annotations

from typing import Any

import msgspec
import ray

from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import KeepLeases, Open, Opened, Read, ReadReply, Reads, Refused, Reply, Writes
from raykeeper.schema.key_spaces import USER_SPACE
from raykeeper.schema.operations import KeyRange, Put, Range


def ask(member: Any, request: Any) -> Any:
    """Send a request to a member's actor; a reference to the encoded reply."""
    return member.actor.request.remote(msgspec.msgpack.encode(request))


def reply(reference: Any, seconds: float = 60.0) -> Any:
    """What the member answered."""
    return msgspec.msgpack.decode(ray.get(reference, timeout=seconds), type=Reply)


def replies(references: list[Any], seconds: float = 60.0) -> list[Any]:
    """What it answered to each."""
    return [reply(reference, seconds) for reference in references]


def read(member: Any, cluster: int, key: bytes, deadline: float = 10.0) -> Any:
    """Ask a member for a linearizable read."""
    return ask(member, Reads(cluster, deadline, False, (Read(Range(KeyRange(USER_SPACE + key))),)))


def values(answers: list[Any]) -> set[bytes | None]:
    """What was read by those that were not refused; nothing else may come back."""
    found: set[bytes | None] = set()
    for answer in answers:
        if not isinstance(answer, Refused):
            assert isinstance(answer, ReadReply), answer
            items = answer.answers[0].items  # type: ignore[union-attr]
            found.add(items[0].value if items else None)
    return found


def keep(member: Any, cluster: int, lease: int, deadline: float = 10.0) -> Any:
    """Ask a member to keep a lease alive."""
    return ask(member, KeepLeases(cluster, deadline, (lease,)))


def open_session(member: Any, cluster: int) -> int:
    """A session, opened at the leader."""
    opened = reply(ask(member, Open(cluster, 20.0, b"a test's own")))
    assert isinstance(opened, Opened), opened
    return opened.session


def write(member: Any, cluster: int, session: int, sequence: int, key: bytes, value: bytes, deadline: float) -> Any:
    """Ask a member for a write of that session."""
    put = ClientWrite(sequence, Put(USER_SPACE + key, value))
    return ask(member, Writes(cluster, deadline, ClientWrites(session, sequence, (put,))))
