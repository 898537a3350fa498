"""The leader's work on leases: it counts their time, renews them, checkpoints them and lets them expire.

A keep-alive is answered only after a quorum has confirmed the leader, later than its arrival. When half of a lease's
TTL has passed since the last keep-alive, the reading of the cluster's clock at which it expires is logged (etcd: lease
checkpoint), and each new leader logs when its term began (``store/state/cluster_clock.py``). So a dead client's lease
does not get its whole TTL again from every new leader. If a lease's expiry is known in one of these ways, or is being
logged, its next renewal goes through the log too, so that no new leader falls back to the earlier expiry. Leases expire
through the log, by a command that names the last sign of life that the leader knew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from ...limits import LEASE_CHECKPOINT_FRACTION, MAX_LEASES_AT_ONCE
from ...schema.commands import CheckpointLeases, Command, ExpireLeases, Expiry, LeaseDeadline, RenewLeases
from ...schema.frames import Kept
from ...store.state.lease_table import LeaseRecord
from ...store.state.machine import State
from .deadlines import ClusterTime, DeadlineQueue
from .turn import Turn


class Lessor:
    """One leader's leases. Does nothing on a member that does not lead.

    Args:
        turn: the member's.
        propose: puts a command of the member's own into the log; returns its index, 0 if it was refused.
        time: the member's reading of the cluster's clock.
    """

    def __init__(self, turn: Turn, propose: Callable[[Command], int], time: ClusterTime) -> None:
        self._turn = turn
        self._propose = propose
        self._time = time
        self._ends = DeadlineQueue()
        self._checkpoints = DeadlineQueue()
        self._counted: dict[int, LeaseRecord] = {}
        """The leases whose time is being counted. An id may be granted again after its lease has ended, so the record
        matters."""
        self._checkpointing: dict[int, int] = {}
        """Leases with a checkpoint in the log that is not applied yet: its index."""
        self._resetting: dict[int, tuple[int, float]] = {}
        """Leases with a renewal in the log that is not applied yet: its index, and the arrival of the keep-alive."""
        self._waiting: list[tuple[int, tuple[int, ...], Callable[[tuple[Kept, ...]], None]]] = []
        """Keep-alives that wait for a renewal in the log, with its index."""
        self._expiry_index = 0
        self._term = 0
        self.renewed = 0
        """Keep-alives of leases so far; for metrics."""

    # -- leading and not leading --------------------------------------------------------------------------------------

    def lead(self, term: int, now: float) -> None:
        """This member has become leader: every lease has the time that the log leaves it."""
        self.stop()
        self._term = term
        self._counted = dict(self._turn.state.leases)
        left = self._time.time_left
        self._ends.start(
            ((lease.id, left(lease.ttl, lease.heard, lease.until, now)) for lease in self._counted.values()), now
        )

    def stop(self) -> None:
        """This member does not lead: keep-alives that wait must go to another."""
        self._term = 0
        self._ends.stop()
        self._checkpoints.stop()
        self._counted.clear()
        self._checkpointing.clear()
        self._resetting.clear()
        self._expiry_index = 0
        waiting, self._waiting = self._waiting, []
        for _, leases, done in waiting:
            done((Kept.ASK_AGAIN,) * len(leases))

    def granted(self, lease: int, now: float) -> None:
        """A lease was granted (or the grant was repeated)."""
        known = self._turn.state.leases.get(lease)
        if self._term and known is not None and self._counted.get(lease) is not known:
            self._counted[lease] = known
            self._forget(lease)
            self._count_from(lease, known.ttl, now)

    def _forget(self, lease: int) -> None:
        self._ends.forget(lease)
        self._checkpoints.forget(lease)

    def _count_from(self, lease: int, ttl: float, since: float) -> bool:
        if not self._ends.renew(lease, since + ttl):
            return False
        self._checkpoints.move(lease, since + ttl * (1 - LEASE_CHECKPOINT_FRACTION))
        return True

    # -- keep-alives --------------------------------------------------------------------------------------------------

    def keep_alive(
        self,
        leases: tuple[int, ...],
        arrival: float,
        done: Callable[[tuple[Kept, ...]], None],
        session: int = 0,
    ) -> None:
        """Renew leases from the arrival of a keep-alive on. Call this once a quorum has confirmed, after that arrival,
        that this member leads.

        Leases whose expiry a new leader could know must be renewed in the log first; the answer then waits until that
        is applied. So must those that another session owns: from there on the death of that session's process does not
        end them, and a client that was told that such a lease lives can count on that.

        Args:
            session: whose client keeps them alive, 0 for none.
        """
        if not self._term:
            done((Kept.ASK_AGAIN,) * len(leases))
            return
        state = self._turn.state
        reset = [
            lease for lease in leases if lease in state.leases and self._must_be_logged(state.leases[lease], session)
        ]
        if not reset:
            done(tuple([self._renew(lease, arrival, state, session) for lease in leases]))
            return
        index = 0
        for start in range(0, len(reset), MAX_LEASES_AT_ONCE):
            some = reset[start : start + MAX_LEASES_AT_ONCE]
            index = self._propose(RenewLeases(self._term, tuple(some), session))
            if not index:
                done((Kept.ASK_AGAIN,) * len(leases))
                return
            for lease in some:
                self._resetting[lease] = (index, arrival)

        def answer(refused: tuple[Kept, ...]) -> None:
            """Deposed meanwhile, it promises nothing, whatever it still knows."""
            done(refused or tuple([self._renew(lease, arrival, state, session) for lease in leases]))

        self._waiting.append((index, leases, answer))

    def _runs_out(self, lease: LeaseRecord) -> bool:
        """Whether a new leader may know when it expires: then a renewal must go through the log."""
        return lease.until is not None or lease.id in self._checkpointing or lease.heard < self._time.beginning

    def _must_be_logged(self, lease: LeaseRecord, session: int) -> bool:
        """Whether a keep-alive by that session must go through the log."""
        return self._runs_out(lease) or lease.owner not in (0, session)

    def _renew(self, lease: int, arrival: float, state: State, session: int) -> Kept:
        known = state.leases.get(lease)
        if known is None:
            return Kept.GONE
        if self._must_be_logged(known, session):
            return Kept.ASK_AGAIN  # a checkpoint has overtaken the renewal
        self.renewed += 1
        return Kept.ALIVE if self._count_from(lease, known.ttl, arrival) else Kept.ASK_AGAIN

    def status(self, leases: Iterable[int], now: float) -> list[tuple[int, float, float]]:
        """(id, TTL, remaining seconds) of the leases that exist."""
        known = self._turn.state.leases
        return [
            (lease, known[lease].ttl, max(0.0, self._ends.deadline(lease, now + known[lease].ttl) - now))
            for lease in leases
            if lease in known
        ]

    def first_to_end(self, most: int, now: float) -> Callable[[], list[tuple[int, float, float]]]:
        """The same of the leases that end first, at most so many, as a function for another thread: the loop pays for
        copies of the table and the deadlines, and the search among them is not its own."""
        leases, deadlines = list(self._turn.state.leases.values()), self._ends.deadlines()

        def search() -> list[tuple[int, float, float]]:
            ends = ((deadlines.get(lease.id, now + lease.ttl), lease.id, lease.ttl) for lease in leases)
            return [(id, ttl, max(0.0, end - now)) for end, id, ttl in heapq.nsmallest(most, ends)]

        return search

    # -- the log's side -----------------------------------------------------------------------------------------------

    def applied(self) -> None:
        """Entries were applied: forget what they settled, and answer the keep-alives that waited for them."""
        if not self._term:
            return
        leases = self._turn.state.leases
        if len(self._counted) > 2 * len(leases) + DeadlineQueue.SPARE:  # revoked by their clients
            for lease in self._counted.keys() - leases.keys():
                self._ended(lease)
        index = self._turn.state.applied_index
        if self._checkpointing:
            self._checkpointing = {lease: at for lease, at in self._checkpointing.items() if at > index}
        if self._resetting:
            self._resetting = {lease: reset for lease, reset in self._resetting.items() if reset[0] > index}
        if self._waiting and self._waiting[0][0] <= index:
            ready = [entry for entry in self._waiting if entry[0] <= index]
            self._waiting = [entry for entry in self._waiting if entry[0] > index]
            for _, _, done in ready:
                done(())

    def work(self, now: float, pause: float) -> None:
        """Propose the expiry of leases that are due, and checkpoints of those that are silent. For a leader that has
        committed in its term.

        Args:
            pause: seconds until a command that was refused, or had no effect, is tried again.
        """
        leases = self._turn.state.leases
        if self._expiry_index and self._turn.state.applied_index >= self._expiry_index:
            self._expiry_index = 0
            for lease in self._ends.expiring:
                if lease in leases:
                    self._ends.retry(lease, now + pause)
                else:
                    self._ended(lease)
        if not self._expiry_index and self._ends.next_deadline() <= now:
            self._expire(now, pause)
        if self._checkpoints.next_deadline() <= now:
            self._checkpoint(now, pause)

    def _expire(self, now: float, pause: float) -> None:
        """Propose the expiry of what is due, one command at a time. A lease with a renewal in the log is spared: its
        keep-alive arrived in time."""
        leases = self._turn.state.leases
        ended = []
        for lease in self._ends.due(now, MAX_LEASES_AT_ONCE):
            if lease not in leases:  # revoked by its client
                self._ended(lease)
            elif lease in self._resetting:
                self._ends.retry(lease, now + pause)
            else:
                ended.append(Expiry(lease, leases[lease].heard))
        if ended:
            self._expiry_index = self._propose(ExpireLeases(self._term, tuple(ended)))
            if not self._expiry_index:
                for expiry in ended:
                    self._ends.retry(expiry.id, now + pause)

    def _ended(self, lease: int) -> None:
        self._counted.pop(lease, None)
        self._checkpointing.pop(lease, None)
        self._resetting.pop(lease, None)
        self._forget(lease)

    def _checkpoint(self, now: float, pause: float) -> None:
        """Log when silent leases expire, so that a new leader counts on from there."""
        leases = self._turn.state.leases
        left: list[LeaseDeadline] = []
        if self._checkpoints.next_deadline() > now:
            return
        reading = self._time.at_most(now)
        if reading is None:  # comes soon
            return
        for lease in self._checkpoints.due(now, MAX_LEASES_AT_ONCE):
            self._checkpoints.forget(lease)
            known = leases.get(lease)
            remaining = self._ends.deadline(lease, now) - now
            # A checkpoint would undo a renewal that is in the log; that schedules the next checkpoint.
            if known is not None and remaining > 0 and lease not in self._resetting and not self._runs_out(known):
                left.append(LeaseDeadline(lease, reading + remaining))
        if not left:
            return
        index = self._propose(CheckpointLeases(self._term, tuple(left)))
        for each in left:
            if index:
                self._checkpointing[each.id] = index
            else:
                self._checkpoints.move(each.id, now + pause)
