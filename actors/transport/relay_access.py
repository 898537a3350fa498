"""Access to a cluster's members by way of a proxy on this node (``MemberAccess``), for shells."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from ...schema.frames import Reply
from ...schema.operator_frames import AskStatus, MemberStatus, Status
from .relay import RelayCalls

_ASK_STATUS = msgspec.msgpack.encode(AskStatus())
_decode = msgspec.msgpack.Decoder(Reply).decode


class RelayAccess:
    """See ``MemberAccess``.

    Args:
        calls: the connection to the proxy.
    """

    def __init__(self, calls: RelayCalls) -> None:
        self._calls = calls

    def members(self) -> Mapping[int, None]:
        """See ``MemberAccess``."""
        self._calls.refresh()
        return dict.fromkeys(sorted(self._calls.members()))

    def ask(self, frames: Mapping[int, bytes], patience: float) -> Iterator[tuple[int, bytes]]:
        """See ``MemberAccess``."""
        until = time.monotonic() + patience
        answers: queue.SimpleQueue[tuple[int, bytes | Exception]] = queue.SimpleQueue()

        def answered(member: int, answer: bytes | Exception) -> None:
            answers.put((member, answer))

        for member, frame in frames.items():
            try:
                self._calls.send(member, frame, partial(answered, member))
            except Exception as error:  # Ray's, if it goes by Ray by now
                answered(member, error)
        for _ in frames:
            try:
                member, answer = answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(answer, bytes):
                yield member, answer

    def statuses(self, members: Mapping[int, object], patience: float) -> dict[int, MemberStatus]:
        """See ``MemberAccess``."""
        return dict(self.each_status(members, patience))

    def each_status(self, members: Mapping[int, object], patience: float) -> Iterator[tuple[int, MemberStatus]]:
        """As ``statuses``, but each as it comes: who needs only one need not wait for members that do not answer."""
        for member, answer in self.ask(dict.fromkeys(members, _ASK_STATUS), patience):
            with suppress(msgspec.MsgspecError):
                reply = _decode(answer)
                if isinstance(reply, Status):
                    yield member, reply.status

    def move_leader(self, leader: int, target: int) -> bool:
        """See ``MemberAccess``."""
        return self._calls.move_leader(leader, target)
