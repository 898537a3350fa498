"""The console while users are needed: nothing without one, to each what it may, and lines in the audit log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from raykeeper import Client, connect
from raykeeper.actors.client import hub_pool
from raykeeper.actors.proxy.console_site import ConsoleSite
from raykeeper.actors.recipes.in_use_fields import LISTS

VIEWS = (
    *("cluster", "events", "clients", "load", "leases", "lease?id=1", "keys", "key?key=a", "tail?key=a"),
    *LISTS,
)
ACTIONS: dict[str, dict[str, Any]] = {
    "move-leader": {"member": 1},
    "add-member": {},
    "remove-member": {"member": 1},
    "compact": {"revision": 1},
    "revoke-lease": {"lease": "1"},
    "release": {"kind": "lock", "path": "a", "token": 1},
}
PASSWORD = "never shown"


class Door:
    """A console of a member with users: root; ann, who may do everything under team/."""

    def __init__(self, port: EtcdPort) -> None:
        self.port = port
        users = port.proxy.kv.users
        for name in ("root", "ann"):
            users.add(name, PASSWORD)
        users.grant_role("root", "root")
        users.add_role("team")
        users.grant_permission("team", "readwrite", prefix="team/")
        users.grant_role("ann", "team")
        users.enable()
        self.root: Client = connect(port.proxy.member.name, user="root", password=PASSWORD, timeout=60)

    def log_in(self, name: str) -> str:
        login = json.dumps({"name": name, "password": PASSWORD}).encode()
        token: str = json.loads(request(self.port.endpoint, "POST", "/v3/auth/authenticate", login).body)["token"]
        return token

    def status(self, view: str, token: str = "") -> int:
        headers = {"Authorization": token} if token else {}
        return request(self.port.endpoint, "GET", f"/console/api/{view}", None, headers).status

    def act(self, action: str, by: str = "", **changed: Any) -> int:
        headers = {"Content-Type": "application/json", **({"Authorization": by} if by else {})}
        body = json.dumps({**ACTIONS[action], **changed}).encode()
        return request(self.port.endpoint, "POST", f"/console/api/act/{action}", body, headers).status


@pytest.fixture
def door() -> Iterator[Door]:
    with etcd_port(console="act") as port:
        yield Door(port)
        hub_pool._close_all()


def test_all_views_and_actions_are_tried() -> None:
    site = ConsoleSite(MagicMock(), MagicMock(), "act")
    assert {name.partition("?")[0] for name in VIEWS} == {*site._views, "tail"}
    assert set(ACTIONS) == set(site._actions._actions)


def test_nothing_without_a_user_but_the_page(door: Door) -> None:
    assert request(door.port.endpoint, "GET", "/console").status == 200
    for token in ("", "not.a.token", door.log_in("ann")[:-4] + "AAA="):
        for view in VIEWS:
            assert door.status(view, token) == 401, view
        for action in ACTIONS:
            assert door.act(action, token) == 401, action
    assert door.port.proxy.operations.asked == []


def test_to_each_what_it_may(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.audit")
    ann, root = door.log_in("ann"), door.log_in("root")
    door.root.put("team/a", "1")
    for view in ("cluster", "leases", "keys?prefix=team/", "key?key=team/a"):
        assert door.status(view, ann) == 200, view
    for view in ("events", "clients", "load", "keys", "key?key=other", "tail?key=other", "tail?prefix=", "locks"):
        assert door.status(view, ann) == 403, view
    for view in ("cluster", "events", "clients", "load", "leases", "keys", "key?key=team/a", "locks"):
        assert door.status(view, root) == 200, view
    for view in ("events", "clients", "load", "locks"):  # what was made for one user is not another's
        assert door.status(view, ann) == 403, view
    for action in ("move-leader", "add-member", "remove-member", "release"):
        assert door.act(action, ann) == 403, action
    assert door.port.proxy.operations.asked == []
    assert door.act("move-leader", root) == 200
    assert door.port.proxy.operations.asked == [("move", 1)]

    with door.root.lock("team/l", ttl=300) as held, door.root.lock("other", ttl=300) as others:
        assert door.act("release", ann, path="other", token=others.token) == 403
        assert door.act("release", ann, path="team/l", token=held.token) == 200
        assert door.act("release", root, path="other", token=others.token) == 200
    said = [record.getMessage() for record in caplog.records if record.name == "raykeeper.audit"]
    assert [line for line in said if "denied" in line and "'ann'" in line and "console move-leader member=1" in line]
    assert [line for line in said if "change" in line and "'root'" in line and "console move-leader member=1" in line]
    assert [line for line in said if "denied" in line and "'ann'" in line and "console events" in line]
    assert not [line for line in said if PASSWORD in line]
