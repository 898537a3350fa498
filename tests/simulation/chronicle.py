"""What truly happened: the keys, their changes and the leases, replayed from the log by plain dicts as it is applied.

Every entry is taken in once, when the first member applies it. Whether a write had an effect is told by the revision in
its answer, so nothing is known here of sessions, repetitions or comparisons; what a change is, is written down again
here, without the store's code. Watches are held to this history, leases and locks to its times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from raykeeper.raft.messages import Entry, EntryKind
from raykeeper.schema.answers import Answer, DeleteAnswer, Done, Failed, Item, LeaseGranted, PutAnswer, TxnAnswer
from raykeeper.schema.auth_operations import AuthEnable, UserGrantRole, UserRevokeRole
from raykeeper.schema.commands import (
    ByUser,
    ClientWrites,
    Command,
    CompactHistory,
    EndDeadSessions,
    ExpireLeases,
    RenewLeases,
)
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Txn,
)
from simulation.checker import Violation

_decode = msgspec.msgpack.Decoder(Command).decode


class Change(NamedTuple):
    """One key's change. A deleted key's item has version 0 and no value."""

    deleted: bool
    item: Item
    prev: Item | None


class Ended(NamedTuple):
    """The end of a lease."""

    at: float
    """True time at which the first member applied it."""
    expired: bool
    """By the leader's count..."""
    dead: bool = False
    """... or with its process; otherwise it was revoked."""


def inside(keys: KeyRange, key: bytes) -> bool:
    """Whether a range has a key in it."""
    return key == keys.key if keys.end is None else keys.key <= key and (not keys.end or key < keys.end)


def _answered(operation: Txn, answer: TxnAnswer) -> list[tuple[Operation, Answer]]:
    """The operations of a transaction with their answers. One that does nothing may be a question what became of
    another one of that name, and have the answer of that."""
    branch = operation.success if answer.succeeded else operation.failure
    return list(zip(branch, answer.responses, strict=True)) if branch else []


class Chronicle:
    """The history of one run.

    Args:
        now: the true time.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.index = 0
        self.users_needed = False
        self.roles: dict[str, set[str]] = {}
        self.revision = 1
        self.compact_revision = 0
        self.compacted: list[tuple[float, int]] = []
        """When which revision was compacted..."""
        self.forgotten: list[tuple[float, int]] = []
        """... by a leader on its own."""
        self.first_made = 2
        self.made: list[float] = []
        """When each revision was made, from that one on."""
        self.requests: dict[bytes, float] = {}
        """When each request id was first seen in the log."""
        self.items: dict[bytes, Item] = {}
        self.changes: dict[int, list[Change]] = {}
        """By revision, in their order."""
        self.leases: dict[int, int] = {}
        """Those that live, with the log index of the last sign of life of each."""
        self.owners: dict[int, int] = {}
        """The session that owns a lease, of those that are owned."""
        self._session = 0
        self.granted: dict[int, float] = {}
        """When each was."""
        self.ended: dict[int, Ended] = {}
        self.revoked_by: dict[int, int] = {}

    def take_in(self, entry: Entry, answers: Sequence[Answer]) -> None:
        """An entry was applied by somebody, maybe not for the first time."""
        if entry.index <= self.index:
            return
        if entry.index != self.index + 1:
            raise Violation(f"entry {entry.index} is applied first behind {self.index}")
        self.index = entry.index
        if entry.kind is EntryKind.CONFIGURATION or not entry.data:
            return
        command = _decode(entry.data)
        if isinstance(command, ByUser):
            command = self._by_user(command, answers)
        if isinstance(command, ClientWrites):
            self._users(command, answers)
            self._session = command.session
            for write, answer in zip(command.writes, answers, strict=True):
                if write.request_id is not None:
                    self.requests.setdefault(write.request_id.name, self._now())
                self._write(write.operation, answer)
        elif isinstance(command, CompactHistory):
            if self.compact_revision < command.revision <= self.revision:
                self.compact_revision = command.revision
                self.compacted.append((self._now(), command.revision))
                self.forgotten.append((self._now(), command.revision))
        elif isinstance(command, (RenewLeases, ExpireLeases)) and isinstance(answers[0], Done):
            if isinstance(command, RenewLeases):
                for lease in command.leases:
                    if lease in self.leases:
                        self.leases[lease] = entry.index
                        self._used(lease, command.by)
            else:
                for expiry in command.leases:
                    if self.leases.get(expiry.id) == expiry.heard:
                        self._end_lease(expiry.id, expired=True)
                if answers[0].revision != self.revision:
                    raise Violation(
                        f"the end of leases {command.leases} led to revision {answers[0].revision}, not {self.revision}"
                    )

        elif isinstance(command, EndDeadSessions) and isinstance(answers[0], Done):
            for session in command.sessions:
                for lease in sorted(lease for lease, owner in self.owners.items() if owner == session):
                    self._end_lease(lease, expired=False, dead=True)
            if answers[0].revision != self.revision:
                raise Violation(f"a death led to revision {answers[0].revision}, not {self.revision}")

    def _used(self, lease: int, by: int) -> None:
        """Somebody has used a lease: who is not its owner makes it nobody's."""
        if self.owners.get(lease, by) != by:
            del self.owners[lease]

    def _by_user(self, command: ByUser, answers: Sequence[Answer]) -> Command:
        """A command of a user: without the role root, nothing of it takes effect. What is only answered again, because
        it took effect before, has an older revision."""
        if self.users_needed and "root" not in self.roles.get(command.caller.user, ()):
            for answer in answers:
                if getattr(answer, "revision", 0) > self.revision:
                    raise Violation(f"entry {self.index} of a user whose right was taken has had an effect: {answer}")
        return command.command

    def _users(self, command: ClientWrites, answers: Sequence[Answer]) -> None:
        """The users and roles, as they are after a command."""
        for write, answer in zip(command.writes, answers, strict=False):
            operation = write.operation
            if isinstance(answer, Failed):
                continue
            if isinstance(operation, UserGrantRole):
                self.roles.setdefault(operation.name, set()).add(operation.role)
            elif isinstance(operation, UserRevokeRole):
                self.roles.setdefault(operation.name, set()).discard(operation.role)
            elif isinstance(operation, AuthEnable):
                self.users_needed = True

    def _write(self, operation: Operation, answer: Answer) -> None:
        if isinstance(answer, Failed):
            return
        self._grants(operation, answer)
        if isinstance(answer, LeaseGranted):
            return
        revision = getattr(answer, "revision", 0)
        if revision > self.revision + 1:
            raise Violation(f"a write is at revision {revision}, behind {self.revision}: {operation}")
        if isinstance(operation, LeaseRevoke):
            if operation.id in self.leases:
                self._end_lease(operation.id, expired=False)
                if revision != self.revision:
                    raise Violation(f"a lease's end is at revision {revision}, not {self.revision}: {operation}")
        elif isinstance(operation, Compact):
            if operation.revision > self.compact_revision:
                self.compact_revision = operation.revision
                self.compacted.append((self._now(), operation.revision))
        elif revision == self.revision + 1:
            changes = self.changes[revision] = []
            self.made.append(self._now())
            self._run(operation, answer, revision, changes)
            self.revision = revision
            if not changes:
                raise Violation(f"revision {revision} without a change: {operation} -> {answer}")
        if isinstance(answer, TxnAnswer):
            self._revocations(operation, answer)

    def _grants(self, operation: object, answer: object) -> None:
        """Note the leases that were granted, alone or in a transaction; the answer may be a repeated one."""
        if isinstance(answer, TxnAnswer):
            assert isinstance(operation, Txn)
            for inner, response in _answered(operation, answer):
                self._grants(inner, response)
        elif isinstance(answer, LeaseGranted) and answer.id not in self.ended:
            assert isinstance(operation, LeaseGrant)
            if answer.id not in self.leases and operation.owned:
                self.owners[answer.id] = self._session
            self.leases.setdefault(answer.id, self.index)
            self.granted.setdefault(answer.id, self._now())

    def _revocations(self, operation: object, answer: TxnAnswer) -> None:
        """Note the leases that a transaction has ended; their keys are gone by now."""
        assert isinstance(operation, Txn)
        for inner, response in _answered(operation, answer):
            if isinstance(response, TxnAnswer):
                self._revocations(inner, response)
            elif isinstance(inner, LeaseRevoke) and inner.id in self.leases:
                if any(item.lease == inner.id for item in self.items.values()):
                    raise Violation(f"a lease has ended and its keys stay: {operation} -> {answer}")
                del self.leases[inner.id]
                self.owners.pop(inner.id, None)
                self.ended[inner.id] = Ended(self._now(), expired=False)

    def _run(self, operation: object, answer: object, revision: int, changes: list[Change]) -> None:
        if isinstance(operation, Put):
            assert isinstance(answer, PutAnswer)
            old = self.items.get(operation.key)
            if old is None and operation.lease is KEEP_LEASE:
                raise Violation(f"a key that is not there has a lease to keep: {operation} -> {answer}")
            lease = (old.lease if old else 0) if operation.lease is KEEP_LEASE else operation.lease
            value = operation.value if operation.value is not None else old.value if old else b""
            created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
            item = Item(operation.key, value, created, revision, version, lease)
            self.items[operation.key] = item
            if operation.lease:
                self._used(operation.lease, self._session)
            changes.append(Change(False, item, old))
        elif isinstance(operation, Delete):
            assert isinstance(answer, DeleteAnswer)
            self._delete([key for key in sorted(self.items) if inside(operation.keys, key)], revision, changes)
        elif isinstance(operation, Txn):
            assert isinstance(answer, TxnAnswer)
            branch = operation.success if answer.succeeded else operation.failure
            for inner, response in zip(branch, answer.responses, strict=True):
                self._run(inner, response, revision, changes)
        elif isinstance(operation, LeaseRevoke):
            self._delete(self._keys_of(operation.id), revision, changes)
        else:
            assert isinstance(operation, (Range, LeaseGrant))

    def _delete(self, keys: Sequence[bytes], revision: int, changes: list[Change]) -> None:
        for key in keys:
            changes.append(Change(True, Item(key, b"", 0, revision, 0, 0), self.items.pop(key)))

    def _keys_of(self, lease: int) -> list[bytes]:
        return [key for key in sorted(self.items) if self.items[key].lease == lease]

    def _end_lease(self, lease: int, *, expired: bool, dead: bool = False) -> None:
        """All keys of a lease go in one revision."""
        keys = self._keys_of(lease)
        if keys:
            self.revision += 1
            changes = self.changes[self.revision] = []
            self.made.append(self._now())
            self._delete(keys, self.revision, changes)
        del self.leases[lease]
        self.owners.pop(lease, None)
        self.ended[lease] = Ended(self._now(), expired, dead)
