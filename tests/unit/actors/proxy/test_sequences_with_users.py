"""Any sequence of requests by several users, some of whose rights change on the way, to a real etcd and to the proxy's
services: each answer is compared, refusals with their texts included, and what is there at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab.etcd import running_etcd
from lab.etcd_requests import kv_requests, lease_requests
from lab.etcd_twins import Apart, Twins
from lab.proxy_services import lab_proxy
from raykeeper.actors.client import hub_pool
from raykeeper.actors.proxy.etcdpb import auth_pb2 as pb
from raykeeper.actors.proxy.etcdpb import authdata_pb2
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    TxnRequest,
)

AUTH, KV = "/etcdserverpb.Auth/", "/etcdserverpb.KV/"
READ, WRITE, READWRITE = 0, 1, 2
ROLES = {
    "root": [],
    "team": [(READWRITE, b"a", b"c")],
    "reader": [(READ, b"\0", b"\0")],
    "writer": [(WRITE, b"b", b""), (WRITE, b"d/", b"d0")],
}
GRANTED = {"root": ["root"], "ann": ["team"], "bob": ["reader"], "eve": ["writer", "team"]}
USERS = ("root", "ann", "bob", "eve")


class AsUser:
    """A server, asked by one user after the other; "" asks without a token, "nobody" with one that nobody gave."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.tokens: dict[str, str] = {}
        self.user = "root"

    def call(self, path: str, request: bytes) -> Any:
        token = self.tokens.get(self.user, "nonsense.17" if self.user == "nobody" else "")
        return self.server.call(path, request, metadata={"token": token} if token else None)


class Users:
    """Both servers, with users of the same rights."""

    def __init__(self, both: Twins, sides: tuple[AsUser, AsUser]) -> None:
        self.both = both
        self._sides = sides

    def do(self, user: str, path: str, request: Message) -> Any:
        """Ask both, and compare."""
        for side in self._sides:
            side.user = user
        return self.both.ask(path, request)

    def auth(self, call: str, request: Message) -> Any:
        return self.do("root", AUTH + call, request)

    def set_up(self) -> None:
        for user in USERS:
            self.auth("UserAdd", pb.AuthUserAddRequest(name=user, password=user))
        for role, permissions in ROLES.items():
            self.auth("RoleAdd", pb.AuthRoleAddRequest(name=role))
            for permission in permissions:
                self.auth("RoleGrantPermission", grant(role, *permission))
        self.begin()
        self.auth("AuthEnable", pb.AuthEnableRequest())
        for side in self._sides:
            side.user = ""
            for user in USERS:
                request = pb.AuthenticateRequest(name=user, password=user).SerializeToString()
                side.tokens[user] = pb.AuthenticateResponse.FromString(side.call(AUTH + "Authenticate", request)).token

    def begin(self) -> None:
        """Empty stores, and the users' roles as they are before each sequence."""
        for side in self._sides:
            side.user = "root"
        self.both.begin()
        for user, roles in GRANTED.items():
            for role in ROLES:
                wanted = role in roles
                grant_role = pb.AuthUserGrantRoleRequest(user=user, role=role)
                revoke = pb.AuthUserRevokeRoleRequest(name=user, role=role)
                if not (user == role == "root" and self._sides[0].tokens):  # which cannot be revoked
                    self.auth(*(("UserGrantRole", grant_role) if wanted else ("UserRevokeRole", revoke)))


def grant(role: str, kind: int, key: bytes, end: bytes) -> Any:
    permission = authdata_pb2.Permission(permType=authdata_pb2.Permission.Type.Name(kind), key=key, range_end=end)
    return pb.AuthRoleGrantPermissionRequest(name=role, perm=permission)


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    with running_etcd() as etcd, lab_proxy() as proxy:
        sides = AsUser(etcd), AsUser(proxy)
        found = Users(Twins(*sides), sides)  # type: ignore[arg-type]
        found.set_up()
        yield found
        hub_pool._close_all()


def comparable(step: tuple[str, tuple[str, Message]]) -> bool:
    """etcd 3.5.1 does not look at the rights of what is in a nested transaction, of the value before a put, and of the
    keys of a lease; its later versions do, as we do. Compaction and leases need no user there."""
    user, (_, request) = step
    if user in ("", "nobody") and not isinstance(request, PutRequest | RangeRequest | DeleteRangeRequest | TxnRequest):
        return False
    if isinstance(request, TxnRequest):
        operations = [*request.success, *request.failure]
        return not any(each.HasField("request_txn") or each.request_put.prev_kv for each in operations)
    return not (isinstance(request, PutRequest) and request.prev_kv) and not isinstance(request, LeaseTimeToLiveRequest)


some_users = st.sampled_from(("root", "ann", "ann", "ann", "bob", "bob", "eve", "eve", "", "nobody"))
requests = st.one_of(kv_requests, kv_requests, kv_requests, lease_requests)
people, roles = st.sampled_from(USERS[1:]), st.sampled_from(list(ROLES)[1:])
changes = st.one_of(
    st.builds(lambda user, role: ("UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role)), people, roles),
    st.builds(lambda user, role: ("UserRevokeRole", pb.AuthUserRevokeRoleRequest(name=user, role=role)), people, roles),
).map(lambda change: (AUTH + change[0], change[1]))
steps = st.one_of(
    *[st.tuples(some_users, requests).filter(comparable)] * 5,
    st.tuples(st.sampled_from(("root", "root", "ann")), changes),
)


BACKWARDS = [("eve", (KV + "DeleteRange", DeleteRangeRequest(key=b"d/1", range_end=end))) for end in (b"b", b"c")]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example([*BACKWARDS[:1]])
@example([*BACKWARDS[1:]])
@given(st.lists(steps, min_size=3, max_size=25))
def test_any_sequence_of_users(users: Users, sequence: list[tuple[str, tuple[str, Any]]]) -> None:
    users.begin()
    try:
        for user, (path, request) in sequence:
            users.do(user, path, request)
    except Apart:
        return
    for user in USERS:
        users.do(user, KV + "Range", RangeRequest(key=b"\0", range_end=b"\0"))
        users.do(user, KV + "Range", RangeRequest(key=b"a", range_end=b"c"))
    users.do("root", KV + "DeleteRange", DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True))
