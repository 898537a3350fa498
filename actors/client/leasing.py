"""The leases of one process, without I/O: keeping them alive together, and knowing when one is lost.

Nothing here sends, sleeps, locks or reads a clock; the owner passes the time in, and the simulator runs the same code.
The rules (design, "Time"):

- a lease is good until its TTL after the *sending* of the last keep-alive that was confirmed (at first: of the grant),
  less a margin for drift, because whoever confirmed it counts from some later moment;
- once that has passed, or the leader says that the lease is gone, it is lost, and stays lost whatever is heard later;
- keep-alives of all leases travel in one frame, to the leader only, every third of the shortest TTL of those due; they
  are sent again after a small part of that TTL without an answer, and a late answer still counts from its own sending.

A lease whose object was dropped is kept alive no longer, and runs out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ...errors import InvalidArgument, KeeperError, LeaseLost, RequestTimeout, Unavailable
from ...limits import (
    CLIENT_MAX_FRAME_DEADLINE,
    LEASE_ASK_AGAIN,
    LEASE_LATE_FRAMES,
    LEASE_MARGIN,
    LEASE_MIN_MARGIN,
    MAX_LEASES_IN_FRAME,
    Limits,
)
from ..protocol import AskLeases, KeepLeases, Kept, Leases, LeasesKept, Refusal, Refused, Reply
from .frames import LeaseQuestion, Outgoing
from .outbox import Outbox

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class Signal(Protocol):
    """Whoever wants to know of the loss of a lease."""

    def wake(self) -> None:
        """It is lost. Called with the owner's lock held, so it must not call back."""
        ...


class Held:
    """One lease of this process. Only the core changes it; any thread may read it."""

    __slots__ = ("error", "good_until", "id", "keep", "keep_alives", "keep_at", "lost", "signal", "ttl")

    def __init__(self, id: int, ttl: float, asked_at: float, keep: bool, signal: Signal) -> None:
        self.id = id
        self.ttl = ttl
        self.keep = keep
        """Whether it is to be kept alive."""
        self.signal = signal
        self.good_until = asked_at + ttl - margin(ttl)
        """Clock time until which nobody can end it."""
        self.keep_at = asked_at + ttl / 3
        """When the next keep-alive is due."""
        self.keep_alives = 0
        """How many of its keep-alives the cluster has confirmed."""
        self.lost = False
        self.error: KeeperError | None = None
        """Why it is lost."""


def margin(ttl: float) -> float:
    """Seconds by which a client counts a lease of that TTL short."""
    return max(LEASE_MIN_MARGIN, LEASE_MARGIN * ttl)


class _Frame:
    """Keep-alives under way. ``late``: no longer waited for."""

    __slots__ = ("held", "late", "member", "sent_at", "suspect_at")

    def __init__(self, held: tuple[Held, ...], member: int, sent_at: float, suspect_at: float) -> None:
        self.held = held
        self.member = member
        self.sent_at = sent_at
        self.suspect_at = suspect_at
        self.late = False


class _Question:
    """Somebody asks how leases stand."""

    __slots__ = ("asked", "call", "deadline", "done", "member", "number", "sent_at", "suspect_at")

    def __init__(
        self, number: int, asked: LeaseQuestion, deadline: float, done: Callable[[Leases | KeeperError], None]
    ) -> None:
        self.number = number
        self.asked = asked
        self.deadline = deadline
        self.done = done
        self.call = 0
        """Of the frame under way, 0 for none."""
        self.member = 0
        self.sent_at = 0.0
        self.suspect_at = math.inf


class LeaseCore:
    """All leases of one process at one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        members: ids of those that can be asked.
        rng: for the jitter of pauses.
        leader: who leads, if known.
    """

    def __init__(
        self, cluster: int, members: Sequence[int], limits: Limits, rng: random.Random, *, leader: int = 0
    ) -> None:
        self._cluster = cluster
        self._members = tuple(sorted(members))
        self._leader = leader
        self._keeping = Outbox("keep-alive", limits, rng, to_leader=True)
        self._asking = Outbox("question about leases", limits, rng, to_leader=True)
        self._held: dict[int, Held] = {}
        self._frames: dict[int, _Frame] = {}
        self._flying = 0
        """The call of the frame that is waited for, 0 for none."""
        self._questions: dict[int, _Question] = {}
        self._number = 0
        self._keep_at = math.inf
        """No lease that is not in a frame under way is due before this."""
        self._lost_at = math.inf
        """No lease is lost before this."""
        self._closed = False
        self.wants_members = False
        """The list of members may be out of date: somebody should call :meth:`set_members`."""

    # -- what the holders of leases do --------------------------------------------------------------------------------

    def hold(self, id: int, ttl: float, asked_at: float, *, keep: bool, signal: Signal, now: float) -> Held:
        """Look after a lease that was granted.

        Args:
            asked_at: when the grant was asked for: the lease's time counts from there.
            keep: keep it alive; otherwise only its time is counted.
            signal: is woken when it is lost.

        Raises:
            InvalidArgument: the hub is closed.
        """
        if self._closed:
            raise InvalidArgument("the hub is closed")
        held = Held(id, ttl, asked_at, keep, signal)
        self._held[id] = held
        self._lost_at = min(self._lost_at, held.good_until)
        if keep:
            self._keep_at = min(self._keep_at, held.keep_at)
        if held.good_until <= now:
            self._lose_what_is_over(now)
        return held

    def drop(self, held: Held) -> None:
        """Nobody cares for the lease any more: it is kept alive no longer."""
        held.keep = False

    def end(self, held: Held, error: KeeperError) -> None:
        """The lease is over: it was revoked, or somebody has seen that it is gone."""
        if not held.lost:
            self._lose(held, error)

    def ask(
        self, asked: LeaseQuestion, *, now: float, timeout: float, done: Callable[[Leases | KeeperError], None]
    ) -> int:
        """Ask the leader how leases stand; ``done`` gets its answer exactly once, maybe before this returns.

        Returns:
            The number of the question, a negative one, for :meth:`give_up`.
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
        """Whoever asked waits no longer."""
        question = self._questions.get(number)
        if question is not None:
            self._answer(question, self._timed_out())

    def give_up_who(self, done: Callable[[Leases | KeeperError], None]) -> None:
        """The same for a caller who was interrupted before he knew the number."""
        for question in list(self._questions.values()):
            if question.done == done:
                self.give_up(question.number)

    @property
    def failing(self) -> bool:
        """Whether nobody has answered since something failed."""
        return self._keeping.failures + self._asking.failures > 0

    @property
    def pending(self) -> int:
        """How many leases and questions wait for a member's word."""
        return len(self._held) + len(self._questions)

    def __len__(self) -> int:
        return len(self._held)

    # -- what the owner does ------------------------------------------------------------------------------------------

    def set_members(self, members: Sequence[int]) -> None:
        """These members can be asked from now on."""
        self.wants_members = not members
        self._members = tuple(sorted(members))

    def learn_leader(self, leader: int) -> None:
        """Somebody else has found out who leads."""
        if not self._leader and leader in self._members:
            self._leader = leader

    def close(self, now: float) -> None:
        """Keep nothing alive any more, and answer nobody: the leases are lost to this process."""
        self._closed = True
        for held in list(self._held.values()):
            self._lose(held, LeaseLost("the hub was closed"))
        for question in list(self._questions.values()):
            self._answer(question, Unavailable("the hub was closed"))
        self._frames.clear()
        self._flying = 0

    def outgoing(self, now: float) -> list[Outgoing]:
        """What is to be sent now. Empty again until something else happens."""
        out: list[Outgoing] = []
        if not self._members:
            return out
        if not self._flying and now >= self._keep_at and now >= self._keeping.not_before:
            self._send_keep_alives(now, out)
        if self._questions and now >= self._asking.not_before:
            for question in self._questions.values():
                if not question.call:
                    self._send_question(question, now, out)
        return out

    def on_reply(self, call: int, reply: bytes, now: float) -> None:
        """A reply came, maybe late, or for the second time."""
        frame = self._frames.get(call)
        question = None if frame is not None else self._asked_by(call)
        if frame is None and question is None:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self.on_failure(call, now, str(error))
            return
        if isinstance(answer, Refused):
            if frame is not None:
                self._refused_keep_alives(call, frame, answer, now)
            elif question is not None:
                self._refused_question(question, answer, now)
        elif frame is not None and isinstance(answer, LeasesKept) and len(answer.kept) == len(frame.held):
            self._kept(call, frame, answer.kept, now)
        elif question is not None and isinstance(answer, Leases):
            self._leader = question.member
            self._asking.answered(question.member, now - question.sent_at)
            self._answer(question, answer)
        else:
            self.on_failure(call, now, "it answers something else")

    def on_failure(self, call: int, now: float, problem: str = "") -> None:
        """The transport gave a frame up. It may have arrived all the same; sending it again is safe."""
        frame = self._frames.get(call)
        if frame is not None:
            if self._put_back(call, frame, now):
                self._failed(self._keeping, frame.member, problem, now)
            return
        question = self._asked_by(call)
        if question is not None:
            question.call = 0
            self._failed(self._asking, question.member, problem, now)

    def resume(self, now: float) -> None:
        """Whoever was at work here was interrupted anywhere in the middle: what is under way may not have been sent."""
        self._frames.clear()
        self._flying = 0
        for held in self._held.values():
            held.keep_at = min(held.keep_at, now)
        for question in self._questions.values():
            question.call = 0
        self._keep_at = self._lost_at = now

    def on_time(self, now: float) -> None:
        """Look at the clock: leases that are lost, members that do not answer, questions whose time is over."""
        if now >= self._lost_at:
            self._lose_what_is_over(now)
        frame = self._frames.get(self._flying)
        if frame is not None and now >= frame.suspect_at:
            self._keeping.silent(frame.member, now)
            self._forget_leader(self._keeping, frame.member)
            self._give_up_waiting(frame, now)
        for question in list(self._questions.values()):
            if now >= question.deadline:
                self._answer(question, self._timed_out())
            elif question.call and now >= question.suspect_at:
                question.call = 0
                self._asking.silent(question.member, now)
                self._forget_leader(self._asking, question.member)

    def next_wakeup(self) -> float | None:
        """When :meth:`on_time` and :meth:`outgoing` are next to be called; ``None`` if there is nothing to wait for."""
        wakeup = self._lost_at
        if self._flying:
            wakeup = min(wakeup, self._frames[self._flying].suspect_at)
        elif self._members:
            wakeup = min(wakeup, max(self._keep_at, self._keeping.not_before))
        for question in self._questions.values():
            wakeup = min(wakeup, question.deadline)
            if question.call:
                wakeup = min(wakeup, question.suspect_at)
            elif self._members:
                wakeup = min(wakeup, self._asking.not_before)
        return None if wakeup == math.inf else wakeup

    # -- keep-alives --------------------------------------------------------------------------------------------------

    def _send_keep_alives(self, now: float, out: list[Outgoing]) -> None:
        """One frame for all that are due, and for those that will be soon: so they stay together."""
        kept = [held for held in self._held.values() if held.keep]
        if any(held.keep_at <= now for held in kept):
            due = tuple([held for held in kept if held.keep_at <= now + held.ttl / 6][:MAX_LEASES_IN_FRAME])
            shortest = min(held.ttl for held in due)
            member = self._keeping.target(self._members, self._leader, now)
            self._number += 1
            patience = min(self._keeping.patience(), shortest / 6)
            self._frames[self._number] = _Frame(due, member, now, now + patience)
            self._flying = self._number
            for held in due:
                held.keep_at = math.inf
            deadline = min(shortest / 3, CLIENT_MAX_FRAME_DEADLINE)
            frame = KeepLeases(self._cluster, deadline, tuple([held.id for held in due]))
            out.append(Outgoing(self._number, member, _encode(frame)))
        self._look_ahead()

    def _kept(self, call: int, frame: _Frame, kept: Sequence[Kept], now: float) -> None:
        del self._frames[call]
        if call == self._flying:
            self._flying = 0
        self._leader = frame.member
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
                held.keep_at = min(held.keep_at, now + LEASE_ASK_AGAIN)
        self._lose_what_is_over(now)

    def _refused_keep_alives(self, call: int, frame: _Frame, refused: Refused, now: float) -> None:
        if self._put_back(call, frame, now):
            self._refused(self._keeping, frame.member, refused, now)

    def _put_back(self, call: int, frame: _Frame, now: float) -> bool:
        """The frame is over without an answer: its leases are due again. Whether it was still waited for."""
        del self._frames[call]
        if frame.late:
            return False
        self._give_up_waiting(frame, now)
        return True

    def _give_up_waiting(self, frame: _Frame, now: float) -> None:
        frame.late = True
        self._flying = 0
        for held in frame.held:
            held.keep_at = min(held.keep_at, now)
        self._keep_at = min(self._keep_at, now)
        late = [call for call, other in self._frames.items() if other.late]
        for call in late[:-LEASE_LATE_FRAMES]:
            del self._frames[call]

    # -- questions ----------------------------------------------------------------------------------------------------

    def _asked_by(self, call: int) -> _Question | None:
        return next((question for question in self._questions.values() if question.call == call), None)

    def _send_question(self, question: _Question, now: float, out: list[Outgoing]) -> None:
        self._number += 1
        question.call = self._number
        question.member = self._asking.target(self._members, self._leader, now)
        question.sent_at = now
        question.suspect_at = now + self._asking.patience()
        deadline = min(question.deadline - now, CLIENT_MAX_FRAME_DEADLINE)
        frame = AskLeases(self._cluster, deadline, question.asked.leases, question.asked.keys)
        out.append(Outgoing(question.call, question.member, _encode(frame)))

    def _refused_question(self, question: _Question, refused: Refused, now: float) -> None:
        if refused.refusal is Refusal.INVALID:
            self._answer(question, InvalidArgument(f"refused: {refused.message}"))
            return
        question.call = 0
        self._refused(self._asking, question.member, refused, now)

    def _answer(self, question: _Question, outcome: Leases | KeeperError) -> None:
        del self._questions[question.number]
        question.done(outcome)

    def _timed_out(self) -> KeeperError:
        if self._asking.failures or not self._members:
            problem = self._asking.problem if self._members else "no member can be found"
            return Unavailable(f"no quorum answered the {self._asking.name} in time ({problem})")
        return RequestTimeout(f"no answer to the {self._asking.name} in time")

    # -- failures -----------------------------------------------------------------------------------------------------

    def _refused(self, outbox: Outbox, member: int, refused: Refused, now: float) -> None:
        refusal = refused.refusal
        who = f"member {member}: {refused.message or refusal.name.lower().replace('_', ' ')}"
        leader = refused.leader
        if leader and leader not in self._members:
            self.wants_members = True
            leader = 0
        if leader == member:
            leader = 0
        if leader or self._leader == member:
            self._leader = leader
        if leader:  # nobody else can answer, so whoever hears its heartbeats is believed
            outbox.forgive(leader)
        if refusal in (Refusal.NOT_SERVING, Refusal.WRONG_CLUSTER):
            outbox.failed(member, now, who)
        elif refusal in (Refusal.NOT_LEADER, Refusal.LOST) and leader:
            outbox.redirected(now, who)
        else:
            outbox.pause(now, who)
        self._want_members(outbox)

    def _failed(self, outbox: Outbox, member: int, problem: str, now: float) -> None:
        outbox.failed(member, now, f"member {member} cannot be reached{': ' if problem else ''}{problem}")
        self._forget_leader(outbox, member)

    def _forget_leader(self, outbox: Outbox, member: int) -> None:
        if self._leader == member:
            self._leader = 0
        self._want_members(outbox)

    def _want_members(self, outbox: Outbox) -> None:
        if outbox.failures > len(self._members):
            self.wants_members = True

    # -- losses -------------------------------------------------------------------------------------------------------

    def _lose_what_is_over(self, now: float) -> None:
        for held in [held for held in self._held.values() if held.good_until <= now]:
            self._lose(held, LeaseLost(f"lease {held.id:x} could not be kept alive: {self._why()}"))
        self._look_ahead()

    def _why(self) -> str:
        return self._keeping.problem if self._keeping.failures else "its time is over"

    def _lose(self, held: Held, error: KeeperError) -> None:
        if self._held.get(held.id) is held:
            del self._held[held.id]
        held.keep = False
        held.lost = True
        held.error = error
        held.signal.wake()

    def _look_ahead(self) -> None:
        """Find out again what comes next."""
        held = self._held.values()
        self._lost_at = min([each.good_until for each in held], default=math.inf)
        self._keep_at = min([each.keep_at for each in held if each.keep], default=math.inf)
