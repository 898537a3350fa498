"""What each call may be given by, while users are needed: the one table of it, for frames, commands and operations.

Where a rule is checked:

- of operations and commands where they are applied, by the users and roles as of that entry of the log
  (``store/state/permission_check.py``);
- of reads when they are read, by the users and roles that the member has applied, and once more if these changed
  meanwhile; of watches when they are made, and again whenever users or roles have changed
  (``actors/member/user_check.py``);
- that a frame has a valid token, where it arrives (the same file).

``tests/unit/schema/test_call_rights.py`` fails while a kind of message is not here.
"""

from __future__ import annotations

import enum

from . import auth_operations as auth
from . import commands, frames, operations, operator_frames


class Rule(enum.Enum):
    """Who may give a call."""

    OPEN = "anyone"
    """Needed before there can be a user, or tells nothing that is kept from anyone."""
    USER = "any user"
    SESSION = "the user whose session it is"
    PARTS = "who may do what it holds"
    """A frame or a transaction: each of its parts has a rule of its own."""
    KEYS = "who has the permission on its keys"
    LEASE = "who may write all keys of the lease"
    ROOT = "a user with the role root"
    SELF = "the user itself, or one with the role root"
    ROLE_HOLDER = "a user with that role, or with the role root"
    ADMINISTRATION = "a user with the role root, or the cluster itself"
    LEADER = "nobody: only leaders propose it, on their own"
    PROCESS = "a process of the Ray cluster"
    """Ray lets it call actors, so it may run code as the members' operating system user (docs/security.md)."""


RULES: dict[type, Rule] = {
    # frames
    frames.Writes: Rule.PARTS,
    frames.Reads: Rule.KEYS,
    frames.LoneRead: Rule.KEYS,
    frames.AskTerm: Rule.OPEN,
    frames.Open: Rule.USER,
    frames.KeepAlive: Rule.SESSION,
    frames.Close: Rule.SESSION,
    operator_frames.AskStatus: Rule.OPEN,
    operator_frames.AskEvents: Rule.ADMINISTRATION,
    operator_frames.AskClients: Rule.ADMINISTRATION,
    operator_frames.AskLoad: Rule.ADMINISTRATION,
    operator_frames.AskFigures: Rule.OPEN,
    frames.KeepLeases: Rule.USER,
    frames.MonitorProcess: Rule.SESSION,
    frames.AskLeases: Rule.USER,
    frames.WatchPoll: Rule.KEYS,
    operator_frames.Administer: Rule.ADMINISTRATION,
    operator_frames.ChangeMembership: Rule.ADMINISTRATION,
    operator_frames.HashKeys: Rule.ADMINISTRATION,
    operator_frames.Defragment: Rule.ADMINISTRATION,
    operator_frames.BeginBackup: Rule.ADMINISTRATION,
    operator_frames.ReadBackup: Rule.ADMINISTRATION,
    operator_frames.EndBackup: Rule.ADMINISTRATION,
    operator_frames.AwaitCompaction: Rule.USER,
    frames.Login: Rule.OPEN,
    frames.AsUser: Rule.PARTS,
    # commands
    commands.ByUser: Rule.PARTS,
    commands.ClientWrites: Rule.SESSION,
    commands.OpenSession: Rule.USER,
    commands.CloseSession: Rule.SESSION,
    commands.ExpireSessions: Rule.LEADER,
    commands.ExpireLeases: Rule.LEADER,
    commands.CheckpointLeases: Rule.LEADER,
    commands.RenewLeases: Rule.LEADER,
    commands.RenewSessions: Rule.LEADER,
    commands.PassTime: Rule.LEADER,
    commands.ForgetRequests: Rule.LEADER,
    commands.CompactHistory: Rule.LEADER,
    commands.Configure: Rule.ADMINISTRATION,
    commands.RegisterMember: Rule.ADMINISTRATION,
    commands.ReserveMember: Rule.ADMINISTRATION,
    commands.RetireMember: Rule.ADMINISTRATION,
    commands.SetAlarm: Rule.ADMINISTRATION,
    commands.HashContent: Rule.ADMINISTRATION,
    commands.EndDeadSessions: Rule.ADMINISTRATION,
    commands.RecordEvents: Rule.ADMINISTRATION,
    # operations
    operations.Put: Rule.KEYS,
    operations.Delete: Rule.KEYS,
    operations.Range: Rule.KEYS,
    operations.Txn: Rule.PARTS,
    operations.Compact: Rule.USER,
    operations.LeaseGrant: Rule.USER,
    operations.LeaseRevoke: Rule.LEASE,
    auth.UserAdd: Rule.ROOT,
    auth.UserDelete: Rule.ROOT,
    auth.UserSetPassword: Rule.ROOT,
    auth.UserGrantRole: Rule.ROOT,
    auth.UserRevokeRole: Rule.ROOT,
    auth.RoleAdd: Rule.ROOT,
    auth.RoleDelete: Rule.ROOT,
    auth.RoleGrantPermission: Rule.ROOT,
    auth.RoleRevokePermission: Rule.ROOT,
    auth.AuthEnable: Rule.ROOT,
    auth.AuthDisable: Rule.ROOT,
    auth.AskAuth: Rule.ROOT,
    auth.AskUser: Rule.SELF,
    auth.AskUsers: Rule.ROOT,
    auth.AskRole: Rule.ROLE_HOLDER,
    auth.AskRoles: Rule.ROOT,
}
"""By kind of message. Where etcd has a rule it is etcd's (``applierV3``, ``authMaintenanceServer``); where etcd asks
for nothing, not even a user (leases, compaction), we ask for a user."""

CONTROL_RULES: dict[str, Rule] = {
    "request": Rule.PARTS,
    "watch": Rule.PARTS,
    "append_entries": Rule.PROCESS,
    "request_vote": Rule.PROCESS,
    "install_snapshot": Rule.PROCESS,
    "status": Rule.OPEN,
    "member_spec": Rule.PROCESS,
    "identity": Rule.PROCESS,
    "lane": Rule.PROCESS,
    "own_token": Rule.PROCESS,
    "counters": Rule.PROCESS,
    "open": Rule.PROCESS,
    "campaign": Rule.PROCESS,
    "move_leader": Rule.PROCESS,
    "begin_backup": Rule.ADMINISTRATION,
    "backup_chunk": Rule.PROCESS,
    "end_backup": Rule.PROCESS,
    "stop": Rule.PROCESS,
}
"""By method of a member's actor. By lane and through a proxy's port there are frames alone. A proxy's relay, the Unix
socket that only processes of its own user may use (they could attach to Ray as well), reaches three: ``move_leader`` by
``RelayKind.MOVE_LEADER``, ``member_spec`` by ``RAY_VIEW``, ``lane`` by ``LANE``."""
