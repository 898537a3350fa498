"""A model of what members do with a hub's frames, in imagined time, over a network that breaks every promise.

The session rules are written down a second time here, on plain dicts, so that they check both the dispatch core and
what it assumes. Everything comes from one seed. Frames and replies are lost, delayed, doubled and reordered; leaders
change; sessions expire; members are mute for a while.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from raykeeper.actors.client.core.dispatch_core import DispatchCore
from raykeeper.actors.client.core.router import Router
from raykeeper.errors import KeeperError
from raykeeper.limits import Limits, Timings
from raykeeper.schema.answers import Answer, Done, Failed, PutAnswer, RangeAnswer, Reason
from raykeeper.schema.frames import (
    AskTerm,
    Close,
    CurrentTerm,
    KeepAlive,
    LoneRead,
    Open,
    Opened,
    Read,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    UnconfirmedRead,
    Writes,
    Written,
)
from raykeeper.schema.operations import KeyRange, Put, Range

decode = msgspec.msgpack.Decoder(Request).decode
encode = msgspec.msgpack.Encoder().encode


@dataclass
class ModelSession:
    low: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)


class ModelState:
    """The state machine's session rules, on dicts."""

    def __init__(self) -> None:
        self.sessions: dict[int, ModelSession] = {}
        self.nonces: dict[bytes, int] = {}
        self.revision = 1
        self.effects: Counter[bytes] = Counter()
        self.named: dict[bytes, Answer] = {}
        self._next = 100

    def open(self, nonce: bytes) -> int:
        session = self.nonces.get(nonce, 0)
        if session not in self.sessions:
            self._next += 1
            session = self.nonces[nonce] = self._next
            self.sessions[session] = ModelSession()
        return session

    def write(self, request: Writes) -> tuple[Answer, ...]:
        commands = request.commands
        session = self.sessions.get(commands.session)
        if session is None:
            return tuple(Failed(Reason.SESSION_EXPIRED) for _ in commands.writes)
        session.low = max(session.low, commands.low)
        session.answers = {s: a for s, a in session.answers.items() if s >= session.low}
        answers: list[Answer] = []
        for write in commands.writes:
            if write.sequence < session.low:
                answers.append(Failed(Reason.BELOW_MARK))
            elif write.sequence in session.answers:
                answers.append(session.answers[write.sequence])
            else:
                answer = self.named.get(write.request_id) if write.request_id is not None else None
                if answer is None:
                    assert isinstance(write.operation, Put)
                    self.effects[write.operation.key] += 1
                    self.revision += 1
                    answer = PutAnswer(self.revision)
                    if write.request_id is not None:
                        self.named[write.request_id] = answer
                session.answers[write.sequence] = answer
                answers.append(answer)
        return tuple(answers)


@dataclass
class Trouble:
    """Chances of each fault."""

    lose: float = 0.0
    double: float = 0.0
    lose_reply: float = 0.0
    delay: float = 0.005
    long_delay: float = 0.0
    fail: float = 0.0
    change_leader: float = 0.0
    no_leader: float = 0.0
    mute: float = 0.0
    expire: float = 0.0


class ModelWorld:
    """A dispatch core, three members that share one state, and the time between them."""

    def __init__(self, seed: int, trouble: Trouble, limits: Limits | None = None) -> None:
        self.rng = random.Random(seed)
        self.trouble = trouble
        self.state = ModelState()
        self.members = [1, 2, 3]
        self.leader = 1
        self.terms = 1
        self.mute: set[int] = set()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.core = DispatchCore(7, Router(self.members), limits or Limits(), Timings(session_ttl=6.0), self.rng)
        self.outcomes: dict[bytes, list[Answer | KeeperError]] = {}
        self.calls: dict[bytes, int] = {}
        self.frames: list[tuple[float, int, Request]] = []
        self.open_sequences: dict[tuple[int, int], bytes] = {}
        self.calm = False

    # -- the calls ----------------------------------------------------------------------------------------------------

    def put(self, key: bytes, timeout: float = 10.0, request_id: bytes | None = None) -> None:
        self.outcomes[key] = []
        self.calls[key] = self.core.submit(
            Put(key, b"v"), now=self.now, timeout=timeout, done=self.outcomes[key].append, request_id=request_id
        )
        self._pump()

    def read(self, name: bytes, timeout: float = 10.0, serializable: bool = False) -> None:
        self.outcomes[name] = []
        self.calls[name] = self.core.submit(
            Read(Range(KeyRange(b"k"))),
            now=self.now,
            timeout=timeout,
            done=self.outcomes[name].append,
            serializable=serializable,
        )
        self._pump()

    def give_up(self, name: bytes) -> None:
        self.core.give_up(self.calls[name], self.now)
        self._pump()

    # -- time ---------------------------------------------------------------------------------------------------------

    def at(self, time: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), what))

    def run(self, until: float) -> None:
        """Let time pass, to the next event or wake-up, until then."""
        while True:
            wakeup = self.core.next_wakeup()
            event = self._events[0][0] if self._events else float("inf")
            due = min(event, wakeup if wakeup is not None else float("inf"))
            if due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            if event <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                before = self.now
                self.core.on_time(self.now)
                self._pump()
                after = self.core.next_wakeup()
                assert after is None or after > before, "a wake-up that leads to nothing would spin"
                continue
            self._pump()

    def _pump(self) -> None:
        for call, member, frame in self.core.outgoing(self.now):
            self._check_frame(decode(frame))
            self._send(call, member, frame)
        assert not self.core.outgoing(self.now), "outgoing hands out everything at once"

    def _check_frame(self, request: Request) -> None:
        """A sequence means one write forever, and the mark never passes a call that is open."""
        self.frames.append((self.now, 0, request))
        if not isinstance(request, Writes):
            return
        commands = request.commands
        for write in commands.writes:
            assert isinstance(write.operation, Put)
            known = self.open_sequences.setdefault((commands.session, write.sequence), write.operation.key)
            assert known == write.operation.key
            assert not self.outcomes[known], "a call that is over is not sent"
            assert write.sequence >= commands.low
        for (session, sequence), key in self.open_sequences.items():
            if session == commands.session and not self.outcomes[key]:
                assert sequence >= commands.low

    # -- the network --------------------------------------------------------------------------------------------------

    def _chance(self, chance: float) -> bool:
        return not self.calm and self.rng.random() < chance

    def _delay(self) -> float:
        delay = self.rng.uniform(0.2, 1.8) * self.trouble.delay
        return delay + self.rng.uniform(0, 15) if self._chance(self.trouble.long_delay) else delay

    def _send(self, call: int, member: int, frame: bytes) -> None:
        if self._chance(self.trouble.fail):
            self.at(self.now + self._delay(), lambda: self.core.on_failure(call, self.now, "broken"))
            if self.rng.random() < 0.5:
                return
        if self._chance(self.trouble.lose):
            return
        for _ in range(2 if self._chance(self.trouble.double) else 1):
            self.at(self.now + self._delay(), lambda: self._arrive(call, member, frame))

    def _arrive(self, call: int, member: int, frame: bytes) -> None:
        if member in self.mute:
            return
        request = decode(frame)
        if not isinstance(request, (LoneRead, AskTerm)):  # what one call sends twice does no more harm than once
            self._mischief()
        reply = encode(self.answer(member, request))
        if self._chance(self.trouble.lose_reply):
            return
        for _ in range(2 if self._chance(self.trouble.double) else 1):
            self.at(self.now + self._delay(), lambda: self.core.on_reply(call, reply, self.now))

    def _mischief(self) -> None:
        if self._chance(self.trouble.change_leader):
            self.leader = self.rng.choice(self.members)
            self.terms += 1
        if self._chance(self.trouble.no_leader):
            self.leader = 0
            self.at(self.now + self.rng.uniform(0.1, 2.0), self._elect)
        if self._chance(self.trouble.mute):
            victim = self.rng.choice(self.members)
            self.mute.add(victim)
            self.at(self.now + self.rng.uniform(0.1, 3.0), lambda: self.mute.discard(victim))
        if self._chance(self.trouble.expire):
            self.state.sessions.clear()

    def _elect(self) -> None:
        if not self.leader:
            self.leader = self.rng.choice(self.members)
            self.terms += 1

    def settle(self) -> None:
        """The network heals, everything that is under way arrives, and every call ends."""
        self.calm = True
        self.mute.clear()
        self._elect()
        self.run(self.now + 60.0)

    # -- a member -----------------------------------------------------------------------------------------------------

    def answer(self, member: int, request: Request) -> Reply:
        if isinstance(request, AskTerm):
            return CurrentTerm(member, self.terms)
        if isinstance(request, LoneRead):
            answer = RangeAnswer(self.state.revision, (), 0)
            if member != self.leader:
                return ReadReply((answer,))
            return UnconfirmedRead(answer, self.terms, tuple(voter for voter in self.members if voter != member))
        if isinstance(request, Reads):
            return ReadReply(tuple(RangeAnswer(self.state.revision, (), 0) for _ in request.reads))
        if member != self.leader:
            return Refused(Refusal.NOT_LEADER, self.leader)
        if isinstance(request, Writes):
            answers = self.state.write(request)
            return Refused(Refusal.LOST) if self._chance(self.trouble.change_leader) else Written(answers)
        if isinstance(request, Open):
            return Opened(self.state.open(request.nonce), 6.0)
        if isinstance(request, KeepAlive):
            alive = request.session in self.state.sessions
            return Written((Done(self.state.revision) if alive else Failed(Reason.SESSION_EXPIRED),))
        assert isinstance(request, Close)
        self.state.sessions.pop(request.session, None)
        return Written((Done(self.state.revision),))
