"""Users: all clients call as one user, whose right comes and goes, by the hand of root.

Who may write as of which entry is told by the chronicle, which replays the log without the store's code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from raykeeper.actors.member.events import Proposal
from raykeeper.actors.member.tokens import make_token
from raykeeper.schema.auth_operations import (
    Access,
    AuthEnable,
    AuthOperation,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
    UserSetPassword,
)
from raykeeper.schema.commands import ByUser, Caller, ClientWrite, ClientWrites, Command, OpenSession, encode
from raykeeper.schema.operations import KeyRange

if TYPE_CHECKING:
    from raykeeper.store.state.machine import State
    from simulation.world import World

KEY = b"k" * 32
WRITER = "writer"
UNTIL = 1e11
_AS_USER = 16


class UserTender:
    """Root: makes the users, and then grants the writer its role and takes it away, again and again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.random("users")
        self.token = b""
        self.changes = 0
        self._sequence = 0

    def start(self) -> None:
        if self.world.profile.users:
            self.world.after(0.3, self._tend)

    @property
    def settled(self) -> bool:
        """Whether the writer has its right, for the last reads."""
        return not self.world.profile.users or bool(self._state and self._may_write(self._state) and self.token)

    def wrapped(self, frame: bytes) -> bytes:
        """A client's frame, with its user's token."""
        return msgspec.msgpack.encode((_AS_USER, self.token, msgspec.Raw(frame))) if self.token else frame

    @property
    def _state(self) -> State | None:
        leader = self.world.leader()
        return None if leader is None or leader.process is None else leader.process.replica.state

    def _may_write(self, state: State) -> bool:
        users = state.users
        return users.enabled and WRITER in users.users and "root" in users.users[WRITER].roles

    def _tend(self) -> None:
        state = self._state
        if state is not None:
            self._next(state)
        closing = self.world.closing
        self.world.after(0.1 if closing else self.rng.uniform(0.05, 0.8), self._tend)

    def _next(self, state: State) -> None:
        users = state.users
        if not users.enabled:
            self._write(
                state,
                None,
                UserAdd("root", b"h"),
                UserGrantRole("root", "root"),
                UserAdd(WRITER, b"h"),
                UserGrantRole(WRITER, "root"),
                AuthEnable(KEY),
            )
            return
        writer = Caller(WRITER, users.users[WRITER].since, UNTIL)
        self.token = make_token(writer, KEY, self.world.cluster)
        root = Caller("root", users.users["root"].since, UNTIL)
        if self.world.closing:
            if not self._may_write(state):
                self._write(state, root, UserGrantRole(WRITER, "root"))
        elif self.rng.random() < 0.3:
            self._write(state, root, self._about_a_guest(state))
        else:
            kind = UserRevokeRole if self._may_write(state) else UserGrantRole
            self._write(state, root, kind(WRITER, "root"))

    def _about_a_guest(self, state: State) -> AuthOperation:
        """Somebody else's rights change, which concerns nobody."""
        permission = Permission(Access.READWRITE, KeyRange(b"g", b"h"))
        return self.rng.choice(
            (
                UserAdd("guest", b"h"),
                UserSetPassword("guest", b"i"),
                UserDelete("guest"),
                RoleAdd("guests"),
                RoleGrantPermission("guests", permission),
                RoleRevokePermission("guests", permission.names),
                RoleDelete("guests"),
                UserGrantRole("guest", "guests"),
                UserRevokeRole("guest", "guests"),
            )
        )

    def _write(self, state: State, caller: Caller | None, *operations: AuthOperation) -> None:
        """One command of a session of root's, which is opened first."""
        name = b"" if caller is None else b"root"
        session = next((each.id for each in state.sessions.values() if each.nonce == b"tender" + name), 0)
        command: OpenSession | ClientWrites = OpenSession(b"tender" + name, 1e6)
        if session:
            first = self._sequence + 1
            self._sequence += len(operations)
            writes = tuple([ClientWrite(first + number, each) for number, each in enumerate(operations)])
            command = ClientWrites(session, first, writes)
            self.changes += 1
        self._propose(command if caller is None else ByUser(caller, command))

    def _propose(self, command: Command) -> None:
        leader = self.world.leader()
        if leader is not None and leader.process is not None and not leader.paused:
            leader.put(Proposal(encode(command), math.inf, 0.0, lambda outcome: None))
