"""What the services ask the cluster for: the handle of a client, in the terms of etcd's answers.

A service makes commands of our own and gets our answers; here are the wait for them, etcd's errors in place of ours,
and the header of every answer. All keys of etcd's clients lie in one namespace of the cluster, by default that of the
handles' own keys. So an etcd client and a handle see the same keys.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from ...errors import KeeperError
from ...limits import LEASE_RETRY_S, PROXY_LONG_ANSWER_BYTES, PROXY_TIMEOUT_S, Limits
from ...schema.answers import Answer, Item, RangeAnswer
from ...schema.frames import Kept, LeasesKept, LeaseStatuses, Read
from ...schema.key_spaces import UNUSED_KEY
from ...schema.operations import KeyRange, Operation, Range
from ..client.aio import AsyncKeyValueClient
from ..client.core.in_flight import LeaseQuestion, request_size
from ..client.hub import Hub, Outcome, clock
from ..client.login import Credentials
from ..client.loop_bridge import LoopBridge, bridge_to
from ..client.view import Call, Steps, prefix_end
from ..client.watch import AsyncWatch
from .answer_room import AnswerRoom
from .etcd_errors import TIMED_OUT, from_keeper_error
from .etcdpb.rpc_pb2 import ResponseHeader
from .long_reads import LongReads, Place
from .long_writes import LongWrites
from .rpc_methods import UnaryCall
from .rpc_status import CANCELED, RpcCode, RpcError

T = TypeVar("T")


class CallContext(Protocol):
    """What a service knows of a call."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the caller sent beside the request, by names in lower case."""
        ...

    @property
    def client(self) -> str:
        """The address that it came from, for people."""
        ...

    def time_left(self) -> float:
        """Seconds until the caller's deadline; infinite if it named none."""
        ...


class StreamContext(CallContext, Protocol):
    """What a service knows of a call in which either side may send many messages."""

    async def receive(self) -> bytes | None:
        """The client's next message; ``None`` when it has sent all."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; waits while too much of what was sent before has not left."""
        ...


class UntimedContext:
    """The context of a call whose client names no deadline."""

    def __init__(self, metadata: Mapping[str, str] | None = None, client: str = "") -> None:
        self.metadata: Mapping[str, str] = metadata or {}
        self.client = client

    def time_left(self) -> float:
        """Forever."""
        return math.inf


class KeptLeases(NamedTuple):
    """Leases were kept alive."""

    ttls: list[int]
    """In seconds; 0 for one that is gone."""
    revision: int


class EtcdBackend:
    """The cluster, as one proxy's services see it.

    Args:
        handle: its namespace holds the keys; its timeout does not matter.
        member: id of the member that the proxy speaks for.
        cluster_token: gives a token of the cluster itself; it may block.
    """

    def __init__(
        self, handle: AsyncKeyValueClient, member: int, cluster_token: Callable[[], bytes] | None = None
    ) -> None:
        self._handle = handle
        self.cluster_token = cluster_token
        self._of: EtcdBackend | None = None
        """The one without a user, of a user's."""
        self._member = member
        self.space = handle._view.space
        self.space_end = prefix_end(self.space)
        self._hub: Hub | None = None
        self._bridge: LoopBridge | None = None
        """From the loop that has opened it to the hub."""
        self.long_reads = LongReads()
        """A place is held while a range of keys is read and its answer is made: such answers take much memory and time
        before they can be counted as held. All users of a proxy share them."""
        self._long_answers = asyncio.Lock()
        self._room = AnswerRoom()
        self.long_writes = LongWrites()
        """Their turns, of all users, too."""
        self._answering: set[asyncio.Task[None]] = set()
        """Those of direct calls that wait for their turn."""
        self.note_direct_failure: Callable[[UnaryCall, RpcError], object] = lambda call, error: None
        """Called before a direct call ends with an error: no coroutine is there to see it."""

    def of_user(self, user: str, token: bytes) -> EtcdBackend:
        """The same for a user, by a token; to be opened. When the token ends, so do the user's calls, whatever else
        this process could prove."""
        credentials = Credentials(user, token=token, purpose="clients of a proxy")
        handle = type(self._handle)(
            self._handle.cluster_name, self._handle.cluster_id, view=self._handle._view, credentials=credentials
        )
        backend = EtcdBackend(handle, self.member)
        backend._of = self
        backend.long_reads, backend._long_answers, backend._room = self.long_reads, self._long_answers, self._room
        backend.long_writes = self.long_writes
        return backend

    @property
    def member(self) -> int:
        """Id of the member that the proxy speaks for."""
        return self._member if self._of is None else self._of.member

    @member.setter
    def member(self, member: int) -> None:
        self._member = member

    @property
    def user(self) -> str:
        """Whose calls are made; empty for nobody's."""
        return self._handle.user or ""

    @property
    def handle(self) -> AsyncKeyValueClient:
        """The handle, for what is made of a client's public calls."""
        return self._handle

    @property
    def cluster_name(self) -> str:
        """The cluster's name."""
        return self._handle.cluster_name

    @property
    def hub(self) -> Hub:
        """The process's hub."""
        if self._hub is None:
            raise RuntimeError("the backend is not open")
        return self._hub

    async def open(self, timeout: float) -> None:
        """Find the cluster.

        Raises:
            KeeperError: it was not found.
        """
        self._hub = await self._handle._hub(timeout)
        self._bridge = bridge_to(self._hub)

    @property
    def cluster(self) -> int:
        """The cluster's id."""
        return self._handle.cluster_id

    @property
    def limits(self) -> Limits:
        """The cluster's."""
        return self.hub.limits

    @property
    def least_lease_ttl(self) -> int:
        """The TTL in seconds that shorter ones are raised to (etcd: minTTL, one and a half election timeouts)."""
        return math.ceil(1.5 * self.hub.timings.election_timeout)

    async def wait_for_turn(self, items: Sequence[Item]) -> None:
        """Wait until an answer of these items may be made: of long ones, one in each pass of the loop, since the
        making of one takes tens of milliseconds."""
        if _is_long(items):
            async with self._long_answers:
                await asyncio.sleep(0)

    # -- headers ------------------------------------------------------------------------------------------------------

    def header(self, revision: int) -> ResponseHeader:
        """The header of an answer at a revision."""
        return ResponseHeader(
            cluster_id=self._handle.cluster_id, member_id=self.member, revision=revision, raft_term=self.hub.term
        )

    def set_header(self, header: ResponseHeader, revision: int) -> None:
        """Make a message that is used again the header of another answer."""
        header.cluster_id = self._handle.cluster_id
        header.member_id = self.member
        header.revision = revision
        header.raft_term = self.hub.term

    # -- calls --------------------------------------------------------------------------------------------------------

    async def write(self, operation: Operation, context: CallContext, size: int = 0) -> Answer:
        """The answer to a write.

        Args:
            size: its bytes, if they may be many: a long one waits for its turn.

        Raises:
            RpcError: it failed.
        """
        written: Coroutine[Any, Any, Answer] = self.run(_one(Call(operation)), context)
        try:
            return await self.long_writes.run(size, context.client, context.time_left(), written)
        except KeeperError as error:
            raise from_keeper_error(error) from error

    async def run(self, steps: Steps[T], context: CallContext) -> T:
        """The result of some steps, within the time that the caller has left, and no longer than etcd tries.

        Raises:
            RpcError: a step failed.
        """
        try:
            return await self.ask(steps, context)
        except KeeperError as error:
            raise from_keeper_error(error) from error

    async def ask(self, steps: Steps[T], context: CallContext) -> T:
        """As :meth:`run`, for callers that answer in another form than etcd's.

        Raises:
            KeeperError: a step failed.
        """
        return await self._handle._run(steps, min(context.time_left(), PROXY_TIMEOUT_S))

    async def gather(self, steps: Steps[T], context: CallContext, place: Place | None = None, *, size: int = 0) -> T:
        """As :meth:`run`, for steps that may be many pages: each has the time that etcd tries, and all of them together
        have what the caller has left.

        Args:
            place: among the long reads, of a call that has one.
            size: bytes of the first step, if that is a write and they may be many: a long one waits for its turn.

        Raises:
            RpcError: a step failed, or there is no room for all pages.
        """
        until = clock() + context.time_left()
        try:
            with self._room.gathering() as gathered:
                call = next(steps)
                while True:
                    try:
                        left = max(0.0, until - clock())
                        page: Coroutine[Any, Any, Any] = self._handle._run(_one(call), min(left, PROXY_TIMEOUT_S))
                        if size:
                            page = self.long_writes.run(size, context.client, left, page)
                            size = 0
                        answer: Any = await (page if place is None else place.wait_for(page))
                    except KeeperError as error:
                        call = steps.throw(error)
                    else:
                        gathered.add(answer)
                        call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        except KeeperError as error:
            raise from_keeper_error(error) from error

    def ask_directly(
        self,
        request: Operation | Read,
        call: UnaryCall,
        make: Callable[[Any], bytes],
        *,
        serializable: bool = False,
    ) -> bool:
        """Send a request, and end a call later with what ``make`` makes of the answer: no coroutine waits for it.

        The way of the calls that come by the thousand; to the same effect as :meth:`run`. Returns False, with nothing
        done, if the hub has to be opened first.
        """
        bridge = self._bridge
        if bridge is None or self._handle._known_hub() is not bridge.hub:
            return False

        def ended(outcome: Outcome) -> None:
            if call.ended:  # nobody waits for an answer: it only learns that all is over
                call.fail_by(CANCELED)
                return
            try:
                if isinstance(outcome, KeeperError):
                    raise from_keeper_error(outcome) from outcome
                if isinstance(outcome, RangeAnswer) and _is_long(outcome.items):
                    self._answer_in_turn(call, outcome, make)
                else:
                    call.answer(make(outcome))
            except RpcError as error:
                self.note_direct_failure(call, error)
                call.fail_by(error)
            except Exception as error:
                call.fail_by(error)

        timeout = PROXY_TIMEOUT_S if call.deadline == math.inf else min(call.time_left(), PROXY_TIMEOUT_S)
        try:
            pending = bridge.submit(request, serializable, timeout, ended, call.soon)
        except KeeperError as error:
            raise from_keeper_error(error) from error
        call.when_ended = pending.give_up
        return True

    def _answer_in_turn(self, call: UnaryCall, answer: RangeAnswer, make: Callable[[Any], bytes]) -> None:
        """End a call with a long answer when its turn comes; until then the answer counts as gathered. A call that ends
        meanwhile gives up its turn.

        Raises:
            RpcError: there is no room for it.
        """
        gathered = self._room.gathering()
        try:
            gathered.add(answer)
        except RpcError:
            gathered.leave()
            raise

        async def wait() -> None:
            try:
                await self.wait_for_turn(answer.items)
                if not call.ended:
                    call.answer(make(answer))
            except Exception as error:
                call.fail_by(error)

        def over(task: asyncio.Task[None]) -> None:  # also of a task that was cancelled before its first step
            self._answering.discard(task)
            gathered.leave()
            call.when_ended = None  # the task keeps the frames that it left, with the answer in them
            call.fail_by(CANCELED)  # which does nothing if it was answered

        def give_up() -> None:
            task.cancel()

        task = asyncio.get_running_loop().create_task(wait())
        call.when_ended = give_up
        self._answering.add(task)
        task.add_done_callback(over)

    def write_soon(self, operation: Operation) -> None:
        """Have a write done, without waiting for it: for calls that have ended, anywhere."""
        self.hub.submit_soon(operation, request_size(operation, self.limits), PROXY_TIMEOUT_S)

    async def watch(self, keys: KeyRange, start: int, only: str | None, context: CallContext) -> AsyncWatch:
        """A watch of stored keys from a revision on; ``only`` is "put" or "delete", or ``None`` for both.

        Raises:
            KeeperError: it could not be made.
        """
        skip = len(self.space)
        end = None if keys.end is None else keys.end[skip:]
        return await self._handle.watch(keys.key[skip:], end, start_revision=start, only=only, timeout=PROXY_TIMEOUT_S)

    async def watch_key(self, key: bytes, prefix: bool, start: int | None, prev: bool) -> AsyncWatch:
        """A watch of a key, or of all keys that begin with it, from a revision on or from now on. Raises as above."""
        if prefix:
            return await self._handle.watch(prefix=key, start_revision=start, prev=prev, timeout=PROXY_TIMEOUT_S)
        return await self._handle.watch(key, start_revision=start, prev=prev, timeout=PROXY_TIMEOUT_S)

    async def revision(self, context: CallContext) -> int:
        """The store's newest revision, confirmed by a quorum."""
        read = Read(Range(KeyRange(UNUSED_KEY), count_only=True))
        answer: RangeAnswer = await self.run(_one(Call(read)), context)
        return answer.revision

    async def revision_unless_compacted(self, context: CallContext) -> int:
        """The store's newest revision, if its history was never compacted.

        Raises:
            RpcError: COMPACTED, or no answer.
        """
        read = Read(Range(KeyRange(UNUSED_KEY), 1, count_only=True))
        answer: RangeAnswer = await self.run(_one(Call(read)), context)
        return answer.revision

    async def keep_leases(self, leases: Sequence[int], context: CallContext) -> KeptLeases:
        """Keep leases alive once, all in one frame.

        Raises:
            RpcError: nothing is known of some of them.
        """
        until = clock() + min(context.time_left(), PROXY_TIMEOUT_S)
        ttls: dict[int, int] = {}
        asked = tuple(dict.fromkeys(leases))
        while True:
            answer: LeasesKept = await self.run(_one(Call(LeaseQuestion(asked, keep=True))), context)
            again = []
            for lease, kept, ttl in zip(asked, answer.kept, answer.ttls, strict=True):
                if kept is Kept.ASK_AGAIN:
                    again.append(lease)
                else:
                    ttls[lease] = int(ttl) if kept is Kept.ALIVE else 0
            if not again:
                return KeptLeases([ttls[lease] for lease in leases], answer.revision)
            if clock() + LEASE_RETRY_S >= until:
                raise TIMED_OUT.error()
            asked = tuple(again)
            await asyncio.sleep(LEASE_RETRY_S)

    async def lease_statuses(self, leases: tuple[int, ...], keys: bool, context: CallContext) -> LeaseStatuses:
        """The status of leases that exist; of all, if none is named."""
        answer: LeaseStatuses = await self.run(_one(Call(LeaseQuestion(leases, keys))), context)
        return answer

    def choose_lease_id(self) -> int:
        """An id for a lease whose client has not chosen one: positive, as etcd's are."""
        return secrets.randbits(63) or 1


def _is_long(items: Sequence[Item]) -> bool:
    if len(items) == 1:  # as most: for them, the sum would take longer
        return len(items[0].value) > PROXY_LONG_ANSWER_BYTES
    size = 0
    for item in items:
        size += len(item.value)
    return size > PROXY_LONG_ANSWER_BYTES


A = TypeVar("A")


def expect(answer: object, kind: type[A]) -> A:
    """An answer of the kind that a request gets."""
    if not isinstance(answer, kind):
        raise RpcError(RpcCode.INTERNAL, f"the cluster answered {type(answer).__name__} instead of {kind.__name__}")
    return answer


def _one(call: Call) -> Steps[T]:
    answer: T = yield call
    return answer
