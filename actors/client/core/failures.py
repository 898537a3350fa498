"""From the state machine's reasons for a failure to the public errors: one table."""

from __future__ import annotations

from ....errors import (
    AuthFailed,
    CompactedError,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseNotFound,
    NoSpace,
    NotCaughtUp,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    Unavailable,
)
from ....schema.answers import Failed, Reason
from ....schema.frames import Refusal, Refused

_KINDS: dict[Reason, tuple[type[KeeperError], str]] = {
    Reason.LEASE_NOT_FOUND: (LeaseNotFound, "the lease does not exist, or has expired"),
    Reason.LEASE_EXISTS: (InvalidArgument, "a lease with that id exists"),
    Reason.KEY_NOT_FOUND: (InvalidArgument, "KEEP needs a key that exists"),
    Reason.TOO_LARGE: (RequestTooLarge, "the request is over a limit of the cluster"),
    Reason.INVALID: (InvalidArgument, "the cluster refuses the request"),
    Reason.NO_SPACE: (NoSpace, "the cluster is read-only: a member is running out of disk space"),
    Reason.FULL: (Unavailable, "a table of the cluster is full"),
    Reason.NOT_CAUGHT_UP: (NotCaughtUp, "the member has not caught up with the leader yet"),
    Reason.NO_QUORUM: (Unavailable, "too few reachable voters would be left"),
    Reason.CHANGED: (Unavailable, "what the request was based on has been changed meanwhile"),
    Reason.BELOW_MARK: (RequestTimeout, "the write was given up before it was answered"),
    Reason.NO_USER: (AuthFailed, "this call needs a user: connect(user=..., password=...)"),
    Reason.BAD_TOKEN: (AuthFailed, "the user's password was changed, the user deleted, or its token has ended"),
    Reason.DENIED: (PermissionDenied, "the user may not do this"),
    Reason.AUTH: (InvalidArgument, "the users and roles cannot be changed like this"),
    Reason.SESSION_EXPIRED: (SessionExpired, "the session expired while the call was open"),
}


_UNREMEMBERED = (Reason.FULL, Reason.NO_USER, Reason.BAD_TOKEN)


def failure(failed: Failed, *, maybe_applied: bool) -> KeeperError:
    """The public error for a failed answer of the state machine.

    A failure that the session remembers is final: every copy of the write gets the same answer, so ``applied`` is
    ``False``. FULL is not remembered, nor is a refusal of the token: if another copy may be in flight
    (``maybe_applied``), the outcome is unknown.
    """
    error = _failure(failed, maybe_applied)
    error.reason = failed.reason
    if failed.reason is Reason.AUTH:
        error.detail = failed.detail
    return error


_REFUSALS: dict[Refusal, tuple[type[KeeperError], Reason]] = {
    Refusal.NO_USER: (AuthFailed, Reason.NO_USER),
    Refusal.BAD_TOKEN: (AuthFailed, Reason.BAD_TOKEN),
    Refusal.WRONG_PASSWORD: (AuthFailed, Reason.BAD_TOKEN),
    Refusal.DENIED: (PermissionDenied, Reason.DENIED),
}


def denial(refused: Refused) -> KeeperError | None:
    """The public error for a frame that was refused because of who sent it; ``None`` for any other refusal. The frame
    had no effect."""
    if refused.refusal not in _REFUSALS:
        return None
    kind, reason = _REFUSALS[refused.refusal]
    error = kind(refused.message or reason.name)
    error.reason = reason
    return error


def _failure(failed: Failed, maybe_applied: bool) -> KeeperError:
    if failed.reason is Reason.COMPACTED:
        return CompactedError(failed.detail)
    if failed.reason is Reason.FUTURE_REVISION:
        return FutureRevisionError(failed.message or f"the revision is in the future: the newest is {failed.detail}")
    kind, text = _KINDS[failed.reason]
    unknown = failed.reason in (Reason.BELOW_MARK, Reason.SESSION_EXPIRED) or (
        failed.reason in _UNREMEMBERED and maybe_applied
    )
    return kind(failed.message or text, applied=None if unknown else False)
