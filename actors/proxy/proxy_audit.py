"""What a proxy writes into the audit log: its clients' denied calls, and what they change of users, roles and members.

A member writes such lines too, with the keys that a call was about. But it knows only the proxy; here is the address of
the proxy's client. Like a member's, the lines have no values and no passwords.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from ..audit import AuditLog
from .etcd_errors import AUTHENTICATION_FAILED, USER_EMPTY
from .etcdpb.message_pool import methods
from .http_exchange import HttpError
from .rpc_methods import CERTIFICATE_USER
from .rpc_status import RpcCode, RpcError

_AUTH = "/etcdserverpb.Auth/"
_CLUSTER = "/etcdserverpb.Cluster/"
AUTHENTICATE = f"{_AUTH}Authenticate"
CHANGES = frozenset(
    [
        *(f"{_AUTH}{name}" for name in ("AuthEnable", "AuthDisable")),
        *(f"{_AUTH}User{name}" for name in ("Add", "Delete", "ChangePassword", "GrantRole", "RevokeRole")),
        *(f"{_AUTH}Role{name}" for name in ("Add", "Delete", "GrantPermission", "RevokePermission")),
        *(f"{_CLUSTER}Member{name}" for name in ("Add", "Remove", "Update", "Promote")),
        "/etcdserverpb.Maintenance/MoveLeader",
    ]
)
"""Methods that change users, roles or members."""
_DENIED = {RpcCode.UNAUTHENTICATED, RpcCode.PERMISSION_DENIED}
_DENIED_TEXTS = {AUTHENTICATION_FAILED.text, USER_EMPTY.text}
_SHOWN = ("name", "user", "role", "ID", "targetID")
"""Fields of requests that a line may show."""


class ProxyAudit:
    """The audit lines of one proxy.

    Args:
        cluster_name: the cluster's.
        name: the proxy's, without the cluster's.
    """

    def __init__(self, cluster_name: str, name: str) -> None:
        self._log = AuditLog(cluster_name, name)

    def ended(self, user: str, client: str, path: str, request: bytes, error: RpcError | None) -> None:
        """A call has ended, well or with an error: a line, if it was denied or was a change.

        Args:
            user: empty for a call without one, or whose token is not good.
            client: the address that it came from.
        """
        if error is not None and (error.code in _DENIED or (error.text in _DENIED_TEXTS and path not in CHANGES)):
            self._log.denied(user, client, _what(path, request), error.text)
        elif path in CHANGES:
            self._log.changed(user, client, _what(path, request), "done" if error is None else error.text)

    def refused_watch(self, user: str, client: str, why: str) -> None:
        """A watch was refused, or has ended with its user's right."""
        self._log.denied(user, client, "Watch", why)

    def refused_http(self, user: str, client: str, method: str, error: HttpError) -> None:
        """A request to ``/kv/`` was answered with an error."""
        if error.status in (401, 403):
            self._log.denied(user, client, f"{method} /kv/", error.text.strip())

    def refused_view(self, user: str, client: str, name: str, error: RpcError) -> None:
        """A request for a view of the console was refused."""
        self._log.denied(user, client, f"console {name}", error.text)

    def acted(self, user: str, client: str, what: str, error: RpcError | None) -> None:
        """An action of the console has ended, well or with an error."""
        if error is not None and (error.code in _DENIED or error.text in _DENIED_TEXTS):
            self._log.denied(user, client, what, error.text)
        else:
            self._log.changed(user, client, what, "done" if error is None else error.text)


def claimed_user(metadata: Mapping[str, str]) -> str:
    """What stands for a user that has not proven itself: ``?``, or whom a certificate names; empty for none."""
    if metadata.get("token") or metadata.get("authorization"):
        return "?"
    return metadata.get(CERTIFICATE_USER, "")


def _what(path: str, request: bytes) -> str:
    """The method, and the names in a request that may be shown."""
    if path != AUTHENTICATE and path not in CHANGES:
        return path
    try:
        asked: Any = methods()[path].request.FromString(request)
    except DecodeError:
        return path
    named = ((field.name, value) for field, value in asked.ListFields() if field.name in _SHOWN)
    return " ".join([path, *(f"{name}={value!r}" for name, value in named)])
