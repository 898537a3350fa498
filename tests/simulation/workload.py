"""What the workers in the clients do: reads and writes of all kinds, and the history of it.

Every value that is ever written is unique, so a value that is read names its write. Counters are keys that are only
put, with ``prev``: the version of what was there is the count before, so a write that is applied twice shows. A worker
that increments repeats the same ``request_id`` until it knows the outcome, through another hub if its own was lost: as
a Ray task does that is run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raykeeper.errors import (
    AuthFailed,
    CompactedError,
    InvalidArgument,
    KeeperError,
    NoSpace,
    PermissionDenied,
    RequestTimeout,
    SessionExpired,
    Unavailable,
)
from raykeeper.schema.answers import Answer, DeleteAnswer, PutAnswer, RangeAnswer, TxnAnswer
from raykeeper.schema.commands import RequestId
from raykeeper.schema.frames import Read
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    Operation,
    Put,
    Range,
    Relation,
    Target,
    Txn,
    TxnCompare,
)
from simulation.checker import Call, Observation, Seen, Violation
from simulation.dependency_cycles import Transaction
from simulation.history import COUNTERS, EVERYTHING, HERD, HERD_RANGE, PAIR, PAIR_RANGE, REGISTERS
from simulation.list_append import ListAppend
from simulation.proxy import Proxy

if TYPE_CHECKING:
    from simulation.client import Client


class Worker(ListAppend):
    """Does one operation after the other, with a little thought between."""

    _ORDINARY = (RequestTimeout, Unavailable, SessionExpired, CompactedError, NoSpace)
    """How a call may fail here; anything else is somebody's mistake."""

    def __init__(self, client: Client, number: int, proxy: Proxy | None = None) -> None:
        self.client = client
        self._asks: Client | Proxy = proxy or client
        """Who takes its requests."""
        self.world = client.world
        self.rng = client.rng
        self.history = client.world.history
        self.name = f"{client.number}.{number}" + ("p" if proxy else "")
        self._operation = 0
        self._token = 0
        self._newest = 0
        """Newest revision that this worker has seen: its serializable reads never go behind it."""
        self._value = 0
        self._increment: tuple[bytes, bytes, int, Call] | None = None
        self._increment_until = 0.0
        """The request id is remembered until then for sure; later a repetition might count twice."""
        self.busy = False
        self._known: dict[bytes, bytes | None] = {}
        self._lists = {}
        self._begin()

    def _begin(self) -> None:
        self.world.after(self.rng.random() * 0.5, self._next, self._token)

    def lost(self) -> None:
        """The process died: whatever was open stays open; a counted increment is taken up again."""
        if self.busy:
            self.busy = False
            self.history.unknown += 1
        self._token += 1
        self.world.after(self.rng.uniform(0.05, 0.5), self._next, self._token)

    def _done(self) -> None:
        self.busy = False
        self._token += 1
        pause = self.rng.expovariate(1.0 / self.world.profile.think) if self.rng.random() < 0.9 else 0.0
        self.world.after(pause, self._next, self._token)

    @property
    def idle(self) -> bool:
        return not self.busy and self._increment is None

    def _next(self, token: int) -> None:
        if token != self._token or not self.client.when_awake(lambda: self._next(token)):
            return
        if self._increment is not None:
            self._add()
            return
        if self.world.closing:
            return
        self._operation += 1
        mix = self.world.profile.mix
        kind = self.rng.choices(list(mix), list(mix.values()))[0]
        getattr(self, f"_do_{kind}")()

    def _new_value(self) -> bytes:
        self._value += 1
        return f"{self.name}:{self._value}".encode() + b"." * self.rng.choice(self.world.profile.padding)

    # --- one call, from beginning to end -----------------------------------------------------------------------------

    def _run(
        self,
        request: Operation | Read,
        what: str,
        calls: list[tuple[bytes, Call]],
        judge: Callable[[Any, Observation], None],
        *,
        writes: dict[bytes, bytes | None] | None = None,
        linearizable: bool = True,
        past: bool = False,
        transaction: Transaction | None = None,
        **options: Any,
    ) -> None:
        """Submit a request and write down what becomes of it.

        ``judge`` gets the answer and the observation: it fills in the results of the calls and what was seen.
        """
        history, world = self.history, self.world
        invoked = history.point()
        if transaction is not None:
            transaction.invoked = invoked
            history.transactions.append(transaction)
        for key, call in calls:
            call.invoked = invoked
            history.calls.setdefault(key, []).append(call)
        history.started += 1
        self.busy = True
        token = self._token
        began = world.now
        ended = [False]
        history.offered.update(value for value in (writes or {}).values() if value is not None)
        deletes = [(key, invoked) for key, value in (writes or {}).items() if value is None]
        history.open_deletes += deletes

        def done(outcome: Answer | KeeperError) -> None:
            try:
                ended_with(outcome)
            except Exception as error:  # the hub would swallow it: one caller's trouble must not be another's
                world.broke(error)

        def ended_with(outcome: Answer | KeeperError) -> None:
            if ended[0]:
                raise Violation(f"a call of {self.name} ended twice: {what}")
            ended[0] = True
            if token != self._token:
                return  # of a process that is gone: nobody hears it
            point = history.point()
            if isinstance(outcome, KeeperError):
                denied = world.profile.users and isinstance(outcome, (AuthFailed, PermissionDenied))
                absent = isinstance(outcome, InvalidArgument) and "with its lease" in what
                if not isinstance(outcome, self._ORDINARY) and not denied and not absent:
                    raise Violation(f"{what} of {self.name} ended with {outcome!r}")
                history.denied += denied
                if outcome.applied is None:
                    history.unknown += 1
                else:
                    history.refused += 1
                    for delete in deletes:
                        history.open_deletes.remove(delete)
                    for key, call in calls:
                        history.calls[key].remove(call)
                    if transaction is not None:
                        history.transactions.remove(transaction)
                    for value in (writes or {}).values():
                        if value is not None:
                            history.without_effect[value] = f"{what} of {self.name}: {outcome!r}"
            else:
                for delete in deletes:
                    history.open_deletes.remove(delete)
                history.succeeded += 1
                world.succeeded(began)
                seen = Observation(self.name, what, invoked, point, 0, linearizable, past=past)
                judge(outcome, seen)
                for _, call in calls:
                    call.returned = point
                if not past:
                    self._newest = max(self._newest, seen.revision)
                history.observations.append(seen)
                self._increment = None
            self._done()

        timeout = world.profile.scale * self.rng.choice((0.3, 2.0, 5.0))
        if self._increment is not None:
            timeout = min(timeout, self._increment_until - world.now + 1e-6)
        number = self._asks.submit(request, timeout, done, **options)
        if not ended[0] and self.rng.random() < 0.03:
            world.after(self.rng.random() * 0.1, self._cancel, token, number)

    def _cancel(self, token: int, number: int) -> None:
        if token == self._token:
            self._asks.give_up(number)

    def _see(self, seen: Observation, answer: RangeAnswer, keys: tuple[bytes, ...]) -> dict[bytes, bytes | None]:
        values: dict[bytes, bytes | None] = dict.fromkeys(keys)
        for item in answer.items:
            values[item.key] = item.value
            seen.reads.append(Seen(item.key, item.value, item.mod_revision, item.version, item.create_revision))
        seen.reads += [Seen(key, None) for key, value in values.items() if value is None]
        return values

    # --- the kinds of work -------------------------------------------------------------------------------------------

    def _do_get(self, key: bytes | None = None) -> None:
        key = key or self.rng.choice(REGISTERS)
        call = Call(self.name, "get", None, 0)

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            call.result = self._known[key] = self._see(seen, answer, (key,))[key]

        self._run(Read(Range(KeyRange(key))), f"get {key!r}", [(key, call)], judge)

    def _do_stale(self) -> None:
        key = self.rng.choice(REGISTERS)
        at_least = self._newest if self.rng.random() < 0.7 and self._asks is self.client else 0

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision, seen.at_least = answer.revision, at_least
            self._known[key] = self._see(seen, answer, (key,))[key]

        request = Read(Range(KeyRange(key)), at_least)
        self._run(request, f"serializable get {key!r}", [], judge, linearizable=False, serializable=True)

    def _do_all(self) -> None:
        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            self._see(seen, answer, REGISTERS + PAIR + COUNTERS)

        self._run(Read(Range(EVERYTHING)), "range", [], judge)

    def _do_past(self) -> None:
        if self._newest < 2:
            self._do_get()
            return
        revision = self._newest - self.rng.randrange(min(30, self._newest - 1))
        keys, asked = REGISTERS + PAIR + COUNTERS, EVERYTHING
        if revision % 2:  # a single key's past is found in another way
            keys = keys[revision // 2 % len(keys) :][:1]
            asked = KeyRange(keys[0])

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            if answer.revision < revision:
                raise Violation(f"a read at {revision} answers at {answer.revision}")
            seen.revision = revision
            self._see(seen, answer, keys)

        self._run(Read(Range(asked, revision=revision)), f"{asked} at {revision}", [], judge, past=True)

    def _do_put(self) -> None:
        key, value = self.rng.choice(REGISTERS), self._new_value()
        call = Call(self.name, "put", value, 0)

        def judge(answer: PutAnswer, seen: Observation) -> None:
            seen.revision, seen.writes = answer.revision, {key: value}

        if self.rng.random() < 0.15:  # only if it is there
            request = Put(key, value, KEEP_LEASE)
            self._run(request, f"put, with its lease, {key!r}", [(key, call)], judge, writes={key: value})
            return
        self._known[key] = value
        self._run(Put(key, value), f"put {key!r}", [(key, call)], judge, writes={key: value})

    def _do_swap(self) -> None:
        key, value = self.rng.choice(REGISTERS), self._new_value()
        call = Call(self.name, "swap", value, 0)

        def judge(answer: PutAnswer, seen: Observation) -> None:
            seen.revision, seen.writes = answer.revision, {key: value}
            call.result = None if answer.prev is None else answer.prev.value

        self._run(Put(key, value, prev=True), f"swap {key!r}", [(key, call)], judge, writes={key: value})

    def _do_delete(self) -> None:
        key = self.rng.choice(REGISTERS)
        call = Call(self.name, "delete", None, 0)

        def judge(answer: DeleteAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            call.result = answer.deleted == 1
            if answer.deleted:
                seen.writes = {key: None}
            else:
                seen.reads = [Seen(key, None)]

        self._run(Delete(KeyRange(key)), f"delete {key!r}", [(key, call)], judge, writes={key: None})

    def _do_cas(self) -> None:
        key, value = self.rng.choice(REGISTERS), self._new_value()
        old = self._known.get(key)
        call = Call(self.name, "cas", (old, value), 0)
        if old is None:
            compare = TxnCompare(KeyRange(key), Target.VERSION, Relation.EQUAL, 0)
        else:
            compare = TxnCompare(KeyRange(key), Target.VALUE, Relation.EQUAL, old)

        def judge(answer: TxnAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            if answer.succeeded:
                call.result = True
                seen.writes = {key: value}
                self._known[key] = value
            else:
                (there,) = answer.responses
                assert isinstance(there, RangeAnswer)
                self._known[key] = self._see(seen, there, (key,))[key]
                call.result = (False, self._known[key])

        request = Txn((compare,), (Put(key, value),), (Range(KeyRange(key)),))
        self._run(request, f"compare-and-set {key!r}", [(key, call)], judge, writes={key: value})

    def _do_pair(self) -> None:
        value = self._new_value()
        call = Call(self.name, "put", value, 0)
        writes: dict[bytes, bytes | None] = dict.fromkeys(PAIR, value)

        def judge(answer: TxnAnswer, seen: Observation) -> None:
            seen.revision, seen.writes = answer.revision, writes

        request = Txn(success=tuple(Put(key, value) for key in PAIR))
        self._run(request, "put a pair", [(PAIR[0], call)], judge, writes=writes)

    def _do_pair_get(self) -> None:
        call = Call(self.name, "get", None, 0)

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            values = self._see(seen, answer, PAIR)
            if len(set(values.values())) != 1:
                raise Violation(f"half a transaction was seen by {seen}: {values}")
            call.result = values[PAIR[0]]

        self._run(Read(Range(PAIR_RANGE)), "get a pair", [(PAIR[0], call)], judge)

    def _do_fill(self) -> None:
        value = self._new_value()
        call = Call(self.name, "put", value, 0)
        writes: dict[bytes, bytes | None] = dict.fromkeys(HERD, value)

        def judge(answer: TxnAnswer, seen: Observation) -> None:
            seen.revision, seen.writes = answer.revision, writes

        request = Txn(success=tuple(Put(key, value) for key in HERD))
        self._run(request, "put a herd", [(HERD[0], call)], judge, writes=writes)

    def _do_sweep(self) -> None:
        call = Call(self.name, "delete", None, 0)

        def judge(answer: DeleteAnswer, seen: Observation) -> None:
            if answer.deleted not in (0, len(HERD)):
                raise Violation(f"{answer.deleted} of a herd were deleted by {seen}")
            seen.revision = answer.revision
            call.result = answer.deleted > 0
            if answer.deleted:
                seen.writes = dict.fromkeys(HERD)
            else:
                seen.reads = [Seen(key, None) for key in HERD]

        self._run(Delete(HERD_RANGE), "delete a herd", [(HERD[0], call)], judge, writes=dict.fromkeys(HERD))

    def _do_herd(self) -> None:
        """Look at the herd as it is."""
        call = Call(self.name, "get", None, 0)

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            call.result = self._whole_herd(seen, answer)

        self._run(Read(Range(HERD_RANGE)), "get a herd", [(HERD[0], call)], judge)

    def _do_stale_herd(self) -> None:
        """Look at what some member knows of it."""
        at_least = self._newest if self.rng.random() < 0.7 and self._asks is self.client else 0

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision, seen.at_least = answer.revision, at_least
            self._whole_herd(seen, answer)

        request = Read(Range(HERD_RANGE), at_least)
        self._run(request, "serializable get of a herd", [], judge, linearizable=False, serializable=True)

    def _whole_herd(self, seen: Observation, answer: RangeAnswer) -> bytes | None:
        values = self._see(seen, answer, HERD)
        if len(set(values.values())) != 1:
            raise Violation(f"half a herd was seen by {seen}: {values}")
        return values[HERD[0]]

    def _do_compact(self) -> None:
        if self._newest < 10:
            self._do_get()
            return
        revision = self._newest - self.rng.randrange(10)
        self._run(Compact(revision), f"compact {revision}", [], lambda answer, seen: None, past=True)

    def _do_count(self, key: bytes | None = None) -> None:
        key = key or self.rng.choice(COUNTERS)
        call = Call(self.name, "get", None, 0)

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            self._see(seen, answer, (key,))
            call.result = answer.items[0].version if answer.items else 0

        self._run(Read(Range(KeyRange(key))), f"count {key!r}", [(key, call)], judge)

    def _do_add(self) -> None:
        if self._asks is not self.client:  # etcd knows no request ids
            self._do_swap()
            return
        key = self.rng.choice(COUNTERS)
        increments = self.history.increments[key]
        increments.append(None)
        call = Call(self.name, "add", None, self.history.point())
        self.history.calls.setdefault(key, []).append(call)
        request_id = f"{self.name}/{self._operation}".encode()
        self._increment = (key, request_id, len(increments) - 1, call)
        self._increment_until = self.world.now + 0.9 * self.world.timings.request_ttl
        self._add()

    def _add(self) -> None:
        assert self._increment is not None
        key, request_id, place, call = self._increment
        value = request_id
        self.history.offered.add(value)
        if self.world.now > self._increment_until:
            self.history.given_up[key] += 1
            self._increment = None
            self._done()
            return

        def judge(answer: PutAnswer, seen: Observation) -> None:
            before = answer.prev.version if answer.prev is not None else 0
            seen.revision, seen.writes = answer.revision, {key: value}
            # It may have taken effect at any time since the first attempt.
            seen.invoked = call.invoked
            call.result = self.history.increments[key][place] = before
            call.returned = seen.returned

        self._run(Put(key, value, prev=True), f"add to {key!r}", [], judge, request_id=RequestId(request_id, b""))
