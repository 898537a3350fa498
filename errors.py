"""All errors that RayKeeper raises, in one tree under :class:`KeeperError`.

``applied`` tells what became of a write that ended in the error: ``False`` means that it had no effect and never will;
``None`` means that the outcome is unknown (it may have taken effect, or may still). No error is raised for a write that
is known to have taken effect. Errors can be pickled, because they cross process borders as results of Ray tasks.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KeeperError(Exception):
    """Base class of all errors of RayKeeper.

    Attributes:
        applied: ``False`` if the request had no effect, ``None`` if its outcome is unknown.
        reason: why the state machine refused it (``schema.answers.Reason``), or FULL if this process has too many
            requests open already; ``None`` for other errors.
        remedy: what to try, for people; the same for all errors of a class.
        detail: with ``reason`` AUTH, which operation on users or roles failed (``schema.auth_operations.AuthProblem``).
    """

    remedy: ClassVar[str] = "read the message; if it does not help, report it with the log (`raykeeper logs`)"

    applied: bool | None = False
    reason: int | None = None
    detail: int = 0

    def __init__(self, message: str = "", *, applied: bool | None = False) -> None:
        super().__init__(message)
        self.applied = applied

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[KeeperError], args: tuple[Any, ...], state: dict[str, Any]) -> KeeperError:
    """Restore a pickled error without running its constructor, whose signature differs from class to class."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ClusterNotFound(KeeperError):
    """No cluster of that name runs in the Ray cluster, or no Ray cluster can be reached."""

    remedy = "check the name, and the Ray (`--address`, `RAY_ADDRESS`); `raykeeper up` starts a cluster"


class ClusterMismatch(KeeperError):
    """A name, a cluster id or a data directory contradicts what is already there."""

    remedy = "point the spec at the data of this cluster, or give the other one up (`raykeeper down --destroy --id`)"


class InvalidArgument(KeeperError, ValueError):
    """An argument has the wrong type, or a value that is never valid."""

    remedy = "correct the argument that the message names"


class RequestTooLarge(KeeperError):
    """A request exceeds a limit of ``raykeeper.limits``; it was refused and had no effect."""

    remedy = "split the request, or raise the limit that the message names (`raykeeper config set`)"


class Unavailable(KeeperError):
    """No quorum could be reached within the timeout, or the cluster is overloaded."""

    remedy = (
        "wait and try again; `raykeeper status` says which member does not serve and why, `raykeeper doctor` "
        "what to mend"
    )


class MembersMissing(Unavailable):
    """A cluster is known to exist, but too little of it was found to start it; no cluster was created in its place."""

    remedy = "start the nodes that the message names, then again `raykeeper up`; if they are lost for good, restore"


class RequestTimeout(KeeperError):
    """No answer came within the timeout; a write may or may not have taken effect (see ``applied``)."""

    remedy = (
        "read whether it took effect before you repeat it, or repeat it under the same `request_id`; then as "
        "for Unavailable"
    )


class CompactedError(KeeperError):
    """The requested revision has been compacted.

    Attributes:
        compact_revision: revisions below this one are no longer available.
    """

    remedy = "read or watch from `compact_revision` on; load the present state first"

    def __init__(self, compact_revision: int, *, applied: bool | None = False) -> None:
        super().__init__(f"revisions below {compact_revision} are compacted", applied=applied)
        self.compact_revision = compact_revision


class FutureRevisionError(KeeperError):
    """The requested revision does not exist yet."""

    remedy = "ask for a revision that exists: `kv.revision()` is the newest"


class LeaseNotFound(KeeperError):
    """The lease does not exist, or has expired."""

    remedy = "grant a new lease; keep it alive, or give it a longer TTL"


class LeaseLost(KeeperError):
    """A lease is no longer guaranteed to be alive."""

    remedy = "stop what relies on the lease, then make a new one"


class LockLost(KeeperError):
    """The lock is no longer held under the token that guarded the request."""

    remedy = "stop the work that the lock guards, and acquire it again"


class TransactionConflict(KeeperError):
    """What the function of ``kv.atomically`` had read was changed by others before it could write, in each of its runs,
    until the time was over or its runs were used up. Nothing was written."""

    remedy = "read fewer keys or smaller ranges, give it a longer timeout, or have fewer processes change the same keys"


class ForkedProcess(KeeperError):
    """This process is the forked child of one that uses Ray, in which neither Ray nor anything built on it works.

    Start the child with ``spawn`` or ``forkserver`` instead and pass it a handle, or connect there:
    ``multiprocessing.get_context("spawn")``, ``DataLoader(..., multiprocessing_context="spawn")``.
    """

    remedy = "start processes by `spawn` or `forkserver`, and connect in the child"

    def __init__(self, message: str = "", *, applied: bool | None = False) -> None:
        super().__init__(message or _FORKED, applied=applied)


class ReentrantCall(KeeperError):
    """The call came from a signal handler or a destructor that interrupted RayKeeper's own work on the same thread. It
    would have waited forever for that work, so it was refused. It had no effect.

    Set a flag there, or hand the work to another thread.
    """

    remedy = "set a flag in the handler, and call from another thread or later"

    def __init__(self, message: str = "", *, applied: bool | None = False) -> None:
        super().__init__(message or _REENTRANT, applied=applied)


_REENTRANT = (
    "a signal handler or a destructor has interrupted RayKeeper in the middle of its work, and cannot wait for it: "
    "call from another thread, or later"
)

_FORKED = (
    "this process was forked from one that uses Ray, and Ray does not work in a forked child: start it with the "
    '"spawn" method (multiprocessing.get_context("spawn"), DataLoader(multiprocessing_context="spawn")), pass it the '
    "handle, or connect there"
)


class SessionExpired(KeeperError):
    """The client's session ended while the call was in progress: its outcome is unknown, and it is not sent again."""

    remedy = "read whether it took effect before you repeat it; repeat it under a `request_id` where that matters"


class AuthFailed(KeeperError):
    """The call needs a user and names none, or the user's password is wrong or was changed."""

    remedy = (
        "give a user and its password (`--user`, `connect(user=...)`); after a change of the password connect again"
    )


class PermissionDenied(KeeperError):
    """The user may not do this."""

    remedy = "have an administrator grant the role or permission (`raykeeper role grant-permission`)"


class NoSpace(KeeperError):
    """The cluster refuses puts because a member runs out of disk space; deletes and compaction still work."""

    remedy = (
        "delete keys, compact (`raykeeper compact --physical`), defragment, or raise `quota_bytes`; the "
        "alarm ends by itself"
    )


class NotCaughtUp(KeeperError):
    """A member cannot become a voter before it has caught up with the leader's log; try again later."""

    remedy = "wait, and promote it again; `raykeeper status` shows how far it lags"


class DataCorrupted(KeeperError):
    """Data on disk is damaged in a way that must not be repaired silently."""

    remedy = "keep the files; remove that member and add another, or restore a backup"


class DecodeError(KeeperError, ValueError):
    """A stored value is not of the expected kind: not text, or not readable by the handle's codec."""

    remedy = "read the raw bytes (`.raw`), or use the codec that wrote the value"


class SpecError(KeeperError):
    """A cluster spec is invalid.

    Attributes:
        source: the file the spec was read from, or a word for where it came from.
        field: dotted path of the invalid field; empty if it is the whole spec.
        expected: what would have been valid.
    """

    remedy = "correct the field that the message names; docs/configuration.md has what is valid"

    def __init__(self, source: str, field: str, expected: str) -> None:
        where = f"{source}: {field}" if field else source
        super().__init__(f"{where}: expected {expected}")
        self.source = source
        self.field = field
        self.expected = expected
