"""Who sends a frame, and whether it may: what a member checks itself while users are needed.

The table of rules is ``schema/call_rights.py``. That a token is good is checked here for every frame, by the state that
this member has applied. What goes through the log is checked once more where it is applied, and only that counts.
Reads and watches are checked here alone, by the users and roles of the very state that they read.

A member may lag and not know of a user, or of a new password, that a token names. It says so, rather than that the
token is bad: a token's number tells at which entry of the log the password was set.
"""

from __future__ import annotations

import functools
import threading

from ...limits import CLOCK_STEP_S, PASSWORD_CHECKS_AT_ONCE, TOKEN_TTL_S
from ...schema.answers import Failed, Reason
from ...schema.call_rights import RULES, Rule
from ...schema.commands import Caller
from ...schema.frames import BareRequest, LoggedIn, Login, Refusal, Refused
from ...schema.key_range import KeyRange
from ...store.state.auth_table import AuthTable
from ...store.state.lease_table import FRESH_ID_BITS
from ...store.state.machine import State
from ..passwords import hash_password, password_matches
from .replica import Replica
from .tokens import KnownTokens, make_token

_nobodys_hash = functools.cache(lambda: hash_password(""))
"""Compared with the password of a user that does not exist, so that the time does not tell which users there are."""


class UserCheck:
    """The checks of one member. Any thread."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._cluster = replica.folder.identity.cluster
        self._tokens = KnownTokens(self._cluster)
        self._checking = threading.BoundedSemaphore(PASSWORD_CHECKS_AT_ONCE)

    def frame(self, request: BareRequest, token: bytes) -> Caller | Refused | None:
        """Who sends a frame, or why it is refused; ``None`` if the frame needs no user."""
        rule = RULES[type(request)]
        if rule is Rule.OPEN:
            return None
        state = self._replica.state
        found = self.caller(token, state)
        if isinstance(found, Refused):
            return found
        if rule is Rule.ADMINISTRATION:
            return self._not_root(found, state) or found
        if not found.user:
            return Refused(Refusal.DENIED, message="the cluster itself only administers")
        return found

    def administrator(self, token: bytes) -> Refused | None:
        """Why a token does not allow administration; ``None`` if it does."""
        state = self._replica.state
        found = self.caller(token, state)
        return found if isinstance(found, Refused) else self._not_root(found, state)

    def _not_root(self, caller: Caller, state: State) -> Refused | None:
        rights = state.users.rights(caller.user)
        if not caller.user or (rights is not None and rights.is_root):
            return None
        return Refused(Refusal.DENIED, message=f"user {caller.user!r} does not have the role root")

    def caller(self, token: bytes, state: State) -> Caller | Refused:
        """The caller that a token names, if it has not ended."""
        if not token:
            return Refused(Refusal.NO_USER, message="this call needs a user: connect(user=..., password=...)")
        users = state.users
        caller = self._tokens.caller(token, users.head.key)
        if caller is None:
            return Refused(Refusal.BAD_TOKEN, message="the token is not one of this cluster's")
        if caller.since >> FRESH_ID_BITS > state.applied_index:
            return Refused(Refusal.NOT_SERVING, message="this member has not caught up with the token's user")
        if not users.is_valid(caller, state.clock.seconds):
            return Refused(Refusal.BAD_TOKEN, message="the token has ended")
        return caller

    def read(self, keys: KeyRange, caller: Caller | None, state: State, users: AuthTable) -> Failed | None:
        """Why a user may not read these keys, by a state's users and roles."""
        if caller is None:
            return Failed(Reason.NO_USER)
        if not users.is_valid(caller, state.clock.seconds):
            return Failed(Reason.BAD_TOKEN)
        rights = users.rights(caller.user)
        return None if rights is not None and rights.may_read(keys) else Failed(Reason.DENIED)

    # -- logging in ---------------------------------------------------------------------------------------------------

    def log_in(self, request: Login) -> LoggedIn | Refused:
        """A token for a password, which takes a twentieth of a second, or for another token. Not in the loop."""
        state = self._replica.state
        users = state.users
        if not users.enabled:
            return Refused(Refusal.NOT_ENABLED, message="authentication is not enabled")
        if request.token:
            found = self.caller(request.token, state)
            if isinstance(found, Refused):
                return found
            if request.user:
                return self._vouched(request.user, found, state)
            return self._logged_in(found.user, found.since, state)
        if not self._checking.acquire(blocking=False):
            return Refused(Refusal.OVERLOADED, message="this member checks as many passwords as it may")
        try:
            user = users.users.get(request.user)
            known = password_matches(request.password, user.hash if user is not None and user.hash else _nobodys_hash())
        finally:
            self._checking.release()
        if user is None or not user.hash or not known:
            return Refused(Refusal.WRONG_PASSWORD, message=f"there is no user {request.user!r} with this password")
        return self._logged_in(user.name, user.since, state)

    def _vouched(self, name: str, caller: Caller, state: State) -> LoggedIn | Refused:
        """A token for a user for whom the cluster itself vouches."""
        if caller.user:
            return Refused(Refusal.DENIED, message="only the cluster itself logs in others")
        user = state.users.users.get(name)
        if user is None:
            return Refused(Refusal.WRONG_PASSWORD, message=f"there is no user {name!r}")
        return self._logged_in(user.name, user.since, state)

    def own_token(self) -> bytes:
        """A token of the cluster itself; empty while none is needed."""
        state = self._replica.state
        if not state.users.enabled:
            return b""
        return self._logged_in("", state.users.head.since, state).token

    def _logged_in(self, user: str, since: int, state: State) -> LoggedIn:
        until = max(state.clock.seconds, self._replica.cluster_time) + TOKEN_TTL_S
        token = make_token(Caller(user, since, until), state.users.head.key, self._cluster)
        return LoggedIn(token, user, since, TOKEN_TTL_S - CLOCK_STEP_S, state.revision, self._replica.term)
