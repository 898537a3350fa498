"""Whether a caller may give a command or an operation: the rules of ``schema/call_rights.py``, where they are applied.

The comparisons and operations of a transaction are all checked before it runs, those of the branch that will not run,
too (etcd: checkTxnAuth). To put a key with a lease, all keys of that lease must be writable: who may end a lease may
delete its keys (etcd: checkLeasePuts).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...schema.auth_operations import AskRole, AskUser
from ...schema.call_rights import RULES, Rule
from ...schema.commands import ClientWrites, CloseSession, Command, OpenSession
from ...schema.key_range import KeyRange
from ...schema.operations import Delete, LeaseRevoke, Operation, Put, Range, Txn
from .auth_table import Rights

_OF_SESSIONS = (ClientWrites, OpenSession, CloseSession)


def may_run(operation: Operation, rights: Rights) -> bool:
    """Whether a user may have an operation done, if it may write all keys of the leases that ``leases_of`` names."""
    if rights.is_root:
        return True
    if isinstance(operation, Put):
        keys = KeyRange(operation.key)
        return rights.may_write(keys) and (not operation.prev or rights.may_read(keys))
    if isinstance(operation, Range):
        return rights.may_read(operation.keys)
    if isinstance(operation, Delete):
        return rights.may_write(operation.keys) and (not operation.prev or rights.may_read(operation.keys))
    if isinstance(operation, Txn):
        return all(rights.may_read(each.keys) for each in operation.compare) and all(
            may_run(each, rights) for branch in (operation.success, operation.failure) for each in branch
        )
    if isinstance(operation, LeaseRevoke):
        return True
    if isinstance(operation, AskUser):
        return operation.name == rights.user
    if isinstance(operation, AskRole):
        return operation.name in rights.roles
    return RULES[type(operation)] is Rule.USER


def leases_of(operation: Operation) -> Iterator[int]:
    """The leases that an operation puts keys under, or ends: in all branches of a transaction."""
    if isinstance(operation, Put):
        if operation.lease:
            yield operation.lease
    elif isinstance(operation, LeaseRevoke):
        yield operation.id
    elif isinstance(operation, Txn):
        for branch in (operation.success, operation.failure):
            for each in branch:
                yield from leases_of(each)


def may_command(command: Command, rights: Rights | None) -> bool:
    """Whether a caller may give a command: each write of a session's, and whose session it is, is checked where it
    runs.

    Args:
        rights: the user's; ``None`` for the cluster itself, which administers and has no sessions.
    """
    if rights is None:
        return RULES[type(command)] is Rule.ADMINISTRATION
    return rights.is_root or isinstance(command, _OF_SESSIONS)


def needs_caller(command: Command) -> bool:
    """Whether a command must name its caller: all but those that leaders propose on their own."""
    return RULES[type(command)] is not Rule.LEADER
