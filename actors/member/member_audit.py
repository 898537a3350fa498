"""What a member writes into the audit log: denied calls, and changes of users, roles, members and settings.

A change is logged by the leader that proposed it, with its outcome, once it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from ...schema.answers import Answer, Failed, Reason
from ...schema.auth_operations import AskAuth, AskRole, AskRoles, AskUser, AskUsers, AuthOperation, AuthProblem
from ...schema.call_rights import RULES, Rule
from ...schema.commands import (
    Administration,
    Caller,
    ClientWrites,
    Configure,
    EndDeadSessions,
    HashContent,
    RegisterMember,
)
from ...schema.frames import BareRequest, Login, Refusal, Refused
from ...schema.key_range import KeyRange
from ...schema.key_spaces import names_of
from ...schema.operations import Operation
from ...schema.operator_frames import ChangeMembership
from ..audit import AuditLog
from .request_source import ACTOR_CALL

Applied = Callable[[tuple[Answer, ...] | Refused], None]

_DENIED = {Reason.NO_USER, Reason.BAD_TOKEN, Reason.DENIED}
_REFUSED = {Refusal.NO_USER, Refusal.BAD_TOKEN, Refusal.DENIED, Refusal.WRONG_PASSWORD}
_ASKS = (AskAuth, AskUser, AskUsers, AskRole, AskRoles)
_ROUTINE = (RegisterMember, HashContent, EndDeadSessions)
"""Administration that members do on their own, again and again."""


class Audit:
    """The audit lines of one member. Any thread."""

    def __init__(self, cluster: str, member: str) -> None:
        self._log = AuditLog(cluster, member)

    # -- denials ------------------------------------------------------------------------------------------------------

    def refused(self, token: bytes, request: BareRequest, refused: Refused, source: str) -> None:
        """A frame was refused where it arrived: its token says nothing that can be trusted."""
        if refused.refusal in _REFUSED:
            self._log.denied("?" if token else "", source, type(request).__name__, refused.refusal.name)

    def refused_control(self, token: bytes, what: str, refused: Refused) -> None:
        """A control call of an actor was refused."""
        self._log.denied("?" if token else "", ACTOR_CALL, what, refused.refusal.name)

    def refused_call(self, caller: Caller | None, request: BareRequest, refused: Refused, source: str) -> None:
        """A frame of a known user was refused."""
        self._log.denied(_user(caller), source, type(request).__name__, refused.refusal.name)

    def refused_login(self, request: Login, refused: Refused, source: str) -> None:
        """Somebody did not know a password."""
        if refused.refusal in _REFUSED:
            self._log.denied(request.user, source, "Login", refused.refusal.name)

    def refused_read(self, caller: Caller | None, keys: KeyRange, failed: Failed, source: str) -> None:
        """Keys were not to be read."""
        self._log.denied(_user(caller), source, f"Range of {_shown(keys)}", failed.reason.name)

    # -- writes and changes -------------------------------------------------------------------------------------------

    def wrote(self, commands: ClientWrites, answers: Sequence[Answer], caller: Caller | None, source: str) -> None:
        """Some writes were applied: what of them was denied, and what they changed of users and roles."""
        for operation, answer in zip([write.operation for write in commands.writes], answers, strict=False):
            if isinstance(answer, Failed) and answer.reason in _DENIED:
                self._log.denied(_user(caller), source, _what(operation), answer.reason.name)
            elif isinstance(operation, _AUTH) and not isinstance(operation, _ASKS):
                self._log.changed(_user(caller), source, _what(operation), _outcome(answer))

    def of_change(
        self, change: Administration | ChangeMembership, caller: Caller | None, source: str, done: Applied
    ) -> Applied:
        """``done``, after a line about a change of members or settings."""
        if isinstance(change, _ROUTINE):
            return done
        what = f"{type(change).__name__}{'' if isinstance(change, Configure) else f' {change}'}"

        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            if isinstance(result, Refused):
                self._log.changed(_user(caller), source, what, result.refusal.name)
            else:
                self._log.changed(_user(caller), source, what, _outcome(result[0]) if result else "done")
            done(result)

        return outcome


_AUTH = get_args(AuthOperation)


def _user(caller: Caller | None) -> str:
    if caller is None:
        return ""
    return caller.user or "(the cluster itself)"


def _what(operation: Operation) -> str:
    """An operation for people: with the names that it is about, never with values, passwords or keys of signatures."""
    parts = [type(operation).__name__]
    for field in ("name", "role"):
        if text := getattr(operation, field, ""):
            parts.append(f"{field}={text!r}")
    if (permission := getattr(operation, "permission", None)) is not None:
        parts.append(f"{permission.access.name} {permission.names.key!r}..{permission.names.end!r}")
    elif (names := getattr(operation, "names", None)) is not None:
        parts.append(f"{names.key!r}..{names.end!r}")
    elif RULES[type(operation)] is Rule.KEYS:
        keys = getattr(operation, "keys", None) or KeyRange(getattr(operation, "key", b""))
        parts.append(_shown(keys))
    return " ".join(parts)


def _shown(keys: KeyRange) -> str:
    names = names_of(keys) or keys
    return repr(names.key) if names.end is None else f"{names.key!r}..{names.end!r}"


def _outcome(answer: Answer) -> str:
    if not isinstance(answer, Failed):
        return "done"
    return AuthProblem(answer.detail).name if answer.reason is Reason.AUTH else answer.reason.name
