"""Users at ``/kv/``: HTTP Basic, checked like Authenticate, and etcd's tokens; over one real member, by HTTP/1.1."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import Reply, request
from raykeeper import Client, connect
from raykeeper.actors.client import hub_pool
from raykeeper.actors.proxy.http_exchange import HttpError
from raykeeper.actors.proxy.key_requests import basic_credentials
from raykeeper.schema.frames import Login


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


class Door:
    """A proxy of a member with users: root; ann, who may do everything under team/."""

    def __init__(self, port: EtcdPort) -> None:
        self.port = port
        users = port.proxy.kv.users
        for name in ("root", "ann"):
            users.add(name, f"{name}'s: sécret")
        users.grant_role("root", "root")
        users.add_role("team")
        users.grant_permission("team", "readwrite", prefix="team/")
        users.grant_role("ann", "team")
        users.enable()
        self.root: Client = connect(port.proxy.member.name, user="root", password="root's: sécret", timeout=60)

    def ask(self, method: str, target: str, authorization: str = "", body: bytes | None = None) -> Reply:
        headers = {"Authorization": authorization} if authorization else None
        return request(self.port.endpoint, method, target, body, headers)


@pytest.fixture
def door() -> Iterator[Door]:
    with etcd_port() as port:
        yield Door(port)
        hub_pool._close_all()


def test_who_may_do_what_by_password(door: Door) -> None:
    anns = basic("ann", "ann's: sécret")
    for method, body in (("GET", None), ("PUT", b"1"), ("DELETE", None)):
        nobody = door.ask(method, "/kv/team/a", "", body)
        assert nobody.status == 401
        assert nobody.headers["www-authenticate"].startswith("Basic ")
        assert door.ask(method, "/kv/team/a", basic("ann", "wrong"), body).status == 401
        assert door.ask(method, "/kv/team/a", basic("nobody", "ann's: sécret"), body).status == 401
        assert door.ask(method, "/kv/other", anns, body).status == 403
    assert door.ask("PUT", "/kv/team/a", anns, b"1").status == 201
    assert door.ask("GET", "/kv/team/a", anns).body == b"1"
    assert len(json.loads(door.ask("GET", "/kv/team/?prefix", anns).body)["kvs"]) == 1
    assert door.ask("GET", "/kv/?prefix", anns).status == 403
    assert door.ask("GET", "/kv/?prefix&watch", anns).status == 403
    assert door.ask("DELETE", "/kv/team/a", anns).status == 200


def test_a_token_of_etcd_is_good_here_too(door: Door) -> None:
    login = json.dumps({"name": "ann", "password": "ann's: sécret"}).encode()
    token = json.loads(door.ask("POST", "/v3/auth/authenticate", "", login).body)["token"]
    assert door.ask("PUT", "/kv/team/a", token, b"1").status == 201
    assert door.ask("PUT", "/kv/other", token, b"1").status == 403
    assert door.ask("PUT", "/kv/team/a", token[:-4] + "AAA=", b"1").status == 401


def test_the_gateway_takes_a_token_where_etcds_does(door: Door) -> None:
    login = json.dumps({"name": "ann", "password": "ann's: sécret"}).encode()
    token = json.loads(door.ask("POST", "/v3/auth/authenticate", "", login).body)["token"]
    put = json.dumps({"key": "dGVhbS9h", "value": "MQ=="}).encode()
    for name, status in (("Authorization", 200), ("Grpc-Metadata-Token", 200), ("Token", 400), ("Grpc-Token", 400)):
        assert request(door.port.endpoint, "POST", "/v3/kv/put", put, {name: token}).status == status
    watch = json.dumps({"create_request": {"key": "dGVhbS9h"}}).encode()
    refused = request(door.port.endpoint, "POST", "/v3/watch", watch, {"Grpc-Metadata-Token": "nonsense.1"})
    assert (refused.status, json.loads(refused.body)["code"]) == (401, 16)


@pytest.mark.parametrize(
    "given", ["Basic", "Basic ", "basic !!!", "Basic YW5u", "Basic OmE=", "BASIC /////w==", "Basic " + "A" * 10_001]
)
def test_what_is_not_a_password_is_said(given: str) -> None:
    with pytest.raises(HttpError) as said:
        basic_credentials({"authorization": given})
    assert said.value.status == 400


def test_a_password_is_checked_once_and_ends_when_it_is_changed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    users = door.port.proxy.member.loop.handler._users
    log_in = users.log_in

    def noted(asked: Login) -> object:
        if asked.password:
            checked.append(asked.password)
        return log_in(asked)

    monkeypatch.setattr(users, "log_in", noted)
    old, new = "ann's: sécret", "another"
    for _ in range(5):
        assert door.ask("GET", "/kv/team/?prefix", basic("ann", old)).status == 200
    assert checked == [old]
    door.root.users.set_password("ann", new)
    for _ in range(3):
        assert door.ask("GET", "/kv/team/?prefix", basic("ann", old)).status == 401
    for _ in range(3):
        assert door.ask("GET", "/kv/team/?prefix", basic("ann", new)).status == 200
    assert checked.count(new) == 1
    door.root.users.delete("ann")
    assert door.ask("GET", "/kv/team/?prefix", basic("ann", new)).status == 401


def test_while_users_are_not_needed_a_password_means_nothing() -> None:
    with etcd_port() as port:
        headers = {"Authorization": basic("ann", "x")}
        assert request(port.endpoint, "PUT", "/kv/a", b"1", headers).status == 201
        assert request(port.endpoint, "GET", "/kv/a", None, headers).body == b"1"
