"""The client handle: ``kv = raykeeper.connect()``, then ``kv.put("key", "value")``.

Every call ends in a result (it took effect once), in an error with ``applied=False`` (it never had an effect and never
will), or in an error with ``applied=None`` (its outcome is unknown). Calls are retried within their timeout and never
applied twice. To retry beyond one call, pass the same ``request_id`` again.

Handles may be shared by threads, can be pickled into Ray tasks and actors, and survive changes of the leader and
restarts of members. This file declares the calls and waits for them; :mod:`view` turns them into requests and
:mod:`hub` carries those. Watches are in :mod:`watch`, leases in :mod:`leases`, local copies in :mod:`cached`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import arguments as check
from ..arguments import Key
from .bindings import binding_of, settled
from .blocking import Blocking
from .hub import clock
from .leases import (
    Lease,
    LeaseInfo,
    grant_steps,
    lease_info_steps,
    lease_owner_steps,
    leased_txn_steps,
    list_lease_steps,
)
from .results import DeleteResult, End, KeyValue, PutResult, RangeResult, TxnResult
from .txn_parts import Condition, Op
from .watch import Watch, watch_spec

if TYPE_CHECKING:
    from .aio import AsyncKeyValueClient
    from .cached import Cached


C = TypeVar("C", bound="KeyValueClient")


class KeyValueClient(Blocking):
    """A handle whose calls block the calling thread until they end.

    Keys are ``str`` (as UTF-8) or ``bytes``, and always come back as ``bytes``; values are too, unless the handle has a
    codec. Every call takes ``timeout`` in seconds, which covers all that it does; ``None`` is the handle's default.

    Any call may raise these errors; ``error.applied`` says whether a write took effect:

    - ``InvalidArgument``: an argument is wrong, or the handle is closed.
    - ``RequestTooLarge``: the request is over a limit of the cluster; nothing happened.
    - ``Unavailable``: no quorum could be reached in time.
    - ``RequestTimeout``: no answer came in time.
    - ``ClusterNotFound``, ``ClusterMismatch``: at a handle's first call in a process.
    - ``ForkedProcess``, ``ReentrantCall``: the call comes from a forked child, or from a signal handler or destructor
      that has interrupted RayKeeper itself.
    - Writes only: ``SessionExpired`` (the outcome is unknown) and ``NoSpace`` (a member is short of disk space).
    """

    _aio: AsyncKeyValueClient | None = None
    _async_kind: ClassVar[type[AsyncKeyValueClient]]
    """The class of the async handle; set by ``actors/handles.py``, which knows both."""

    @property
    def aio(self) -> AsyncKeyValueClient:
        """The same handle for asyncio: ``await kv.aio.put("key", "value")``.

        It is closed together with this one; if it was closed alone, the next use makes another.

        Raises:
            InvalidArgument: this handle is closed.
        """
        self._check_open()
        if self._aio is None or self._aio.closed:
            self._aio = self._async_kind(
                self._name,
                self._cluster,
                share=self._share,
                view=self._view,
                timeout=self._timeout,
                credentials=self._credentials,
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

        ::

            kv.put("jobs/17", "running")
            kv.put("here", "me", lease=lease)      # deleted when the lease ends

        Args:
            key: the key.
            value: ``bytes`` or ``str``; on a handle with a codec, any object that it encodes; ``KEEP`` leaves the value
                of an existing key.
            lease: the ``Lease``, or the id of the lease, that the key is attached to; ``None`` for none, ``KEEP`` for
                the one that it has.
            prev: also return the pair that the put replaced.
            request_id: a name for this write, for tasks that Ray may run again. The same write under the same name is
                done once, and answered the second time as the first, within the cluster's ``request_ttl``.
            timeout: seconds; ``None`` is the handle's default.

        Returns:
            The revision that the put made, and ``prev`` if it was asked for (``None`` if there was no such key).

        Raises:
            LeaseNotFound: there is no such lease.
            LeaseLost: the ``lease`` object is lost already; nothing was sent.
            InvalidArgument: also for ``KEEP`` if there is no such key, and for a ``request_id`` that named another
                write.
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
        """Read one key (etcd: Range of one key).

        The read is linearizable unless ``serializable``: it sees every write that had returned before it began.

        ::

            found = kv.get("jobs/17")
            if found is not None:
                print(found.value, found.mod_revision)

        Args:
            key: the key.
            revision: read the store as of this past revision; ``None`` for the present.
            serializable: let any member answer from what it has applied, which may be stale. Needs no leader.
            at_least: with ``serializable``: wait until the member has applied this revision, such as the one that an
                earlier put returned.
            timeout: seconds; ``None`` is the handle's default.

        Returns:
            The key with its value and revisions; ``None`` if there is no such key.

        Raises:
            CompactedError: the revision has been compacted.
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
        """Read a range of keys, all as of one revision (etcd: Range).

        Give either ``prefix``, or ``key`` with an optional ``end``. A long range is fetched in pages.

        ::

            for item in kv.range(prefix="jobs/"):
                print(item.key, item.value)
            newest = kv.range(prefix="jobs/", sort="mod_revision", order="descend", limit=10)

        Args:
            key: the first key; alone, the only one.
            end: the first key that no longer belongs to the range; ``END`` for a range up to the last key.
            prefix: all keys that start with it; ``b""`` is everything that this handle sees.
            limit: return at most this many items; 0 returns all. ``count`` is that of the whole range in any case.
            revision: read the store as of this past revision; ``None`` for the present.
            sort: ``"key"`` (the default), ``"version"``, ``"create_revision"``, ``"mod_revision"`` or ``"value"``; ties
                are in key order.
            order: ``"ascend"`` or ``"descend"``.
            keys_only: leave out the values (they are ``b""``).
            count_only: leave out the items, and only count them.
            serializable: let any member answer from what it has applied, as for :meth:`get`.
            timeout: seconds for all pages together; ``None`` is the handle's default.

        Raises:
            CompactedError: the revision has been compacted.
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
        """Delete a key, a range or a prefix, in one revision (etcd: DeleteRange).

        Deleting nothing is not an error, and makes no revision.

        Args:
            key, end, prefix: which keys, as for :meth:`range`.
            prev: also return the pairs that were deleted.
            request_id: a name for this write, as for :meth:`put`.
            timeout: seconds; ``None`` is the handle's default.

        Returns:
            How many keys were deleted, ``prev`` if it was asked for, and the revision of the store afterwards.

        Raises:
            RequestTooLarge: the range holds more keys than one request may delete; nothing was deleted.
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
        """Run ``success`` if all comparisons hold, otherwise ``failure``: atomically, in one revision (etcd: Txn).

        ::

            done = kv.txn(
                compare=[Compare.mod_revision("balance") == seen.mod_revision],
                success=[Op.put("balance", "90")],
                failure=[Op.get("balance")],
            )
            if not done.succeeded:
                seen = done.responses[0]

        Args:
            compare: conditions made by ``Compare``; an empty list holds.
            success, failure: operations made by ``Op``, run in order; a read sees the writes before it.

            request_id: a name for this write, as for :meth:`put`.
            timeout: seconds; ``None`` is the handle's default.

        Returns:
            Whether the comparisons held, and one result for each operation that ran.

        Raises:
            LeaseNotFound: an operation names a lease that does not exist; nothing was changed.
            CompactedError, FutureRevisionError: an operation reads at such a revision; nothing was changed.
        """
        return self._run(self._view.txn(compare, success, failure, request_id), timeout)

    def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history below a revision (etcd: Compact). The present value of each key stays.

        Args:
            revision: the oldest revision that can still be read afterwards.
            timeout: seconds; ``None`` is the handle's default.

        Raises:
            CompactedError: the history below it is forgotten already.
            FutureRevisionError: the revision does not exist yet.
        """
        return self._run(self._view.compact(revision), timeout)

    def revision(self, *, timeout: float | None = None) -> int:
        """The current revision of the store, by a linearizable read.

        Args:
            timeout: seconds; ``None`` is the handle's default.
        """
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
        """Watch every change of a key, a range or a prefix, in order and without gaps (etcd: Watch).

        The start is fixed before this returns: after everything that had been written when it was called, or at the
        given revision, which may be past (unless compacted) or future.

        ::

            jobs = kv.range(prefix="jobs/")
            with kv.watch(prefix="jobs/", start_revision=jobs.revision + 1) as watch:
                for event in watch:
                    print(event.type, event.kv.key, event.kv.value)

        Args:
            key, end, prefix: which keys, as for :meth:`range`.
            start_revision: the first revision to see; ``None`` for the one that comes next.
            prev: events carry the pair that was there before.
            only: ``"put"`` or ``"delete"`` to see only those events; ``None`` for both.
            timeout: seconds for fixing the start, ``None`` is the handle's default; iterating waits without limit, and
                :meth:`Watch.next` has a timeout of its own.

        Raises:
            Unavailable: the start could not be fixed in time, or this process has as many watches as it may.
        """
        self._check_open()
        deadline = clock() + self._seconds(timeout)
        asked = watch_spec(self._view, key, end, prefix, start_revision, prev, only)
        self._hub(deadline - clock())
        assert self._share is not None
        watch = Watch(self._share, self._view, asked, deadline - clock())
        self._watches.add(watch)
        return watch

    def cached(self, prefix: Key, *, max_bytes: int | None = None, timeout: float | None = None) -> Cached:
        """Make a read-only copy of a prefix in this process, kept up to date by a watch; a read takes microseconds.

        The copy is loaded when this returns. It shows one revision of the store after another, in order and each as a
        whole, but lags a little: it is not linearizable. ``get(key, at_least=revision)`` waits until it has reached a
        revision. Close it, or use it in a ``with`` statement; it also ends with this handle, and when it is collected.

        ::

            with kv.cached("config/") as config:
                config.get("config/rate")

        Args:
            prefix: which keys; ``b""`` is everything that this handle sees.
            max_bytes: the most memory that it may take, at about ``len(key) + len(value) + 400`` bytes for each key;
                ``None`` is 1 GiB.
            timeout: seconds for loading it; ``None`` is the handle's default.

        Raises:
            RequestTooLarge: the prefix takes more than ``max_bytes``.
        """
        from .cached import open_copy

        return open_copy(self, prefix, max_bytes, self._seconds(timeout))

    def lease(
        self, ttl: float, *, keep_alive: bool = True, bound_to: Any = None, timeout: float | None = None
    ) -> Lease:
        """Make a lease: keys that are attached to it are deleted when it ends (etcd: LeaseGrant, LeaseKeepAlive).

        ::

            with kv.lease(10) as lease:
                kv.put("workers/7", "10.0.0.7:5000", lease=lease)
                work_until(lease.lost)

        Args:
            ttl: seconds. The lease ends when the cluster has not heard from its holder for that long: not earlier, and
                soon after. Choose it longer than an election, which takes one to three seconds.
            keep_alive: keep it alive in the background as long as the returned object exists; otherwise it ends after
                ``ttl``.
            bound_to: whose death ends it before its TTL. ``"process"``: of this process, at once, if a member on its
                node can see that, and no other process has used the lease by then; this is the default of a lease that
                is kept alive. The handle of an actor: of that actor, once Ray says that it is dead for good. ``"job"``
                and ``"driver"``: of this process's Ray job, or its driver. ``"ttl"``: nobody's, so that a process that
                is started again can adopt it.
            timeout: seconds; ``None`` is the handle's default.

        Raises:
            InvalidArgument: the TTL is too short or too long, or ``bound_to`` is nothing that a lease can be bound to.
            Unavailable: also if Ray does not say whether this actor can be restarted.
        """
        keep = check.flag("keep_alive", keep_alive)
        owned, life = settled(binding_of(bound_to, keep), self._seconds(timeout))
        granted = self._run(grant_steps(self._view, ttl, clock() + self._seconds(timeout) / 2, bool(owned)), timeout)
        return Lease(self._derive(self._view), self._hub(0), granted, keep, life)

    def leased_txn(
        self, ttl: float, make: Callable[[int], Op], *, bound_to: Any = None, timeout: float | None = None
    ) -> tuple[Lease | None, TxnResult]:
        """Make a lease and run a transaction that uses it, in one write: both happen, or neither.

        ::

            free = [Compare.version("me") == 0]
            lease, result = kv.leased_txn(10, lambda id: Op.txn(free, [Op.put("me", "here", lease=id)]))

        Args:
            ttl: seconds, as for :meth:`lease`. The lease is kept alive as long as the returned object exists.
            make: is given the lease's id and returns ``Op.txn(...)``. The lease is made before its success branch runs;
                if the comparisons do not hold, no lease is made.
            bound_to: whose death ends the lease, as for :meth:`lease`.
            timeout: seconds; ``None`` is the handle's default.

        Returns:
            The lease, or ``None`` if the comparisons did not hold, and the result of the transaction. The transaction
            runs once, however long it takes: if it took longer than the TTL, the returned lease is lost already, and
            its keys go with it.

        Raises:
            InvalidArgument: the TTL is too short or too long, or ``make`` returns something else than ``Op.txn(...)``.
        """
        owned, life = settled(binding_of(bound_to), self._seconds(timeout))
        granted, result = self._run(leased_txn_steps(self._view, ttl, make, bool(owned)), timeout)
        if granted is None:
            return None, result
        return Lease(self._derive(self._view), self._hub(0), granted, True, life), result

    def leases(self, *, timeout: float | None = None) -> list[LeaseInfo]:
        """All leases of the cluster, of all clients (etcd: LeaseLeases); linearizable.

        Args:
            timeout: seconds; ``None`` is the handle's default.
        """
        return self._run(list_lease_steps(self._view), timeout)

    def time_to_live(self, lease: Any, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """The TTL of a lease, and the seconds that it has left (etcd: LeaseTimeToLive); linearizable.

        Args:
            lease: the ``Lease``, or the id of the lease.
            keys: also list the keys that are attached to it, as far as this handle sees them.
            timeout: seconds; ``None`` is the handle's default.

        Raises:
            LeaseNotFound: it does not exist, or has ended.
        """
        return self._run(lease_info_steps(self._view, lease, keys), timeout)

    def _lease_infos(self, leases: Sequence[int]) -> dict[int, LeaseInfo]:
        """Those of these leases that exist, with their owners, by id."""
        return self._run(lease_owner_steps(self._view, leases), None)

    def close(self) -> None:
        """Close this handle, and end its watches and local copies.

        Calls of other threads that are open on it go on. The process stays connected for a while after its last handle,
        watch and lease, so that the next ``connect`` is cheap. Closing twice is not an error.
        """
        if self._aio is not None:
            self._aio._release()
            self._aio = None
        self._release()

    def __enter__(self: C) -> C:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
