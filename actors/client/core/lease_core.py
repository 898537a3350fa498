"""The leases of one process, without I/O: keeping them alive together, and knowing when one is lost.

Nothing here sends, sleeps, locks or reads a clock; the owner passes the time in, and the simulator runs the same code.
The rules:

- A lease is guaranteed until its TTL after the *sending* of the last keep-alive that was confirmed (at first, of the
  grant), less a margin for clock drift. The leader counts from a later moment, so it cannot end the lease earlier.
- Once that time is over, or the leader says that the lease is gone, it is lost, and stays lost whatever arrives later.
- The keep-alives of all leases travel in one frame, to the leader only, every third of the shortest TTL among those
  due. A frame without a reply is sent again after a small part of that TTL; a late reply counts from its own sending.
- A lease whose object was dropped is kept alive no longer, and expires.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ....errors import InvalidArgument, KeeperError, LeaseLost, RequestTimeout, Unavailable
from ....limits import (
    CLIENT_MAX_FRAME_DEADLINE_S,
    LEASE_LATE_FRAMES,
    LEASE_MARGIN_FRACTION,
    LEASE_MIN_MARGIN_S,
    LEASE_RETRY_S,
    MAX_LEASES_IN_FRAME,
    Limits,
)
from ....schema.frames import AskLeases, KeepLeases, Kept, LeasesKept, LeaseStatuses, Refusal, Refused, Reply
from .failures import denial
from .in_flight import LeaseQuestion, OutgoingFrame
from .outbox import Outbox
from .router import Prefer, Router

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class LossSignal(Protocol):
    """Receives the loss of a lease."""

    def wake(self) -> None:
        """The lease is lost. Called with the owner's lock held, so it must not call back."""
        ...


class HeldLease:
    """One lease of this process. Only the core changes it; any thread may read it."""

    __slots__ = (
        "error",
        "good_until",
        "id",
        "keep",
        "keep_alives",
        "keep_at",
        "lost",
        "owned",
        "released",
        "signal",
        "ttl",
    )

    def __init__(
        self, id: int, ttl: float, asked_at: float, keep: bool, signal: LossSignal, owned: bool = False
    ) -> None:
        self.id = id
        self.owned = owned
        """Whether it was granted as owned by this process's session."""
        self.ttl = ttl
        self.keep = keep
        """Whether to keep it alive."""
        self.signal = signal
        self.good_until = asked_at + ttl - margin(ttl)
        """Clock time until which the lease is guaranteed."""
        self.keep_at = asked_at + ttl / 3
        """When the next keep-alive is due."""
        self.keep_alives = 0
        """How many of its keep-alives the cluster has confirmed."""
        self.released = False
        """Whether this process has let go of it by itself: revoked or dropped it, or closed the hub."""
        self.lost = False
        self.error: KeeperError | None = None
        """The reason for its loss."""

    def let_go(self, now: float) -> None:
        """Note that this process lets go of it by itself, unless it is lost already, if only by the clock."""
        if not self.lost and now < self.good_until:
            self.released = True


def margin(ttl: float) -> float:
    """Seconds by which a client counts a lease of that TTL short, because clocks drift."""
    return max(LEASE_MIN_MARGIN_S, LEASE_MARGIN_FRACTION * ttl)


class _Frame:
    """Keep-alives in flight. ``late``: no longer waited for."""

    __slots__ = ("held", "late", "member", "sent_at", "suspect_at")

    def __init__(self, held: tuple[HeldLease, ...], member: int, sent_at: float, suspect_at: float) -> None:
        self.held = held
        self.member = member
        self.sent_at = sent_at
        self.suspect_at = suspect_at
        self.late = False


class _Question:
    """An open question for the status of leases."""

    __slots__ = ("asked", "deadline", "done", "frame_number", "member", "number", "sent_at", "suspect_at")

    def __init__(
        self,
        number: int,
        asked: LeaseQuestion,
        deadline: float,
        done: Callable[[LeaseStatuses | LeasesKept | KeeperError], None],
    ) -> None:
        self.number = number
        self.asked = asked
        self.deadline = deadline
        self.done = done
        self.frame_number = 0
        """Number of the frame in flight, 0 for none."""
        self.member = 0
        self.sent_at = 0.0
        self.suspect_at = math.inf


class LeaseCore:
    """All leases of one process at one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        router: the hub's, shared with its other cores.
        rng: for the jitter of pauses.
        session: the session of this process, 0 while there is none; the owner of the leases that it grants.
    """

    def __init__(
        self,
        cluster: int,
        router: Router,
        limits: Limits,
        rng: random.Random,
        session: Callable[[], int] = lambda: 0,
    ) -> None:
        self._cluster = cluster
        self._session = session
        self._router = router
        self._keeping = Outbox("keep-alive", limits, rng, Prefer.LEADER)
        self._asking = Outbox("question about leases", limits, rng, Prefer.LEADER)
        self._held: dict[int, HeldLease] = {}
        self._frames: dict[int, _Frame] = {}
        self._awaited = 0
        """Number of the frame that is waited for, 0 for none."""
        self._questions: dict[int, _Question] = {}
        self._number = 0
        self._keep_at = math.inf
        """When the next keep-alive is due, of the leases that are in no frame in flight; never too late."""
        self._lost_at = math.inf
        """When the next lease is lost if nothing is heard; never too late."""
        self._closed = False

    # -- for the holders of leases ------------------------------------------------------------------------------------

    def hold_lease(
        self,
        id: int,
        ttl: float,
        asked_at: float,
        *,
        keep: bool,
        signal: LossSignal,
        now: float,
        owned: bool = False,
    ) -> HeldLease:
        """Track a lease that was granted.

        Args:
            ttl: seconds.
            asked_at: when the grant was asked for: the lease's time counts from there.
            keep: whether to keep it alive; otherwise only its time is counted.
            signal: is woken when the lease is lost.
            owned: whether it was granted as owned by this process's session.

        Raises:
            InvalidArgument: the hub is closed.
        """
        if self._closed:
            raise InvalidArgument("the hub is closed")
        held = HeldLease(id, ttl, asked_at, keep, signal, owned)
        self._held[id] = held
        self._lost_at = min(self._lost_at, held.good_until)
        if keep:
            self._keep_at = min(self._keep_at, held.keep_at)
        if held.good_until <= now:
            self._lose_expired(now)
        return held

    def owns(self) -> bool:
        """Whether a lease of this process is owned by it."""
        return any(held.owned for held in self._held.values())

    def drop_lease(self, held: HeldLease, now: float) -> None:
        """Keep the lease alive no longer; its time is still counted."""
        held.let_go(now)
        held.keep = False

    def lease_ended(self, held: HeldLease, error: KeeperError) -> None:
        """The lease has ended: it was revoked, or was seen to be gone."""
        if not held.lost:
            self._lose(held, error)

    def ask_status(
        self,
        asked: LeaseQuestion,
        *,
        now: float,
        timeout: float,
        done: Callable[[LeaseStatuses | LeasesKept | KeeperError], None],
    ) -> int:
        """Ask the leader for the status of leases; ``done`` gets the outcome exactly once, maybe before this returns.

        Returns:
            The number of the question for :meth:`give_up`; negative, which the number of a ``DispatchCore`` call never
            is.
        """
        self._number += 1
        number = -self._number
        if self._closed:
            done(InvalidArgument("the hub is closed"))
        elif not timeout > 0:
            done(RequestTimeout(f"the timeout of {timeout:g} s left no time to send the request"))
        else:
            self._questions[number] = _Question(number, asked, now + timeout, done)
        return number

    def give_up(self, number: int) -> None:
        """The caller of a question no longer waits."""
        question = self._questions.get(number)
        if question is not None:
            self._answer(question, self._timed_out())

    def give_up_callback(self, done: Callable[[LeaseStatuses | LeasesKept | KeeperError], None]) -> None:
        """As :meth:`give_up`, for a caller that was interrupted before it learned the number."""
        for question in list(self._questions.values()):
            if question.done == done:
                self.give_up(question.number)

    @property
    def failing(self) -> bool:
        """Whether no member has answered since something failed."""
        return self._keeping.failures + self._asking.failures > 0

    @property
    def pending(self) -> int:
        """How many leases and questions depend on a reply from a member."""
        return len(self._held) + len(self._questions)

    def __len__(self) -> int:
        return len(self._held)

    # -- for the owner ------------------------------------------------------------------------------------------------

    def close(self, now: float) -> None:
        """End: all leases are lost to this process, and all questions fail."""
        self._closed = True
        for held in list(self._held.values()):
            held.let_go(now)
            self._lose(held, LeaseLost("the hub was closed"))
        for question in list(self._questions.values()):
            self._answer(question, Unavailable("the hub was closed"))
        self._frames.clear()
        self._awaited = 0

    def outgoing(self, now: float) -> list[OutgoingFrame]:
        """The frames to send now. Asked again, it returns none until something else happens."""
        out: list[OutgoingFrame] = []
        if not self._router.members:
            return out
        if not self._awaited and now >= self._keep_at and now >= self._keeping.not_before:
            self._send_keep_alives(now, out)
        if self._questions and now >= self._asking.not_before:
            for question in self._questions.values():
                if not question.frame_number:
                    self._send_question(question, now, out)
        return out

    def on_reply(self, frame_number: int, reply: bytes, now: float) -> None:
        """A reply has arrived, maybe late, or for the second time; each frame is answered once at most."""
        frame = self._frames.get(frame_number)
        question = None if frame is not None else self._asked_by(frame_number)
        if frame is None and question is None:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self.on_failure(frame_number, now, str(error))
            return
        if isinstance(answer, Refused):
            if frame is not None:
                self._refused_keep_alives(frame_number, frame, answer, now)
            elif question is not None:
                self._refused_question(question, answer, now)
        elif frame is not None and isinstance(answer, LeasesKept) and len(answer.kept) == len(frame.held):
            self._router.term = max(self._router.term, answer.term)
            self._kept(frame_number, frame, answer.kept, now)
        elif question is not None and isinstance(answer, LeasesKept if question.asked.keep else LeaseStatuses):
            self._router.term = max(self._router.term, answer.term)
            self._router.note_leader(question.member)
            self._asking.answered(question.member, now - question.sent_at)
            self._answer(question, answer)
        else:
            self.on_failure(frame_number, now, "it sent a reply of another kind")

    def on_failure(self, frame_number: int, now: float, problem: str = "") -> None:
        """The transport gave a frame up. The member may have it all the same; sending it again is safe."""
        frame = self._frames.get(frame_number)
        if frame is not None:
            if self._put_back(frame_number, frame, now):
                self._failed(self._keeping, frame.member, problem, now)
            return
        question = self._asked_by(frame_number)
        if question is not None:
            question.frame_number = 0
            self._failed(self._asking, question.member, problem, now)

    def resume(self, now: float) -> None:
        """Restore order after a thread was interrupted (Ctrl-C) anywhere inside this core.

        Frames that count as in flight may never have left, so all leases and questions are due again. Asking twice does
        no harm.
        """
        self._frames.clear()
        self._awaited = 0
        for held in self._held.values():
            held.keep_at = min(held.keep_at, now)
        for question in self._questions.values():
            question.frame_number = 0
        self._keep_at = self._lost_at = now

    def on_time(self, now: float) -> None:
        """Look at the clock: for leases that are lost, members that do not answer, questions whose time is over."""
        if now >= self._lost_at:
            self._lose_expired(now)
        frame = self._frames.get(self._awaited)
        if frame is not None and now >= frame.suspect_at:
            self._keeping.timed_out(frame.member, now)
            self._forget_leader(self._keeping, frame.member)
            self._give_up_waiting(frame, now)
        for question in list(self._questions.values()):
            if now >= question.deadline:
                self._answer(question, self._timed_out())
            elif question.frame_number and now >= question.suspect_at:
                question.frame_number = 0
                self._asking.timed_out(question.member, now)
                self._forget_leader(self._asking, question.member)

    def next_wakeup(self) -> float | None:
        """The time at which to call :meth:`on_time` and :meth:`outgoing`; ``None`` if there is nothing to wait for."""
        wakeup = self._lost_at
        if self._awaited:
            wakeup = min(wakeup, self._frames[self._awaited].suspect_at)
        elif self._router.members:
            wakeup = min(wakeup, max(self._keep_at, self._keeping.not_before))
        for question in self._questions.values():
            wakeup = min(wakeup, question.deadline)
            if question.frame_number:
                wakeup = min(wakeup, question.suspect_at)
            elif self._router.members:
                wakeup = min(wakeup, self._asking.not_before)
        return None if wakeup == math.inf else wakeup

    # -- keep-alives --------------------------------------------------------------------------------------------------

    def _send_keep_alives(self, now: float, out: list[OutgoingFrame]) -> None:
        """Send one frame for all leases that are due, and for those that will be soon, so that they stay together.

        A lease in the frame is due again only when the frame is answered or given up (``keep_at`` is infinite until
        then); so at most one frame is waited for, and ``_update_next_times`` sees the others.
        """
        kept = [held for held in self._held.values() if held.keep]
        if any(held.keep_at <= now for held in kept):
            due = tuple([held for held in kept if held.keep_at <= now + held.ttl / 6][:MAX_LEASES_IN_FRAME])
            shortest = min(held.ttl for held in due)
            member = self._keeping.target(self._router, now)
            self._number += 1
            patience = min(self._keeping.reply_timeout(), shortest / 6)
            self._frames[self._number] = _Frame(due, member, now, now + patience)
            self._awaited = self._number
            for held in due:
                held.keep_at = math.inf
            deadline = min(shortest / 3, CLIENT_MAX_FRAME_DEADLINE_S)
            frame = KeepLeases(self._cluster, deadline, tuple([held.id for held in due]), session=self._session())
            out.append(OutgoingFrame(self._number, member, _encode(frame)))
        self._update_next_times()

    def _kept(self, frame_number: int, frame: _Frame, kept: Sequence[Kept], now: float) -> None:
        """Take in the leader's word on each lease of a frame.

        The guarantee counts from the frame's *sending*, never from its reply, and only grows: a late reply must not
        shorten what a newer one has confirmed. A lease that is lost stays lost.
        """
        del self._frames[frame_number]
        if frame_number == self._awaited:
            self._awaited = 0
        self._router.note_leader(frame.member)
        self._keeping.answered(frame.member, now - frame.sent_at)
        for held, what in zip(frame.held, kept, strict=True):
            if held.lost:
                continue
            if what is Kept.ALIVE:
                held.keep_alives += 1
                held.good_until = max(held.good_until, frame.sent_at + held.ttl - margin(held.ttl))
                if not frame.late or held.keep_at > frame.sent_at + held.ttl / 3:
                    held.keep_at = frame.sent_at + held.ttl / 3
            elif what is Kept.GONE:
                self._lose(held, LeaseLost(f"lease {held.id:x} is gone"))
            else:
                held.keep_at = min(held.keep_at, now + LEASE_RETRY_S)
        self._lose_expired(now)

    def _refused_keep_alives(self, frame_number: int, frame: _Frame, refused: Refused, now: float) -> None:
        if self._put_back(frame_number, frame, now):
            self._refused(self._keeping, frame.member, refused, now)

    def _put_back(self, frame_number: int, frame: _Frame, now: float) -> bool:
        """A frame ended without an answer: its leases are due again. Whether it was still waited for."""
        del self._frames[frame_number]
        if frame.late:
            return False
        self._give_up_waiting(frame, now)
        return True

    def _give_up_waiting(self, frame: _Frame, now: float) -> None:
        """Make the frame's leases due again. It stays in the table, since a late reply counts; the oldest make room."""
        frame.late = True
        self._awaited = 0
        for held in frame.held:
            held.keep_at = min(held.keep_at, now)
        self._keep_at = min(self._keep_at, now)
        late = [number for number, other in self._frames.items() if other.late]
        for number in late[:-LEASE_LATE_FRAMES]:
            del self._frames[number]

    # -- questions ----------------------------------------------------------------------------------------------------

    def _asked_by(self, frame_number: int) -> _Question | None:
        return next((question for question in self._questions.values() if question.frame_number == frame_number), None)

    def _send_question(self, question: _Question, now: float, out: list[OutgoingFrame]) -> None:
        self._number += 1
        question.frame_number = self._number
        question.member = self._asking.target(self._router, now)
        question.sent_at = now
        question.suspect_at = now + self._asking.reply_timeout()
        deadline = min(question.deadline - now, CLIENT_MAX_FRAME_DEADLINE_S)
        asked = question.asked
        frame: AskLeases | KeepLeases
        if asked.keep:
            frame = KeepLeases(self._cluster, deadline, asked.leases, with_ttls=True)
        else:
            frame = AskLeases(self._cluster, deadline, asked.leases, asked.keys, asked.owners, asked.most)
        out.append(OutgoingFrame(question.frame_number, question.member, _encode(frame)))

    def _refused_question(self, question: _Question, refused: Refused, now: float) -> None:
        if (error := denial(refused)) is not None:
            self._answer(question, error)
            return
        if refused.refusal is Refusal.INVALID:
            self._answer(question, InvalidArgument(f"refused: {refused.message}"))
            return
        question.frame_number = 0
        self._refused(self._asking, question.member, refused, now)

    def _answer(self, question: _Question, outcome: LeaseStatuses | LeasesKept | KeeperError) -> None:
        del self._questions[question.number]
        question.done(outcome)

    def _timed_out(self) -> KeeperError:
        if self._asking.failures or not self._router.members:
            problem = self._asking.problem if self._router.members else "no member can be found"
            return Unavailable(
                f"no quorum of {self._router.cluster} answered the {self._asking.name} in time ({problem})"
            )
        return RequestTimeout(f"no answer of {self._router.cluster} to the {self._asking.name} in time")

    # -- failures -----------------------------------------------------------------------------------------------------

    def _refused(self, outbox: Outbox, member: int, refused: Refused, now: float) -> None:
        """Take in a refusal: learn the leader if it names one, and decide which member to ask next, and when."""
        refusal = refused.refusal
        who = f"m{member}: {refused.message or refusal.name.lower().replace('_', ' ')}"
        leader = self._router.take_hint(refused, member)
        if leader:  # only the leader can answer, so a member that hears its heartbeats is believed
            outbox.clear_quarantine(leader)
        if refusal in (Refusal.NOT_SERVING, Refusal.WRONG_CLUSTER):
            outbox.failed(member, now, who)
        elif refusal in (Refusal.NOT_LEADER, Refusal.LOST) and leader:
            outbox.redirected(now, who)
        else:
            outbox.back_off(now, who)
        self._router.note_failures(outbox.failures)

    def _failed(self, outbox: Outbox, member: int, problem: str, now: float) -> None:
        outbox.failed(member, now, f"m{member} cannot be reached{': ' if problem else ''}{problem}")
        self._forget_leader(outbox, member)

    def _forget_leader(self, outbox: Outbox, member: int) -> None:
        self._router.note_no_answer(member)
        self._router.note_failures(outbox.failures)

    # -- losses -------------------------------------------------------------------------------------------------------

    def _lose_expired(self, now: float) -> None:
        for held in [held for held in self._held.values() if held.good_until <= now]:
            self._lose(held, LeaseLost(f"lease {held.id:x} could not be kept alive: {self._why()}"))
        self._update_next_times()

    def _why(self) -> str:
        return self._keeping.problem if self._keeping.failures else "its time is over"

    def _lose(self, held: HeldLease, error: KeeperError) -> None:
        if self._held.get(held.id) is held:
            del self._held[held.id]
        held.keep = False
        held.lost = True
        held.error = error
        held.signal.wake()

    def _update_next_times(self) -> None:
        """Compute again when the next lease is lost and the next keep-alive due."""
        held = self._held.values()
        self._lost_at = min([each.good_until for each in held], default=math.inf)
        self._keep_at = min([each.keep_at for each in held if each.keep], default=math.inf)
