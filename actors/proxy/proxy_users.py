"""The users that call through a proxy: each has services of its own, over a hub that carries its token.

A call names its user by a token in its metadata, ``token`` or ``authorization``. The first time that this proxy sees a
token, it has a member exchange it for another of the same user: so nobody reaches a user's hub by what a token only
claims. Afterwards the token is good here as long as it is used, and as long as the user's password stays the same, as
etcd's tokens are.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ...errors import KeeperError
from ...limits import MAX_PROXY_USERS, PROXY_TIMEOUT_S, TOKEN_TTL_S, TOKENS_KNOWN
from ..client.login import Credentials
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import INVALID_TOKEN, from_keeper_error
from .member_calls import LoggedInUser, MemberCalls

S = TypeVar("S")


class _KnownToken(NamedTuple):
    user: str
    since: int
    """Identifies the password that the user had."""
    good_until: float


class ProxyUsers(Generic[S]):
    """Finds the services of whom a call is.

    Args:
        backend: without a user.
        anyone: the services of calls without a user.
        make: makes the services of a user from a backend.
    """

    def __init__(self, backend: EtcdBackend, calls: MemberCalls, anyone: S, make: Callable[[EtcdBackend], S]) -> None:
        self._backend = backend
        self._calls = calls
        self._anyone = anyone
        self._make = make
        self._tokens: OrderedDict[str, _KnownToken] = OrderedDict()
        self._users: OrderedDict[str, tuple[EtcdBackend, S]] = OrderedDict()
        self._opening: dict[str, asyncio.Lock] = {}

    async def services(self, context: CallContext) -> S:
        """The services of a call's user.

        Raises:
            RpcError: the token is not good.
        """
        metadata = context.metadata
        token = metadata.get("token") or metadata.get("authorization")
        if not token:
            return self._anyone
        known = self._tokens.get(token)
        if known is not None and known.good_until > time.monotonic():
            found = self._users.get(known.user)
            login = None if found is None else found[0].hub.login
            if found is not None and login is not None and login.since == known.since and not login.refused:
                self._keep(token, known.user, known.since)
                self._users.move_to_end(known.user)
                return found[1]
        self._tokens.pop(token, None)
        return await self._admit(token)

    async def _admit(self, token: str) -> S:
        """A token that this proxy has not seen, or not lately."""
        logged_in = await self._calls.exchange(token.encode(errors="replace"))
        if logged_in is None:  # users are not needed
            return self._anyone
        lock = self._opening.setdefault(logged_in.user, asyncio.Lock())
        try:
            async with lock:
                services = await self._services_of(logged_in)
        finally:
            if not lock.locked():
                self._opening.pop(logged_in.user, None)
        self._keep(token, logged_in.user, logged_in.since)
        return services

    async def _services_of(self, logged_in: LoggedInUser) -> S:
        found = self._users.get(logged_in.user)
        login = None if found is None else found[0].hub.login
        if found is not None and login is not None and login.since == logged_in.since and not login.refused:
            return found[1]
        backend = self._backend.of_user(Credentials(logged_in.user, token=logged_in.token))
        try:
            await backend.open(PROXY_TIMEOUT_S)
        except KeeperError as error:
            raise from_keeper_error(error) from error
        if backend.hub.login is None or backend.hub.login.since != logged_in.since:
            raise INVALID_TOKEN.error()
        services = self._make(backend)
        self._users[logged_in.user] = backend, services
        while len(self._users) > MAX_PROXY_USERS:
            self._users.popitem(last=False)  # its hub closes once the calls that use it have ended
        return services

    def _keep(self, token: str, user: str, since: int) -> None:
        self._tokens[token] = _KnownToken(user, since, time.monotonic() + TOKEN_TTL_S)
        self._tokens.move_to_end(token)
        while len(self._tokens) > TOKENS_KNOWN:
            self._tokens.popitem(last=False)
