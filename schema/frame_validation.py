"""The checks of whole frames before anything happens: those that a client makes too, because a member trusts no client,
and those that our own clients do not need.

One table has a check for each type of frame, and one for each administrative command, so that none is forgotten. The
types of the fields have already ensured, in decoding, that numbers fit into 64 bits and times are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import InvalidArgument, RequestTooLarge, SpecError
from ..limits import (
    EVENTS_PER_COMMAND,
    MAX_CHANGES,
    MAX_EVENT_LETTERS,
    MAX_EXPIRIES_AT_ONCE,
    MAX_IDENTITY_LETTERS,
    MAX_LEASES_IN_FRAME,
    MAX_MEMBER_ID,
    MAX_NAME_BYTES,
    MAX_SETTINGS_BYTES,
    MAX_TOKEN_BYTES,
    MAX_USER_NAME_BYTES,
    MAX_WATCHES_PER_STREAM,
    WATCH_CREATES_AT_ONCE,
    Limits,
    decode_settings,
)
from ..spec import check
from .client_identity import ClientIdentity, is_bounded
from .commands import (
    Configure,
    EndDeadSessions,
    HashContent,
    RecordEvents,
    RegisterMember,
    ReserveMember,
    RetireMember,
    SetAlarm,
)
from .frames import (
    AskLeases,
    AskTerm,
    AsUser,
    Close,
    KeepAlive,
    KeepLeases,
    Login,
    LoneRead,
    MonitorProcess,
    Open,
    Reads,
    Request,
    WatchPoll,
    Writes,
)
from .operations import Range
from .operator_frames import (
    Administer,
    AskClients,
    AskEvents,
    AskFigures,
    AskLoad,
    AskStatus,
    AwaitCompaction,
    BeginBackup,
    ChangeMembership,
    Defragment,
    EndBackup,
    HashKeys,
    ReadBackup,
)
from .validation import check_operation, check_range, check_request_id

Check = Callable[[Any, Limits], None]


def check_request(request: Request, limits: Limits) -> None:
    """Check one frame.

    Raises:
        RequestTooLarge: it exceeds a limit.
        InvalidArgument: a value is never valid.
    """
    FRAME_CHECKS[type(request)](request, limits)


def _at_most(what: str, count: int, most: int) -> None:
    if count > most:
        raise RequestTooLarge(f"{what}: at most {most}, not {count}")


def _name(what: str, name: bytes | str, most: int = MAX_NAME_BYTES) -> None:
    _at_most(f"bytes of {what}", len(name), most)
    if not name:
        raise InvalidArgument(f"{what} is empty")


def _nothing(request: Any, limits: Limits) -> None:
    """The types check everything."""


def _writes(request: Writes, limits: Limits) -> None:
    _at_most("requests in a frame", len(request.commands.writes), limits.max_batch_requests)
    for write in request.commands.writes:
        check_operation(write.operation, limits)
        check_request_id(write.request_id)


def _reads(request: Reads, limits: Limits) -> None:
    _at_most("requests in a frame", len(request.reads), limits.max_batch_requests)
    for read in request.reads:
        check_range(read.range, limits)


def _lone_read(request: LoneRead, limits: Limits) -> None:
    check_range(request.read.range, limits)


def _open(request: Open, limits: Limits) -> None:
    _name("a session's nonce", request.nonce)
    _identity(request.client)


def _identity(client: ClientIdentity | None) -> None:
    if client is not None and not is_bounded(client):
        raise RequestTooLarge(f"a client says of itself at most {MAX_IDENTITY_LETTERS} letters in each field")


def _leases(request: KeepLeases | AskLeases, limits: Limits) -> None:
    _at_most("leases in a frame", len(request.leases), MAX_LEASES_IN_FRAME)
    if isinstance(request, AskLeases):
        _at_most("leases that end first", request.most, MAX_LEASES_IN_FRAME)


def _poll(request: WatchPoll, limits: Limits) -> None:
    _name("a stream's id", request.stream)
    _at_most("watches that a poll creates", len(request.create), WATCH_CREATES_AT_ONCE)
    _at_most("watches that a poll cancels", len(request.cancel), MAX_WATCHES_PER_STREAM)
    for create in request.create:
        check_range(Range(create.keys, create.start_revision), limits)


def _changes(request: ChangeMembership, limits: Limits) -> None:
    if not 0 < len(request.changes) <= MAX_CHANGES:
        raise InvalidArgument(f"a change of membership has 1 to {MAX_CHANGES} steps")
    for change in request.changes:  # ids are assigned one after the other: a very high one would use them up
        if change.member > MAX_MEMBER_ID:
            raise InvalidArgument(f"{change.member} is not the id of a member")
    _at_most("bytes of a change's context", len(request.context), MAX_NAME_BYTES)


def _login(request: Login, limits: Limits) -> None:
    _at_most("letters of a user's name", len(request.user), MAX_USER_NAME_BYTES)
    _at_most("bytes of a token", len(request.token), MAX_TOKEN_BYTES)
    _at_most("letters of a password", len(request.password), MAX_NAME_BYTES)


def _as_user(request: AsUser, limits: Limits) -> None:
    _at_most("bytes of a token", len(request.token), MAX_TOKEN_BYTES)
    _identity(request.client)
    check_request(request.request, limits)


def _backup(request: ReadBackup | EndBackup, limits: Limits) -> None:
    _name("a backup's id", request.snapshot)


def _administer(request: Administer, limits: Limits) -> None:
    COMMAND_CHECKS[type(request.command)](request.command, limits)


def _configure(command: Configure, limits: Limits) -> None:
    for data in (command.settings, command.based_on or b""):
        _at_most("bytes of settings", len(data), MAX_SETTINGS_BYTES)
    try:
        settings = decode_settings(command.settings)
        check("settings", settings.timings, settings.limits)
    except (msgspec.MsgspecError, RecursionError, SpecError) as error:
        raise InvalidArgument(f"invalid settings: {error}") from None


def _register(command: RegisterMember, limits: Limits) -> None:
    _at_most("letters of a member's place", len(command.pin) + len(command.base), MAX_NAME_BYTES)
    if command.version < 1:
        raise InvalidArgument(f"{command.version} is not a version of commands")


def _reserve(command: ReserveMember, limits: Limits) -> None:
    _name("a reservation's nonce", command.nonce)
    _at_most("letters of a member's place", len(command.pin) + len(command.base), MAX_NAME_BYTES)


def _alarm(command: SetAlarm, limits: Limits) -> None:
    _at_most("letters of an alarm", len(command.message), MAX_NAME_BYTES)


def _dead_sessions(command: EndDeadSessions, limits: Limits) -> None:
    _at_most("sessions of dead processes", len(command.sessions), MAX_EXPIRIES_AT_ONCE)


def _events(command: RecordEvents, limits: Limits) -> None:
    _at_most("events", len(command.events), EVENTS_PER_COMMAND)
    for event in command.events:
        _at_most("letters of an event", len(event.kind) + len(event.text), MAX_EVENT_LETTERS + MAX_IDENTITY_LETTERS)
        _at_most("bytes of an event's id", len(event.id), MAX_IDENTITY_LETTERS)


FRAME_CHECKS: dict[type, Check] = {
    Writes: _writes,
    Reads: _reads,
    Open: _open,
    AskClients: _nothing,
    AskEvents: _nothing,
    KeepAlive: _nothing,
    Close: _nothing,
    AskStatus: _nothing,
    AskFigures: _nothing,
    AskLoad: _nothing,
    KeepLeases: _leases,
    AskLeases: _leases,
    WatchPoll: _poll,
    Administer: _administer,
    ChangeMembership: _changes,
    HashKeys: _nothing,
    AwaitCompaction: _nothing,
    Defragment: _nothing,
    Login: _login,
    AsUser: _as_user,
    BeginBackup: _nothing,
    ReadBackup: _backup,
    EndBackup: _backup,
    MonitorProcess: _nothing,
    LoneRead: _lone_read,
    AskTerm: _nothing,
}
"""By type of frame."""

COMMAND_CHECKS: dict[type, Check] = {
    Configure: _configure,
    RegisterMember: _register,
    ReserveMember: _reserve,
    RetireMember: _nothing,
    SetAlarm: _alarm,
    HashContent: _nothing,
    EndDeadSessions: _dead_sessions,
    RecordEvents: _events,
}
"""By administrative command."""
