"""Exactly-once writes: the answers that clients may still ask for again (thesis, section 6.3).

Every write carries its session, its sequence, and the session's low mark: the lowest sequence that its client still
waits for. Answers from the low mark on are remembered, and given again to a repeated write. A write below the low mark
is refused without effect. A ``request_id`` is for retries beyond a session: its answer is remembered by name, with a
digest of the operation, until a command forgets it by age. A name is good for one operation; another operation under it
is refused without effect.

In the family ``sessions``: ``s`` + id -> the session; ``a`` + id + sequence -> the answers of one command, under its
first new sequence; ``c`` + id -> who it is (``clients.py``); ``r`` + name -> (log index, answer, meaning); ``i`` + log
index + name -> nothing, to forget by age. Answers stay on disk; memory holds only where the answer of each sequence is.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Generator, Iterator

import msgspec

from ...errors import DataCorrupted
from ...limits import APPLY_WORK, ENTRY_CHANGES, WORK_OF_WRITE, Limits
from ...schema.answers import Answer, Failed, Reason, TxnAnswer
from ...schema.client_identity import ClientIdentity
from ...schema.commands import ClientWrites, RequestId
from ...schema.operations import Operation
from ..engine.interface import Engine
from .clients import CLIENTS, Clients
from .executor import Executor
from .lease_table import FRESH_ID_BITS
from .ranges import WEIGHT_SHIFT
from .write_batch import OrderedReader, WriteBatch

_FAMILY = "sessions"
_ID = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_encode = msgspec.msgpack.Encoder().encode


class _StoredSession(msgspec.Struct, frozen=True, array_like=True):
    ttl: float
    nonce: bytes
    low: int
    heard: int


class _OwnedSession(_StoredSession, frozen=True, array_like=True):
    """The session of a user."""

    user: str = ""


class _SessionBatch(msgspec.Struct, frozen=True, array_like=True):
    """The answers of one command; ``size`` is what they count against the session's bound on bytes."""

    size: int
    answers: tuple[tuple[int, Answer], ...]


class _BatchHead(msgspec.Struct, frozen=True, array_like=True):
    """A ``_SessionBatch`` whose answers are not decoded."""

    size: int
    answers: tuple[tuple[int, msgspec.Raw], ...]


class _Remembered(msgspec.Struct, frozen=True, array_like=True):
    index: int
    size: int
    answer: Answer
    meaning: bytes


_decode_session = msgspec.msgpack.Decoder(_OwnedSession).decode
_decode_batch = msgspec.msgpack.Decoder(_SessionBatch).decode
_decode_head = msgspec.msgpack.Decoder(_BatchHead).decode
_decode_remembered = msgspec.msgpack.Decoder(_Remembered).decode

_PASSING = (Reason.FULL, Reason.NO_SPACE, Reason.DENIED)
"""Refusals that are not remembered under a request id: they are temporary, and a later retry should succeed."""

_ANOTHER = Failed(Reason.INVALID, message="this request_id names another operation already")


class SessionRecord:
    """A client process as the state machine knows it."""

    __slots__ = ("answered", "batches", "heard", "id", "low", "newest", "nonce", "size", "ttl", "user")

    def __init__(self, id: int, ttl: float, nonce: bytes, heard: int, low: int = 0, user: str = "") -> None:
        self.id = id
        self.user = user
        """Whose it is; empty if users were not needed when it was opened."""
        self.ttl = ttl
        """Seconds of silence after which the leader may expire it."""
        self.nonce = nonce
        self.low = low
        """The low mark: sequences below it are answered or given up."""
        self.heard = heard
        """Log index of its last sign of life: an expiry that names another one is void."""
        self.answered: dict[int, int] = {}
        """Sequence -> the sequence under which its answer is stored."""
        self.newest = 0
        """No sequence above this one was answered."""
        self.batches: list[tuple[int, int, int, tuple[int, ...]]] = []
        """A heap of (last sequence, stored under, size, sequences): batches below the low mark come first."""
        self.size = 0
        """Bytes of the remembered answers, as they count against the bound."""

    def add(self, stored_under: int, size: int, sequences: tuple[int, ...]) -> None:
        """Record a stored batch of answers."""
        for sequence in sequences:
            self.answered[sequence] = stored_under
        last = max(sequences)
        if last > self.newest:
            self.newest = last
        heapq.heappush(self.batches, (last, stored_under, size, sequences))
        self.size += size

    def drop_below(self, low: int) -> Iterator[int]:
        """Raise the low mark. Yields the keys (first sequences) of stored batches that are no longer needed."""
        self.low = low
        while self.batches and self.batches[0][0] < low:
            _, stored_under, size, sequences = heapq.heappop(self.batches)
            for sequence in sequences:
                del self.answered[sequence]
            self.size -= size
            yield stored_under


class Sessions:
    """All sessions and request ids, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch, clients: Clients) -> None:
        self._batch = batch
        self._clients = clients
        self.by_id: dict[int, SessionRecord] = {}
        self._by_nonce: dict[bytes, int] = {}
        self.requests = 0
        """The number of remembered request ids."""
        self.request_bytes = 0
        self.oldest_request = 0
        """A lower bound on the log indexes of the remembered request ids."""

    def load(self, engine: Engine) -> None:
        """Read the sessions from the database."""
        try:
            for key, value in engine.iterate(_FAMILY, b"s", b"t"):
                id = _ID.unpack(key[1:])[0]
                stored = _decode_session(value)
                self.by_id[id] = SessionRecord(id, stored.ttl, stored.nonce, stored.heard, stored.low, stored.user)
                self._by_nonce[stored.nonce] = id
            self._clients.load(engine)
            for key, value in engine.iterate(_FAMILY, b"a", b"b"):
                id, stored_under = _PAIR.unpack(key[1:])
                head = _decode_head(value)
                self.by_id[id].add(stored_under, head.size, tuple(sequence for sequence, _ in head.answers))
            for key, _ in engine.iterate(_FAMILY, b"i", b"j"):
                (self.oldest_request,) = _ID.unpack_from(key, 1)
                break
        except (msgspec.MsgspecError, struct.error, KeyError) as error:
            raise DataCorrupted(f"the sessions cannot be read: {error!r}") from error

    # -- sessions -----------------------------------------------------------------------------------------------------

    def open(
        self,
        id: int,
        nonce: bytes,
        ttl: float,
        limits: Limits,
        user: str = "",
        client: ClientIdentity | None = None,
    ) -> int | None:
        """Open a session, or find the one with that nonce. Returns its id; ``None`` if there are too many sessions.

        Args:
            client: who opens it, if it says so.
        """
        known = self._by_nonce.get(nonce)
        if known is not None:
            self.renew(known, id)
            return known
        if len(self.by_id) >= limits.max_sessions:
            return None
        session = SessionRecord(id, ttl, nonce, id, user=user)
        self.by_id[id] = session
        self._by_nonce[nonce] = id
        self._save(session)
        self._clients.opened(id, client)
        return id

    def renew(self, id: int, index: int) -> bool:
        """Record a sign of life at a log index. Returns False if there is no such session."""
        session = self.by_id.get(id)
        if session is None:
            return False
        session.heard = index
        self._save(session)
        return True

    def close(self, id: int) -> bool:
        """Drop a session and its answers. Returns False if there is no such session."""
        session = self.by_id.pop(id, None)
        if session is None:
            return False
        del self._by_nonce[session.nonce]
        self._batch.set(_FAMILY, b"s" + _ID.pack(id), None)
        self._clients.closed(id)
        for _, stored_under, _, _ in session.batches:
            self._batch.set(_FAMILY, b"a" + _PAIR.pack(id, stored_under), None)
        return True

    def _save(self, session: SessionRecord) -> None:
        stored: _StoredSession
        if session.user:
            stored = _OwnedSession(session.ttl, session.nonce, session.low, session.heard, session.user)
        else:
            stored = _StoredSession(session.ttl, session.nonce, session.low, session.heard)
        self._batch.set(_FAMILY, b"s" + _ID.pack(session.id), _encode(stored))

    # -- writes -------------------------------------------------------------------------------------------------------

    def apply_writes(
        self, command: ClientWrites, index: int, executor: Executor, user: str | None = None
    ) -> Generator[None, None, list[Answer]]:
        """Run the writes of a command that are new, and look up the answers of those that are not.

        A write runs at most once: each answer is stored with its sequence in the same batch as the effects, and a
        sequence below the low mark, whose answer may be gone, never runs. An answer that could not be stored (FULL)
        had no effect either, so its write may be sent again. Yields between writes after each ``APPLY_WORK`` of work,
        and within those that delete many keys.

        Args:
            index: log index of the command.
            executor: runs the operations.
            user: who must own the session; ``None`` while users are not needed.

        Returns:
            The answers of the first writes: of all, unless ``ENTRY_CHANGES`` is reached. The rest did not run.
        """
        run_plain, run, limits = executor.run_plain, executor.run, executor.limits
        executor.begin_entry(command.session)
        session = self.by_id.get(command.session)
        if session is None or (user is not None and session.user != user):
            return [Failed(Reason.SESSION_EXPIRED)] * len(command.writes)
        if command.low > session.low:
            for stored_under in session.drop_below(command.low):
                self._batch.set(_FAMILY, b"a" + _PAIR.pack(session.id, stored_under), None)
        session.heard = index
        self._save(session)
        low, newest = session.low, max(session.newest, session.low - 1)
        count_left = limits.max_session_answers - len(session.answered)
        bytes_left = limits.max_session_answer_bytes - session.size
        new: dict[int, Answer] = {}
        loaded: dict[int, dict[int, Answer]] = {}
        answers: list[Answer] = []
        fresh_id = index << FRESH_ID_BITS
        for position, write in enumerate(command.writes):
            sequence = write.sequence
            answer: Answer | None
            if sequence <= newest:
                if sequence < low:
                    answer = Failed(Reason.BELOW_MARK)
                else:
                    answer = new.get(sequence) or self._answer_before(session, sequence, loaded, executor)
                if answer is not None:
                    answers.append(answer)
                    continue
            if executor.written >= ENTRY_CHANGES:
                break
            if count_left <= 0:
                answers.append(Failed(Reason.FULL))
                continue
            if write.request_id is None:
                answer = run_plain(write.operation, bytes_left)
                if answer is None:
                    answer = yield from run(write.operation, bytes_left, fresh_id + position)
                cost = executor.answer_bytes
            else:
                answer, cost = yield from self._run_named(
                    write.request_id, session.user, write.operation, bytes_left, fresh_id + position, index, executor
                )
            answers.append(answer)
            if type(answer) is not Failed or answer.reason is not Reason.FULL:
                new[sequence] = answer
                if sequence > newest:
                    newest = sequence
                count_left -= 1
                bytes_left -= cost
            if executor.work >= APPLY_WORK:
                yield
        if new:
            first = next(iter(new))
            spent = limits.max_session_answer_bytes - session.size - bytes_left
            self._batch.set(_FAMILY, b"a" + _PAIR.pack(session.id, first), _encode((spent, tuple(new.items()))))
            session.add(first, spent, tuple(new))
        return answers

    def _answer_before(
        self, session: SessionRecord, sequence: int, loaded: dict[int, dict[int, Answer]], executor: Executor
    ) -> Answer | None:
        """The answer that an earlier command has given to this sequence. ``loaded`` holds what was read for others."""
        stored_under = session.answered.get(sequence)
        if stored_under is None:
            return None
        if stored_under not in loaded:
            value = self._batch.get(_FAMILY, b"a" + _PAIR.pack(session.id, stored_under))
            if value is None:
                raise DataCorrupted(f"answers of session {session.id} are missing")
            executor.work += WORK_OF_WRITE + (len(value) >> WEIGHT_SHIFT)
            loaded[stored_under] = dict(_decode_batch(value).answers)
        return loaded[stored_under][sequence]

    def _run_named(
        self,
        request_id: RequestId,
        user: str,
        operation: Operation,
        room: int,
        fresh_id: int,
        index: int,
        executor: Executor,
    ) -> Generator[None, None, tuple[Answer, int]]:
        """Run an operation with a request id, unless one with that id has run before. Returns (answer, its size).

        The room for the answer is the smaller of the session's and that of all request ids, since it is stored in
        both places.

        A user's request ids are its own: nobody is given an answer that another user was given. But a user may try
        again what it has tried before users were needed: then the answer of that time counts, if the user may do the
        same now.

        Args:
            user: whose session it is; empty for one of a time without users.
        """
        limits = executor.limits
        name = _of_user(request_id.name, user)
        key = b"r" + name
        value = self._batch.get(_FAMILY, key)
        if value is None and user and (before := self._batch.get(_FAMILY, b"r" + request_id.name)) is not None:
            same = _decode_remembered(before).meaning == request_id.meaning
            if same and (yield from executor.is_allowed(operation)):
                value = before
        if value is not None:
            executor.work += WORK_OF_WRITE + (len(value) >> WEIGHT_SHIFT)
            known = _decode_remembered(value)
            if known.meaning != request_id.meaning:
                return _ANOTHER, 0
            if known.size > room:
                return Failed(Reason.FULL), 0
            executor.written += known.size >> WEIGHT_SHIFT
            return known.answer, known.size
        if self.requests >= limits.max_remembered_requests:
            return Failed(Reason.FULL), 0
        room = min(room, limits.max_remembered_request_bytes - self.request_bytes)
        answer = yield from executor.run(operation, room, fresh_id)
        cost = executor.answer_bytes
        if _is_remembered(answer, request_id.held):
            self._batch.set(_FAMILY, key, _encode(_Remembered(index, cost, answer, request_id.meaning)))
            self._batch.set(_FAMILY, b"i" + _ID.pack(index) + name, b"")
            if not self.requests:
                self.oldest_request = index
            self.requests += 1
            self.request_bytes += cost
        return answer, cost

    def forget_requests(self, index: int, most: int) -> bool:
        """Forget request ids that were applied at or below a log index, ``most`` at most. Returns True if none is left.

        ``oldest_request`` moves along, so that the next call does not iterate over what this one has deleted.
        """
        old: list[bytes] = []
        first = b"i" + _ID.pack(self.oldest_request)
        for key, _ in self._batch.iterate(_FAMILY, first, b"i" + _ID.pack(index + 1)):
            if len(old) == most:
                break
            old.append(key)
        if len(old) < most:
            self.oldest_request = max(self.oldest_request, index + 1)
        elif old:
            (self.oldest_request,) = _ID.unpack_from(old[-1], 1)
        for key in old:
            where = b"r" + key[1 + _ID.size :]
            value = self._batch.get(_FAMILY, where)
            if value is None:
                raise DataCorrupted("a remembered request is missing")
            self.requests -= 1
            self.request_bytes -= _decode_remembered(value).size
            self._batch.set(_FAMILY, key, None)
            self._batch.set(_FAMILY, where, None)
        return len(old) < most


def _of_user(name: bytes, user: str) -> bytes:
    """The name of a request id, under its user's."""
    if not user:
        return name
    owner = user.encode()
    return b"\xff" + len(owner).to_bytes(2, "big") + owner + name


def _is_remembered(answer: Answer, held: int) -> bool:
    """Whether an answer is remembered under its request id (see ``RequestId.held``)."""
    if type(answer) is Failed:
        return answer.reason not in _PASSING
    while held > 0 and type(answer) is TxnAnswer:
        if not answer.succeeded:
            return False
        if not answer.responses:
            break
        answer, held = answer.responses[0], held - 1
    return True


def session_content(source: OrderedReader) -> Iterator[bytes]:
    """The logical content of sessions and request ids, for comparing members. Answers are yielded one by one and in
    order, because members may have stored them in different batches.
    """
    lows: dict[bytes, int] = {}
    for key, value in source.iterate(_FAMILY, b"s", b"t"):
        lows[key[1:]] = _decode_session(value).low
        yield key + value
    answers: dict[bytes, bytes] = {}
    session = b""
    for key, value in source.iterate(_FAMILY, b"a", b"b"):
        if key[1:9] != session:
            yield from (where + answers[where] for where in sorted(answers))
            answers, session = {}, key[1:9]
        for sequence, answer in _decode_head(value).answers:
            if sequence >= lows[session]:
                answers[session + _ID.pack(sequence)] = bytes(answer)
    yield from (where + answers[where] for where in sorted(answers))
    for key, value in source.iterate(_FAMILY, *CLIENTS):
        yield key + value
    for key, value in source.iterate(_FAMILY, b"r", b"s"):
        yield key + value
