"""The users that call through a proxy: each has services of its own, over a hub that carries its token.

A call names its user by a token in its metadata, ``token`` or ``authorization``. The first time that this proxy sees a
token, it has a member exchange it for another of the same user: so nobody reaches a user's hub by what a token only
claims. Afterwards the token is good here as long as it is used, and as long as the user's password stays the same, as
etcd's tokens are.

A call without a token, on a connection whose client has shown a certificate, is of the user whom its common name names
(etcd: ``--client-cert-auth``). A member logs this user in without a password, because the proxy has a token of the
cluster itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, NamedTuple, TypeVar

from ...errors import KeeperError
from ...limits import MAX_PROXY_USERS, PROXY_TIMEOUT_S, PROXY_USERS_LOOK_S, TOKEN_TTL_S, TOKENS_KNOWN
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import AUTH_NOT_ENABLED, INVALID_TOKEN, from_keeper_error
from .member_calls import LoggedInUser, MemberCalls
from .rpc_methods import CERTIFICATE_USER
from .rpc_status import RpcError

S = TypeVar("S")
_secret = secrets.token_bytes(32)


def _password_key(user: str, password: str) -> str:
    """What stands for a user's password among known tokens: no such key is a token, and none tells the password."""
    said = f"{len(user)}:{user}:{password}".encode(errors="surrogatepass")
    return f"\0{hashlib.blake2b(said, key=_secret).hexdigest()}"


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
        self._not_needed_until = 0.0

    async def services(self, context: CallContext) -> S:
        """The services of a call's user.

        Raises:
            RpcError: the token is not good.
        """
        metadata = context.metadata
        token = metadata.get("token") or metadata.get("authorization")
        if not token:
            name = metadata.get(CERTIFICATE_USER)
            return await self._certified(name) if name else self._anyone
        return self._services_of_known(token) or await self._admit(token)

    async def services_of_password(self, user: str, password: str, patience: float) -> S:
        """The services of a user by its password, which a member checks the first time, as for etcd's Authenticate;
        later as with a token.

        Raises:
            RpcError: it is wrong, or no member answers in ``patience`` seconds.
        """
        key = _password_key(user, password)
        async with self._one_opening(key):
            services = self._services_of_known(key)
            if services is not None:
                return services
            try:
                logged_in = await self._calls.log_in(user, password, patience)
            except RpcError as error:
                if error.text == AUTH_NOT_ENABLED.text:
                    return self._anyone
                raise
            services = await self._open(logged_in)
            self._keep(key, logged_in.user, logged_in.since)
            return services

    def _services_of_known(self, token: str) -> S | None:
        """The services of the user of a token that is known and was good lately; forgets it otherwise."""
        known = self._tokens.get(token)
        if known is not None and known.good_until > time.monotonic():
            found = self._users.get(known.user)
            login = None if found is None else found[0].hub.login
            if found is not None and login is not None and login.since == known.since and not login.refused:
                self._keep(token, known.user, known.since)
                self._users.move_to_end(known.user)
                return found[1]
        self._tokens.pop(token, None)
        return None

    async def _certified(self, name: str) -> S:
        """The services of a user whose certificate was shown."""
        found = self._users.get(name)
        login = None if found is None else found[0].hub.login
        if found is not None and login is not None and not login.refused:
            self._users.move_to_end(name)
            return found[1]
        source = self._backend.cluster_token
        if source is None or self._not_needed_until > time.monotonic():
            return self._anyone
        token = await asyncio.to_thread(source)
        logged_in = await self._calls.vouch(name, token) if token else None
        if logged_in is None:  # users are not needed; until the next look, calls are nobody's, which gives no right
            self._not_needed_until = time.monotonic() + PROXY_USERS_LOOK_S
            return self._anyone
        return await self._open(logged_in)

    async def _admit(self, token: str) -> S:
        """A token that this proxy has not seen, or not lately."""
        logged_in = await self._calls.exchange(token.encode(errors="replace"))
        if logged_in is None:  # users are not needed
            return self._anyone
        services = await self._open(logged_in)
        self._keep(token, logged_in.user, logged_in.since)
        return services

    async def _open(self, logged_in: LoggedInUser) -> S:
        """The services of a user who is logged in; opened once at a time."""
        async with self._one_opening(logged_in.user):
            return await self._services_of(logged_in)

    @asynccontextmanager
    async def _one_opening(self, key: str) -> AsyncIterator[None]:
        """Of those with the same key, one at a time is in it."""
        lock = self._opening.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._opening.pop(key, None)

    async def _services_of(self, logged_in: LoggedInUser) -> S:
        found = self._users.get(logged_in.user)
        login = None if found is None else found[0].hub.login
        if found is not None and login is not None and login.since == logged_in.since and not login.refused:
            return found[1]
        backend = self._backend.of_user(logged_in.user, logged_in.token)
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
