"""Exactly once: the answers that clients may still ask for again (thesis, section 6.3; design, "Exactly once").

Every write carries (session, sequence) and the lowest sequence that its client still waits for. The answers from that
mark on are remembered and given again to a repeated request; what lies below the mark is refused without effect. A
``request_id`` is for retries beyond a session: its answer is remembered by name, with a digest of what was asked for,
until a command forgets it by age. A name is good for one operation: another one under it is refused without effect.

In the family ``sessions``: ``s`` + id -> the session; ``a`` + id + sequence -> the answers of one command, under its
first new sequence; ``r`` + name -> (log index, answer, meaning); ``i`` + log index + name -> nothing, to forget by.
Answers stay on disk; memory holds only which sequence is answered where.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Generator, Iterator

import msgspec

from ..errors import DataCorrupted
from ..limits import APPLY_WORK, ENTRY_CHANGES, WORK_OF_WRITE, Limits
from .commands import Answer, ClientWrites, Expiry, Failed, Operation, Reason, RequestId, TxnAnswer
from .engine import Engine
from .leases import FRESH_ID_BITS
from .pending import Ordered, Pending
from .ranges import WEIGHT
from .transactions import Executor

FAMILY = "sessions"
_ID = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_encode = msgspec.msgpack.Encoder().encode


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    ttl: float
    nonce: bytes
    low: int
    heard: int


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    """Answers of one command; ``size`` is what they count against the session's bound."""

    size: int
    answers: tuple[tuple[int, Answer], ...]


class _BatchHead(msgspec.Struct, frozen=True, array_like=True):
    """The same without decoding the answers."""

    size: int
    answers: tuple[tuple[int, msgspec.Raw], ...]


class _Remembered(msgspec.Struct, frozen=True, array_like=True):
    index: int
    size: int
    answer: Answer
    meaning: bytes


_decode_session = msgspec.msgpack.Decoder(_Stored).decode
_decode_batch = msgspec.msgpack.Decoder(_Batch).decode
_decode_head = msgspec.msgpack.Decoder(_BatchHead).decode
_decode_remembered = msgspec.msgpack.Decoder(_Remembered).decode

_PASSING = (Reason.FULL, Reason.NO_SPACE)
"""Refusals that are not remembered under a request id: they pass, and whoever asks again later wants it done."""

_ANOTHER = Failed(Reason.INVALID, message="this request_id names another operation already")


class Session:
    """A client process as the state machine knows it."""

    __slots__ = ("answered", "batches", "heard", "id", "low", "nonce", "size", "ttl")

    def __init__(self, id: int, ttl: float, nonce: bytes, heard: int, low: int = 0) -> None:
        self.id = id
        self.ttl = ttl
        """Seconds of silence after which the leader may end it."""
        self.nonce = nonce
        self.low = low
        """Sequences below are answered or given up."""
        self.heard = heard
        """Log index of its last sign of life in the log: an expiry that saw another one is void."""
        self.answered: dict[int, int] = {}
        """Sequence -> the sequence under which its answer is stored."""
        self.batches: list[tuple[int, int, int, tuple[int, ...]]] = []
        """A heap of (last sequence, stored under, size, sequences), so that what the mark has passed is found first."""
        self.size = 0
        """Bytes of the answers, as they count against the bound."""

    def add(self, stored_under: int, size: int, sequences: tuple[int, ...]) -> None:
        """Take note of a stored batch."""
        for sequence in sequences:
            self.answered[sequence] = stored_under
        heapq.heappush(self.batches, (max(sequences), stored_under, size, sequences))
        self.size += size

    def drop_below(self, low: int) -> Iterator[int]:
        """Raise the mark; yields under which sequences batches are stored that are no longer needed."""
        self.low = low
        while self.batches and self.batches[0][0] < low:
            _, stored_under, size, sequences = heapq.heappop(self.batches)
            for sequence in sequences:
                del self.answered[sequence]
            self.size -= size
            yield stored_under


class Sessions:
    """All sessions and request ids, in memory and in the batch that is being applied."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.by_id: dict[int, Session] = {}
        self._by_nonce: dict[bytes, int] = {}
        self.requests = 0
        """Request ids that are remembered."""
        self.request_bytes = 0
        self.oldest_request = 0
        """None of them was applied before this log index."""

    def load(self, engine: Engine) -> None:
        """Read what the database holds."""
        try:
            for key, value in engine.iterate(FAMILY, b"s", b"t"):
                id = _ID.unpack(key[1:])[0]
                stored = _decode_session(value)
                self.by_id[id] = Session(id, stored.ttl, stored.nonce, stored.heard, stored.low)
                self._by_nonce[stored.nonce] = id
            for key, value in engine.iterate(FAMILY, b"a", b"b"):
                id, stored_under = _PAIR.unpack(key[1:])
                head = _decode_head(value)
                self.by_id[id].add(stored_under, head.size, tuple(sequence for sequence, _ in head.answers))
            for key, _ in engine.iterate(FAMILY, b"i", b"j"):
                (self.oldest_request,) = _ID.unpack_from(key, 1)
                break
        except (msgspec.MsgspecError, struct.error, KeyError) as error:
            raise DataCorrupted(f"the sessions cannot be read: {error!r}") from error

    # -- sessions -----------------------------------------------------------------------------------------------------

    def open(self, id: int, nonce: bytes, ttl: float, limits: Limits) -> int | None:
        """The session of that nonce, a new one if there is none; ``None`` if there are too many."""
        known = self._by_nonce.get(nonce)
        if known is not None:
            self.renew(known, id)
            return known
        if len(self.by_id) >= limits.max_sessions:
            return None
        session = Session(id, ttl, nonce, id)
        self.by_id[id] = session
        self._by_nonce[nonce] = id
        self._save(session)
        return id

    def renew(self, id: int, index: int) -> bool:
        """A sign of life stands in the log at an index; False if there is no such session."""
        session = self.by_id.get(id)
        if session is None:
            return False
        session.heard = index
        self._save(session)
        return True

    def close(self, id: int) -> bool:
        """Forget a session and its answers; False if there is none."""
        session = self.by_id.pop(id, None)
        if session is None:
            return False
        del self._by_nonce[session.nonce]
        self._pending.set(FAMILY, b"s" + _ID.pack(id), None)
        for _, stored_under, _, _ in session.batches:
            self._pending.set(FAMILY, b"a" + _PAIR.pack(id, stored_under), None)
        return True

    def expire(self, expiry: Expiry) -> bool:
        """End a session, unless it was heard of since the expiry was proposed."""
        session = self.by_id.get(expiry.id)
        return session is not None and session.heard == expiry.heard and self.close(expiry.id)

    def _save(self, session: Session) -> None:
        stored = _Stored(session.ttl, session.nonce, session.low, session.heard)
        self._pending.set(FAMILY, b"s" + _ID.pack(session.id), _encode(stored))

    # -- writes -------------------------------------------------------------------------------------------------------

    def write(self, command: ClientWrites, index: int, executor: Executor) -> Generator[None, None, list[Answer]]:
        """Do what is new of a command, and find the old answers of what is not. Rests between two writes whenever
        ``APPLY_WORK`` was done.

        Args:
            index: of the command in the log.
            executor: runs the operations.

        Returns:
            the answers of the first writes: of all, unless ``ENTRY_CHANGES`` is reached before. What has no answer has
            not been looked at.
        """
        run, limits = executor.run, executor.limits
        executor.begin()
        session = self.by_id.get(command.session)
        if session is None:
            return [Failed(Reason.SESSION_EXPIRED)] * len(command.writes)
        if command.low > session.low:
            for stored_under in session.drop_below(command.low):
                self._pending.set(FAMILY, b"a" + _PAIR.pack(session.id, stored_under), None)
        self.renew(session.id, index)
        low, answered = session.low, session.answered
        count_left = limits.max_session_answers - len(answered)
        bytes_left = limits.max_session_answer_bytes - session.size
        new: dict[int, Answer] = {}
        loaded: dict[int, dict[int, Answer]] = {}
        answers: list[Answer] = []
        fresh_id = index << FRESH_ID_BITS
        for position, write in enumerate(command.writes):
            sequence = write.sequence
            answer: Answer | None
            if sequence < low:
                answers.append(Failed(Reason.BELOW_MARK))
                continue
            if sequence in answered:
                stored_under = answered[sequence]
                if stored_under not in loaded:
                    loaded[stored_under] = self._load_answers(session.id, stored_under, executor)
                answers.append(loaded[stored_under][sequence])
                continue
            answer = new.get(sequence)
            if answer is not None:
                answers.append(answer)
                continue
            if executor.written >= ENTRY_CHANGES:
                break
            if count_left <= 0:
                answers.append(Failed(Reason.FULL))
                continue
            if write.request_id is None:
                answer = run(write.operation, bytes_left, fresh_id + position)
                cost = executor.answer_bytes
            else:
                answer, cost = self._once(
                    write.request_id, write.operation, bytes_left, fresh_id + position, index, executor
                )
            answers.append(answer)
            if type(answer) is not Failed or answer.reason is not Reason.FULL:
                new[sequence] = answer
                count_left -= 1
                bytes_left -= cost
            if executor.work >= APPLY_WORK:
                yield
        if new:
            first = next(iter(new))
            spent = limits.max_session_answer_bytes - session.size - bytes_left
            self._pending.set(FAMILY, b"a" + _PAIR.pack(session.id, first), _encode((spent, tuple(new.items()))))
            session.add(first, spent, tuple(new))
        return answers

    def _load_answers(self, session: int, stored_under: int, executor: Executor) -> dict[int, Answer]:
        value = self._pending.get(FAMILY, b"a" + _PAIR.pack(session, stored_under))
        if value is None:
            raise DataCorrupted(f"answers of session {session} are missing")
        executor.work += WORK_OF_WRITE + (len(value) >> WEIGHT)
        return dict(_decode_batch(value).answers)

    def _once(
        self,
        request_id: RequestId,
        operation: Operation,
        room: int,
        fresh_id: int,
        index: int,
        executor: Executor,
    ) -> tuple[Answer, int]:
        """Run an operation that has a name, unless one of that name was run before: (answer, its size)."""
        limits = executor.limits
        key = b"r" + request_id.name
        value = self._pending.get(FAMILY, key)
        if value is not None:
            executor.work += WORK_OF_WRITE + (len(value) >> WEIGHT)
            known = _decode_remembered(value)
            if known.meaning != request_id.meaning:
                return _ANOTHER, 0
            if known.size > room:
                return Failed(Reason.FULL), 0
            executor.written += known.size >> WEIGHT
            return known.answer, known.size
        if self.requests >= limits.max_remembered_requests:
            return Failed(Reason.FULL), 0
        answer = executor.run(operation, min(room, limits.max_remembered_request_bytes - self.request_bytes), fresh_id)
        cost = executor.answer_bytes
        if _lasts(answer, request_id.held):
            self._pending.set(FAMILY, key, _encode(_Remembered(index, cost, answer, request_id.meaning)))
            self._pending.set(FAMILY, b"i" + _ID.pack(index) + request_id.name, b"")
            if not self.requests:
                self.oldest_request = index
            self.requests += 1
            self.request_bytes += cost
        return answer, cost

    def forget_requests(self, index: int, most: int) -> bool:
        """Forget request ids that were applied at or below a log index, at most so many; True if none is left."""
        old: list[bytes] = []
        first = b"i" + _ID.pack(self.oldest_request)
        for key, _ in self._pending.iterate(FAMILY, first, b"i" + _ID.pack(index + 1)):
            if len(old) == most:
                break
            old.append(key)
        if len(old) < most:
            self.oldest_request = max(self.oldest_request, index + 1)
        elif old:
            (self.oldest_request,) = _ID.unpack_from(old[-1], 1)
        for key in old:
            where = b"r" + key[1 + _ID.size :]
            value = self._pending.get(FAMILY, where)
            if value is None:
                raise DataCorrupted("a remembered request is missing")
            self.requests -= 1
            self.request_bytes -= _decode_remembered(value).size
            self._pending.set(FAMILY, key, None)
            self._pending.set(FAMILY, where, None)
        return len(old) < most


def _lasts(answer: Answer, held: int) -> bool:
    """Whether an answer is to be remembered by name (see ``RequestId.held``)."""
    if type(answer) is Failed:
        return answer.reason not in _PASSING
    while held > 0 and type(answer) is TxnAnswer:
        if not answer.succeeded:
            return False
        if not answer.responses:
            break
        answer, held = answer.responses[0], held - 1
    return True


def content(source: Ordered) -> Iterator[bytes]:
    """All that sessions and request ids mean, however it is batched on the disk: for comparing members."""
    lows: dict[bytes, int] = {}
    for key, value in source.iterate(FAMILY, b"s", b"t"):
        lows[key[1:]] = _decode_session(value).low
        yield key + value
    answers: dict[bytes, bytes] = {}
    session = b""
    for key, value in source.iterate(FAMILY, b"a", b"b"):
        if key[1:9] != session:
            yield from (where + answers[where] for where in sorted(answers))
            answers, session = {}, key[1:9]
        for sequence, answer in _decode_head(value).answers:
            if sequence >= lows[session]:
                answers[session + _ID.pack(sequence)] = bytes(answer)
    yield from (where + answers[where] for where in sorted(answers))
    for key, value in source.iterate(FAMILY, b"r", b"s"):
        yield key + value
