"""The client handle: ``kv = raykeeper.connect()``, then ``kv.put("key", "value")``.

Every call ends in a result (it took effect once), in an error whose ``applied`` is ``False``, or in one whose
``applied`` is ``None``: nobody knows. Calls are retried inside their timeout, never applied twice; for retries beyond
one call, pass the same ``request_id`` again.

Handles may be used from many threads, pickle into Ray tasks and actors, and survive leader changes and restarts of
members. What the calls mean is said in :mod:`requests`, how they travel in :mod:`hub`; this file only waits.
Watches are in :mod:`watch`, leases in :mod:`leases`, local copies in :mod:`cached`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import KeeperError
from . import arguments as check
from .arguments import Key
from .base import Handle
from .coordination import Coordination
from .hub import Hub, clock
from .leases import Lease, LeaseInfo, asking, granting, granting_in_txn, listing
from .operations import Condition, Op
from .requests import Steps
from .results import DeleteResult, End, KeyValue, PutResult, RangeResult, TxnResult
from .watch import Watch, wanted

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .cached import Cached

T = TypeVar("T")


class Client(Coordination, Handle):
    """A handle whose calls wait. See the module; every call takes ``timeout`` in seconds (``None``: the handle's).

    Any call may raise ``InvalidArgument`` (an argument is wrong, or the handle is closed), ``RequestTooLarge``,
    ``RequestTimeout``, ``Unavailable`` (no quorum in time), and, at a handle's first call in a process,
    ``ClusterNotFound`` or ``ClusterMismatch``. Writes may also raise ``SessionExpired`` and ``NoSpace``.
    """

    _aio: AsyncClient | None = None

    @property
    def aio(self) -> AsyncClient:
        """The same handle with coroutines; closed together with this one. One that was closed alone is made anew."""
        self._check_open()
        if self._aio is None or self._aio.closed:
            from .aio import AsyncClient

            self._aio = AsyncClient(
                self._name, self._cluster, share=self._share, view=self._view, timeout=self._timeout
            )
        return self._aio

    def put(
        self,
        key: Key,
        value: Any,
        *,
        lease: Any = None,
        prev: bool = False,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> PutResult:
        """Set a key (etcd: Put).

        Args:
            value: ``bytes`` or ``str``; what the handle's codec takes; or ``KEEP``, to leave the value that is there.
            lease: an id or a lease object that the key is bound to; ``None`` for none, ``KEEP`` to leave what is there.
            prev: also return what was there before.
            request_id: names the request for retries beyond this call.

        Raises:
            LeaseNotFound: there is no such lease.
            LeaseLost: the lease object knows that it is lost.
            InvalidArgument: also for ``KEEP`` where there is no such key.
        """
        return self._run(self._view.put(key, value, lease, prev, request_id), timeout)

    def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        serializable: bool = False,
        at_least: int | None = None,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Read one key; ``None`` if there is none (etcd: Range of one key).

        Args:
            revision: read the past as of this revision.
            serializable: any member answers from what it has, which may be stale.
            at_least: with ``serializable``: nothing older than this revision.

        Raises:
            CompactedError: the revision is compacted away.
            FutureRevisionError: the revision does not exist yet.
        """
        return self._run(self._view.get(key, revision, serializable, at_least), timeout)

    def range(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        limit: int = 0,
        revision: int | None = None,
        sort: str | None = None,
        order: str = "ascend",
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read the keys from ``key`` up to but without ``end`` (``END``: to the last), or all under ``prefix``.

        Long ranges come in pages, all of one revision. ``prefix=b""`` is everything that this handle sees.

        Args:
            limit: at most so many items; 0 for all. ``count`` tells of all.
            sort: ``"key"``, ``"version"``, ``"create_revision"``, ``"mod_revision"`` or ``"value"``; ties go by key.
            order: ``"ascend"`` or ``"descend"``.
            keys_only: leave the values out.
            count_only: leave the items out.
            revision, serializable: as for :meth:`get`.

        Raises:
            CompactedError: the revision is compacted away.
            FutureRevisionError: the revision does not exist yet.
        """
        steps = self._view.range(
            serializable,
            key=key,
            end=end,
            prefix=prefix,
            limit=limit,
            revision=revision,
            sort=sort,
            order=order,
            keys_only=keys_only,
            count_only=count_only,
        )
        return self._run(steps, timeout)

    def delete(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        prev: bool = False,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key, a range or a prefix in one revision (etcd: DeleteRange).

        Args:
            prev: also return what was deleted.
            request_id: names the request for retries beyond this call.

        Raises:
            RequestTooLarge: the range holds more keys than one request may delete.
        """
        return self._run(self._view.delete(key, end, prefix, prev, request_id), timeout)

    def txn(
        self,
        compare: Sequence[Condition] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        """Run ``success`` if all comparisons hold, else ``failure``, atomically and in one revision (etcd: Txn).

        Args:
            compare: made by ``Compare``; none holds always.
            success, failure: made by ``Op``.
            request_id: names the request for retries beyond this call.

        Raises:
            LeaseNotFound: a put names a lease that does not exist.
        """
        return self._run(self._view.txn(compare, success, failure, request_id), timeout)

    def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history below a revision (etcd: Compact). The newest version of each key stays.

        Raises:
            CompactedError: it is forgotten already.
            FutureRevisionError: the revision does not exist yet.
        """
        return self._run(self._view.compact(revision), timeout)

    def revision(self, *, timeout: float | None = None) -> int:
        """The current revision of the store; a linearizable read."""
        return self._run(self._view.revision(), timeout)

    def watch(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        start_revision: int | None = None,
        prev: bool = False,
        only: str | None = None,
        timeout: float | None = None,
    ) -> Watch:
        """See every change of a key, a range or a prefix, in order (etcd: Watch). Iterate over what this returns.

        Its start is fixed before this returns: after everything that was written before this was called, or at the
        revision given, which may lie in the past (unless compacted) or in the future.

        Args:
            start_revision: the first revision to see; ``None`` for whatever comes next.
            prev: events carry what was there before.
            only: ``"put"`` or ``"delete"``, to see only these.
            timeout: for fixing the start. The waits of the watch have their own.

        Raises:
            Unavailable: the start could not be fixed in time.
        """
        self._check_open()
        deadline = clock() + self._seconds(timeout)
        asked = wanted(self._view, key, end, prefix, start_revision, prev, only)
        self._hub(deadline - clock())
        assert self._share is not None
        watch = Watch(self._share, self._view, asked, deadline - clock())
        self._watches.add(watch)
        return watch

    def cached(self, prefix: Key, *, max_bytes: int | None = None, timeout: float | None = None) -> Cached:
        """A read-only copy of a prefix in this process, kept by a watch; reading it takes microseconds.

        It is loaded when this returns. It shows one revision of the store after another, in order and each whole, but
        lags a little: it is not linearizable. ``get(key, at_least=revision)`` waits until it has come so far. Close
        it, or use it in a ``with`` statement; it also ends with this handle, and when it is collected.

        Args:
            max_bytes: what it may hold, at about ``len(key) + len(value) + 400`` bytes a key; ``None`` for 1 GiB.
            timeout: for loading it.

        Raises:
            RequestTooLarge: the prefix holds more than ``max_bytes``.
        """
        from .cached import open_copy

        return open_copy(self, prefix, max_bytes, self._seconds(timeout))

    def lease(self, ttl: float, *, keep_alive: bool = True, timeout: float | None = None) -> Lease:
        """Make a lease: keys that are put under it go when it ends (etcd: LeaseGrant, LeaseKeepAlive).

        Args:
            ttl: seconds. It ends when nothing was heard of this process for so long; not before, and soon after. A
                change of leaders takes one to three seconds, in which nothing can be heard.
            keep_alive: keep it alive in the background while the object that this returns lives; otherwise it ends
                after ``ttl``.

        Raises:
            InvalidArgument: the TTL is too short or too long.
        """
        keep = check.flag("keep_alive", keep_alive)
        granted = self._run(granting(self._view, ttl, clock() + self._seconds(timeout) / 2), timeout)
        return Lease(self._derive(self._view), self._hub(0), granted, keep)

    def leased_txn(
        self, ttl: float, make: Callable[[int], Op], *, timeout: float | None = None
    ) -> tuple[Lease | None, TxnResult]:
        """Make a lease and run a transaction that uses it, in one write: both happen, or neither.

        ::

            free = [Compare.version("me") == 0]
            lease, result = kv.leased_txn(10, lambda id: Op.txn(free, [Op.put("me", "here", lease=id)]))

        Args:
            ttl: seconds, as for ``lease``; it is kept alive while the object that this returns lives.
            make: from the lease's id, ``Op.txn(...)``. Its success branch runs after the lease was made; if the
                comparisons do not hold there is no lease.

        Returns:
            the lease, ``None`` if the comparisons did not hold, and the result of the transaction. It runs once: if it
            took longer than the TTL, the lease that is returned is lost already (``lost``), and ends with its keys.
        """
        granted, result = self._run(granting_in_txn(self._view, ttl, make), timeout)
        return None if granted is None else Lease(self._derive(self._view), self._hub(0), granted, True), result

    def leases(self, *, timeout: float | None = None) -> list[LeaseInfo]:
        """All leases of the cluster, whoever made them (etcd: LeaseLeases); linearizable."""
        return self._run(listing(self._view), timeout)

    def time_to_live(self, lease: Any, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """How a lease stands (etcd: LeaseTimeToLive); linearizable.

        Args:
            lease: an id, or a lease object.
            keys: also list the keys that are attached to it, as far as this handle sees them.

        Raises:
            LeaseNotFound: it does not exist, or has ended.
        """
        return self._run(asking(self._view, lease, keys), timeout)

    def close(self) -> None:
        """End this handle, and its watches. Calls that other threads have open on it go on; the hub goes
        a while after its last handle, watch or lease."""
        if self._aio is not None:
            self._aio._release()
            self._aio = None
        self._release()

    def __enter__(self) -> Client:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T], timeout: float | None) -> T:
        """Take the steps of a call, waiting for each answer, within one timeout for all of them."""
        self._check_open()
        left = self._seconds(timeout)
        deadline = clock() + left
        try:
            ask = next(steps)
            hub = self._hub(left)
            left = deadline - clock()
            while True:
                outcome = hub.call(ask, left)
                ask = steps.throw(outcome) if isinstance(outcome, KeeperError) else steps.send(outcome)
                left = deadline - clock()
        except StopIteration as end:
            result: T = end.value
            return result

    def _hub(self, timeout: float) -> Hub:
        return self._known_hub() or self._open_hub(timeout)
