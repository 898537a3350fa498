"""A process's user: its password, and the token that it has been given for it.

Every frame of a hub with a user carries the token. The token is exchanged for a new one before it ends, as long as
frames are sent. If a member refuses it all the same (the process slept, or users were disabled and enabled again), the
hub logs in with the password and sends the very same frames again, so the cores never notice.

A password that was given as a value stays in this process. A pickled handle takes the user, where the password is to be
read, and the present token.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ...errors import AuthFailed, InvalidArgument, KeeperError, Unavailable
from ...limits import CLIENT_SHORT_BACKOFF_S, DEFAULT_TIMEOUT_S, STATUS_TIMEOUT_S, TOKEN_RENEW_FRACTION
from ...schema.frames import LoggedIn, Login, Refusal, Refused, Reply
from .. import arguments as check
from ..deadline import covering, time_left
from ..one_thread import OneThread
from ..transport.client_transport import ClientTransport

_log = logging.getLogger("raykeeper.client")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
_AS_USER = 16
"""The tag of ``AsUser``."""
_BAD_TOKENS = tuple([_encode(Refused(refusal))[:3] for refusal in (Refusal.NO_USER, Refusal.BAD_TOKEN)])


class Credentials(NamedTuple):
    """A user, and how it proves that it is this user."""

    user: str
    password: str | None = None
    password_file: str = ""
    """Read whenever the password is needed, if it was not given as a value."""
    token: bytes = b""
    cluster_token: Callable[[], bytes] | None = None
    """In place of a password: gives a token of the cluster itself, which vouches for the user; it may block, and gives
    an empty one while users are not needed."""
    purpose: str = ""
    """A process has a hub for each user and purpose. So what proves a user for one purpose renews no token that was
    given for another."""

    def read_password(self) -> str | None:
        """The password; ``None`` if there is only a token.

        Raises:
            InvalidArgument: the file cannot be read.
        """
        if self.password is not None or not self.password_file:
            return self.password
        try:
            with open(self.password_file, encoding="utf-8") as file:
                return file.read().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the password file {self.password_file} cannot be read: {error}") from None

    def without_password(self, token: bytes) -> Credentials:
        """What may leave the process."""
        return Credentials(self.user, None, self.password_file, token, purpose=self.purpose)


def credentials_of(user: object, password: object, password_file: object) -> Credentials | None:
    """What was given to ``connect`` or ``attach``; ``None`` for no user.

    Raises:
        InvalidArgument: not exactly what is needed.
    """
    if user is None:
        if password is not None or password_file is not None:
            raise InvalidArgument("a password was given without a user")
        return None
    name = check.text("a user", user)
    if not name:
        raise InvalidArgument("the name of a user is not empty")
    if (password is None) == (password_file is None):
        raise InvalidArgument("a user needs a password or a password_file, not both")
    if password_file is not None:
        return Credentials(name, password_file=check.text("a password_file", password_file))
    return Credentials(name, check.text("a password", password))


class UserLogin:
    """The user of one hub. Any thread.

    Args:
        credentials: of the user.
        transport: the hub's.
        name: the cluster's name, and its id.
    """

    def __init__(self, credentials: Credentials, transport: ClientTransport, name: str, cluster: int) -> None:
        self.credentials = credentials
        self.token = credentials.token
        """Empty while the cluster needs no users."""
        self.refused = False
        """Whether the last attempt to log in has failed."""
        self.since = 0
        """Identifies the user's password."""
        self._transport = transport
        self._name = name
        self._cluster = cluster
        self._renew_at = 0.0
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[], None], Callable[[KeeperError], None]]] = []
        self._thread = OneThread()

    def adopt(self, other: UserLogin) -> None:
        """Continue with what another has learned."""
        if other.credentials.password is not None or other.credentials.password_file:
            self.credentials = other.credentials
        self.since, self._renew_at = other.since, other._renew_at
        self.token, self.refused = other.token, False

    def current_token(self) -> bytes:
        """A token that has not ended, for frames that are not sent by the hub."""
        if not self.token or time.monotonic() >= self._renew_at:
            with covering(DEFAULT_TIMEOUT_S):
                self.log_in()
        return self.token

    def wrap(self, frame: bytes) -> bytes:
        """A frame with the user's token."""
        if not self.token:
            return frame
        if time.monotonic() >= self._renew_at and not self._thread.runs:
            self.refresh(self.token, lambda: None, lambda error: None)
        return _encode((_AS_USER, self.token, msgspec.Raw(frame)))

    @staticmethod
    def is_refusal(reply: bytes) -> bool:
        """Whether a reply refuses the token that the frame had, or that it had none."""
        return reply.startswith(_BAD_TOKENS)

    def refresh(self, used: bytes, again: Callable[[], None], give_up: Callable[[KeeperError], None]) -> None:
        """Get another token in place of one, on a thread of its own; then call one of the two."""
        with self._lock:
            stale = self.token == used
            if stale:
                self._waiting.append((again, give_up))
        if not stale:
            again()
        elif not self._thread.start(self._refresh, f"raykeeper-login-{self._name}"):
            self._answer(Unavailable("no thread is left to log in with"))

    def _refresh(self) -> None:
        error: KeeperError | None = None
        try:
            with covering(DEFAULT_TIMEOUT_S):
                self.log_in()
        except KeeperError as failed:
            error = failed
        except Exception as failed:
            error = Unavailable(f"logging in failed: {failed!r}")
        self._answer(error, self._thread.done)

    def _answer(self, error: KeeperError | None, done: Callable[[], None] = lambda: None) -> None:
        """Let those go on that wait for a token, or give up."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            done()
            if error is not None:
                self._renew_at = time.monotonic() + CLIENT_SHORT_BACKOFF_S
        for again, give_up in waiting:
            try:
                if error is None:
                    again()
                else:
                    give_up(error)
            except Exception as failed:
                _log.debug("a frame could not be sent again: %r", failed)

    def log_in(self) -> None:
        """Get a token, for the present one or else for the password, within the deadline of the running call.

        Raises:
            AuthFailed: there is no such user, or this is not its password, or there is only a token, which has ended.
            Unavailable: no member answers in time.
        """
        self.refused = True
        if self.token and self._ask(Login(self._cluster, 0.0, token=self.token)):
            self.refused = False
            return
        if self.credentials.cluster_token is not None:
            self._log_in_vouched(self.credentials.cluster_token())
            return
        password = self.credentials.read_password()
        if password is None:
            raise AuthFailed(f"the token of user {self.credentials.user!r} has ended, and this process has no password")
        if not self._ask(Login(self._cluster, 0.0, self.credentials.user, password)):
            raise AuthFailed(f"there is no user {self.credentials.user!r} with this password")
        self.refused = False

    def _log_in_vouched(self, cluster_token: bytes) -> None:
        """Log in by the word of the cluster itself; without a token of it, users are not needed."""
        if not cluster_token:
            self.token = b""
        elif not self._ask(Login(self._cluster, 0.0, self.credentials.user, token=cluster_token)):
            raise AuthFailed(f"the cluster does not vouch for user {self.credentials.user!r}")
        self.refused = False

    def _ask(self, login: Login) -> bool:
        """Ask one member after the other, until one decides. Returns False if the proof is not good."""
        problem = "no member answers"
        while True:
            for member in sorted(self._transport.members()):
                reply = self._reply(member, login)
                if isinstance(reply, LoggedIn):
                    lifetime = TOKEN_RENEW_FRACTION * reply.ttl
                    self.token, self.since, self._renew_at = reply.token, reply.since, time.monotonic() + lifetime
                    return True
                if isinstance(reply, Refused):
                    if reply.refusal is Refusal.NOT_ENABLED:
                        self.token = b""
                        return True
                    if reply.refusal in (Refusal.WRONG_PASSWORD, Refusal.BAD_TOKEN):
                        return False
                    problem = reply.message or reply.refusal.name
            if time_left() <= CLIENT_SHORT_BACKOFF_S:
                raise Unavailable(f"cluster {self._name!r}: nobody could log in: {problem}", applied=False)
            time.sleep(CLIENT_SHORT_BACKOFF_S)

    def _reply(self, member: int, login: Login) -> Reply | None:
        answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        patience = min(STATUS_TIMEOUT_S, time_left())
        try:
            self._transport.send(member, _encode(msgspec.structs.replace(login, deadline=patience)), answers.put)
            reply = answers.get(timeout=max(0.001, patience))
            return None if isinstance(reply, Exception) else _decode(reply)
        except (queue.Empty, msgspec.MsgspecError):
            return None
        except Exception:  # the transport has failed: another member may be reached
            return None
