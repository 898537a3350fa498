"""What a member does when a process of its machine has died: it has the leader end the sessions of that process.

The kernel has said that the process is dead (``transport/process_monitors.py``), so this is true forever, and may be
said late and more than once. The leader puts it into the log (``EndDeadSessions``), where it takes its place between
the uses of the leases: a process that has used one before keeps it. A thread asks the leader, because that may take a
while; it lives as long as there is something to report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from ...limits import DEATH_REPORT_CALL_S, DEATH_REPORT_PAUSE_S, DEATH_REPORT_S, MAX_EXPIRIES_AT_ONCE, MONITOR_REFRESH_S
from ...schema.answers import Done
from ...schema.commands import EndDeadSessions
from ...schema.frames import AsUser, Refusal, Refused, Reply, Written
from ...schema.operator_frames import Administer
from ...schema.replies import MakeReply
from ..logs import MemberLog
from ..one_thread import OneThread

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class DeathReports:
    """Reports of one member.

    Args:
        cluster, member: whose.
        leader: the leader as far as this member knows, 0 if it knows none.
        ask_here: ``RequestHandler.handle_request`` of this member.
        lookup: finds the actor of a member.
        token: of the cluster itself; empty while users are not needed.
    """

    def __init__(
        self,
        cluster: int,
        member: int,
        *,
        leader: Callable[[], int],
        ask_here: Callable[[bytes, Callable[[MakeReply], None]], object],
        lookup: Callable[[int], Any],
        token: Callable[[], bytes],
        log: MemberLog,
    ) -> None:
        self._cluster = cluster
        self._member = member
        self._leader = leader
        self._ask_here = ask_here
        self._lookup = lookup
        self._token = token
        self._log = log
        self._lock = threading.Lock()
        self._dead: dict[int, float] = {}
        """Sessions that are to be reported, and until when to try."""
        self._thread = OneThread()
        self._actors: dict[int, Any] = {}

    def report(self, sessions: Sequence[int]) -> None:
        """The processes of these sessions are dead. Returns at once."""
        until = time.monotonic() + DEATH_REPORT_S
        with self._lock:
            for session in sessions:
                self._dead[session] = until
            self._thread.start(self._run, "death reports")  # if there is none to be had, the next report tries again

    def _run(self) -> None:
        pause = DEATH_REPORT_PAUSE_S
        while sessions := self._due():
            try:
                done = self._ask(sessions)
            except Exception as error:  # Ray's, of many kinds: it may be shutting down
                self._log.debug("the death of a client's process could not be reported: %s", error)
                self._actors.clear()
                done = False
            if done:
                with self._lock:
                    for session in sessions:
                        self._dead.pop(session, None)
                pause = DEATH_REPORT_PAUSE_S
            else:
                time.sleep(pause)
                pause = min(2 * pause, MONITOR_REFRESH_S)

    def _due(self) -> tuple[int, ...]:
        """The sessions to report next. If there are none, this thread ends, and the next report starts another."""
        now = time.monotonic()
        with self._lock:
            self._dead = {session: until for session, until in self._dead.items() if until > now}
            if not self._dead:
                self._thread.done()
            return tuple(sorted(self._dead)[:MAX_EXPIRIES_AT_ONCE])

    def _ask(self, sessions: tuple[int, ...]) -> bool:
        """Ask the leader once; whether it is done."""
        leader = self._leader()
        if not leader:
            return False
        request = Administer(self._cluster, DEATH_REPORT_CALL_S, EndDeadSessions(sessions))
        token = self._token()
        frame = _encode(AsUser(token, request) if token else request)
        if leader == self._member:
            future: Future[bytes] = Future()
            self._ask_here(frame, lambda make: future.set_result(make()))
            reply = _decode(future.result(2 * DEATH_REPORT_CALL_S))
        else:
            actor = self._actors.get(leader)
            if actor is None:
                actor = self._actors[leader] = self._lookup(leader)
            reply = _decode(actor.request.remote(frame).future().result(2 * DEATH_REPORT_CALL_S))
        if isinstance(reply, Written):
            return isinstance(reply.answers[0], Done)
        if isinstance(reply, Refused) and reply.refusal is Refusal.INVALID:
            self._log.warning("the death of a client's process is refused: %s", reply.message)
            return True
        return False
