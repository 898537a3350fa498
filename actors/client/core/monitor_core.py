"""Has a member of this node notice the death of this process, without I/O: its leases then end at once.

While the process owns leases, it tells a member on its own node which session it has, again and again: a member that
was started again does not know. The member asks the kernel which process speaks (``transport/process_monitors.py``), so
nothing depends on what is said here, except that the session is this process's own. If there is no member on the node,
or none that can see the process, its leases end by their TTLs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec

from ....limits import CLIENT_SUSPICION_S, MONITOR_PAUSE_S, MONITOR_REFRESH_S
from ....schema.frames import MonitorProcess, ProcessMonitored, Reply
from .in_flight import OutgoingFrame
from .router import Router

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class MonitorCore:
    """The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        router: the hub's, which knows the members near by.
        session: the session of this process, 0 while there is none.
        owns: whether this process owns a lease.
        rng: for the jitter of pauses.
        elsewhere: is given the session where no member is near, to have this process monitored otherwise. It must not
            block.
    """

    def __init__(
        self,
        cluster: int,
        router: Router,
        session: Callable[[], int],
        owns: Callable[[], bool],
        rng: random.Random,
        elsewhere: Callable[[int], None] = lambda session: None,
    ) -> None:
        self._cluster = cluster
        self._elsewhere = elsewhere
        self._router = router
        self._session = session
        self._owns = owns
        self._rng = rng
        self._number = 0
        self._at = math.inf
        """When to ask next; infinite while no lease is owned."""
        self._suspect_at = math.inf
        """Until when the frame in flight is waited for; infinite if there is none."""
        self._member = 0
        """The member that was asked last."""
        self._pause = MONITOR_PAUSE_S
        self._session_pause = MONITOR_PAUSE_S
        """Until it looks again for a session."""
        self.monitored = 0
        """The session that a member, or the proxy of this node, has said it monitors, 0 for none."""

    def monitored_elsewhere(self, session: int) -> None:
        """Who is near otherwise monitors this session, 0 for none. Any thread."""
        self.monitored = session

    @property
    def failing(self) -> bool:
        """Whether no member has answered since something failed; never: nobody waits for these answers."""
        return False

    @property
    def pending(self) -> int:
        """How many requests depend on a reply; none that a user waits for."""
        return 0

    def lease_owned(self, now: float) -> None:
        """This process owns one more lease."""
        if self._at == math.inf and self._suspect_at == math.inf:
            self._at = now
        elif self.monitored != self._session():
            self._at = min(self._at, now + MONITOR_PAUSE_S)
            self._session_pause = MONITOR_PAUSE_S

    def outgoing(self, now: float) -> list[OutgoingFrame]:
        """The frame to send now, if any."""
        if now < self._at or self._suspect_at < math.inf:
            return []
        if not self._owns():
            self._at = math.inf
            return []
        session = self._session()
        if not session:
            self._at = now + self._session_pause
            self._session_pause = min(2 * self._session_pause, MONITOR_REFRESH_S)
            return []
        self._session_pause = MONITOR_PAUSE_S
        near = [member for member in self._router.members if member in self._router.near]
        if not near:
            self._at = now + MONITOR_REFRESH_S
            self._elsewhere(session)
            return []
        if self._member not in near:
            self._member = self._router.leader if self._router.leader in near else near[0]
        self._at = math.inf
        self._suspect_at = now + CLIENT_SUSPICION_S
        self._number += 1
        frame = MonitorProcess(self._cluster, CLIENT_SUSPICION_S, session)
        return [OutgoingFrame(self._number, self._member, _encode(frame))]

    def on_reply(self, frame_number: int, reply: bytes, now: float) -> None:
        """A reply has arrived, maybe late."""
        if frame_number != self._number or self._suspect_at == math.inf:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError:
            answer = None
        if isinstance(answer, ProcessMonitored) and answer.monitored:
            self._suspect_at = math.inf
            self.monitored = self._session()
            self._pause = MONITOR_PAUSE_S
            self._at = now + MONITOR_REFRESH_S * self._rng.uniform(0.75, 1.0)
        else:
            self._not_monitored(now)

    def on_failure(self, frame_number: int, now: float, problem: str = "") -> None:
        """The transport gave the frame up."""
        if frame_number == self._number and self._suspect_at < math.inf:
            self._not_monitored(now)

    def _not_monitored(self, now: float) -> None:
        """Ask again after a pause, another member if there is one. The first requests to a member go by actor call,
        which does not show who asks; meanwhile a lane is opened."""
        self._suspect_at = math.inf
        self.monitored = 0
        if self._pause >= MONITOR_REFRESH_S / 4:  # it had time to open a lane
            near = [member for member in self._router.members if member in self._router.near]
            if near:
                self._member = near[(near.index(self._member) + 1) % len(near)] if self._member in near else near[0]
        self._at = now + self._pause * self._rng.uniform(0.75, 1.0)
        self._pause = min(2 * self._pause, MONITOR_REFRESH_S)

    def on_time(self, now: float) -> None:
        """Look at the clock: a frame may be lost."""
        if now >= self._suspect_at:
            self._not_monitored(now)

    def next_wakeup(self) -> float | None:
        """The time at which to call :meth:`on_time` and :meth:`outgoing`; ``None`` if there is nothing to wait for."""
        wakeup = min(self._at, self._suspect_at)
        return None if wakeup == math.inf else wakeup

    def resume(self, now: float) -> None:
        """Restore order after a thread was interrupted anywhere inside this core: ask again, which does no harm."""
        self._suspect_at = math.inf
        self._at = now

    def close(self, now: float) -> None:
        """Ask no more."""
        self._at = self._suspect_at = math.inf
