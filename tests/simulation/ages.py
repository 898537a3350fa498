"""Whether the past is forgotten in time: what is promised to end or to go does, however long leaders live.

The keeper of ages knows when everything truly happened, and which stretches were without a leader. It holds the newest
leader's state against that, again and again: history and request ids that should be gone, leases and sessions of
processes that fell silent. That nothing goes too early is judged here for history, and elsewhere for the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from raykeeper.limits import CLOCK_RESOLUTION_DIVISOR, CLOCK_STEP_FRACTION, CLOCK_STEP_S, COMPACTION_CHECK_S
from simulation.checker import Violation
from simulation.member import DRIFT

if TYPE_CHECKING:
    from simulation.world import World

SLACK = 1.5
"""Seconds for what was on its way, and for commands to be applied."""


class Ages:
    """Of one world; judges nothing unless its profile says so (``ages``)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.silent: dict[int, float] = {}
        """Sessions whose process is gone, and since when."""
        self._term = 0
        self._deposed_at: float | None = None
        self._gaps: list[tuple[float, float]] = []
        """(when it ended, seconds) of the stretches without a leader."""
        self._readings: list[tuple[float, float]] = []
        """(when, the clock of the leader's state then), of all looks."""
        self.looks = 0

    # --- what happens ------------------------------------------------------------------------------------------------

    def deposed(self) -> None:
        """The leader is made to go."""
        if self._deposed_at is None:
            self._deposed_at = self.world.now

    def leads(self, term: int) -> None:
        """A member leads in a term, and knows all that the leaders before it have committed."""
        if term > self._term:
            self._term = term
            if self._deposed_at is not None:
                self._gaps.append((self.world.now, self.world.now - self._deposed_at))
                self._deposed_at = None

    # --- what must have come of it -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Hold the leader's state against what happened."""
        leader = self.world.leader()
        if not self.world.profile.ages or leader is None or leader.process is None or self._deposed_at is not None:
            return
        self.looks += 1
        state, now = leader.process.replica.state, self.world.now
        self._readings.append((now, state.clock.seconds))
        self._look_at_history()
        known = self.world.chronicle.requests
        ttl = self.world.timings.request_ttl
        most = self._kept(ttl, now)
        young = sum(at > now - most for at in known.values())
        if state.remembered_requests > young:
            raise Violation(
                f"at {now:.2f}: {state.remembered_requests} request ids are remembered for {ttl} s, "
                f"and only {young} are younger than {most:.1f} s"
            )
        for session, since in self.silent.items():
            known_session = state.sessions.get(session)
            if known_session is not None:
                self._ended("session", session, 2.0 * known_session.ttl, known_session.ttl, since)
        for lease in self.world.book.leases:
            if lease.forgotten_at is not None and lease.id in state.leases:
                since = max(self.world.chronicle.granted[lease.id], lease.forgotten_at)
                self._ended("lease", lease.id, 1.5 * lease.ttl, lease.ttl, since)

    def _ended(self, what: str, id: int, most: float, ttl: float, since: float) -> None:
        now, restarts = self.world.now, self.world.profile.ages
        bound = (
            restarts * (most * (1 + 2 * DRIFT) + ttl / CLOCK_RESOLUTION_DIVISOR)
            + 2 * self._lost(since)
            + SLACK * self.world.profile.scale
        )
        if now - since > bound:
            raise Violation(f"at {now:.2f}: {what} {id:x} of {ttl} s lives, silent for more than {bound:.2f} s")

    def _look_at_history(self) -> None:
        chronicle, compaction, now = self.world.chronicle, self.world.profile.compaction, self.world.now
        if compaction.mode != "age":
            return
        most = self._kept(compaction.keep, now)
        old = bisect_right(chronicle.made, now - most)
        if old and chronicle.compact_revision < chronicle.first_made + old - 1:
            raise Violation(
                f"at {now:.2f}: history is compacted to {chronicle.compact_revision}, though revision "
                f"{chronicle.first_made + old - 1} is older than {most:.1f} s"
            )
        for at, revision in chronicle.forgotten:
            made = chronicle.made[revision - chronicle.first_made]
            if at - made < compaction.keep * (1 - 2 * DRIFT):
                raise Violation(
                    f"revision {revision}, {at - made:.2f} s old, was compacted; {compaction.keep} s are kept"
                )
        chronicle.forgotten.clear()

    def _kept(self, seconds: float, now: float) -> float:
        """The longest that something is kept which is to be kept so long."""
        step = max(1.0, min(CLOCK_STEP_S, seconds * CLOCK_STEP_FRACTION))
        longest = seconds * (1 + 2 * DRIFT) * (1 + 1 / CLOCK_RESOLUTION_DIVISOR) + step
        slack = SLACK * self.world.profile.scale
        return self.world.profile.ages * longest + COMPACTION_CHECK_S + self._lost(now - 2 * longest) + slack

    def _lost(self, since: float) -> float:
        """Seconds that the cluster's clock may have lost: what it did lose, as far as that is allowed.

        A reading that one leader proposes and the next commits takes all the time between them to be applied, and makes
        what was counted meanwhile void. So each change of leaders may cost the stretch without one, and no more.
        """
        gaps = [seconds for at, seconds in self._gaps if at >= since]
        before = max(0, bisect_right(self._readings, (since,)) - 1)
        then, was = self._readings[before] if self._readings else (0.0, 0.0)
        now, reads = self._readings[-1] if self._readings else (0.0, 0.0)
        return min(sum(gaps), max(max(gaps, default=0.0), (now - then) - (reads - was)))
