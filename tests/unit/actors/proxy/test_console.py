"""The console's paths: the page's files, its views and actions, their bounds, and what they refuse."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import Reply, request
from lab.onemember import in_thread
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy import console_keys, console_shared, console_views
from raykeeper.actors.proxy.console_forms import value_form
from raykeeper.actors.proxy.member_calls import MemberCalls
from raykeeper.raft.messages import ChangeKind, MemberChange
from raykeeper.schema.operator_frames import MemberStatus

TTL = 300.0
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port(cors=("*",), console="act") as port:
        yield port


@pytest.fixture(autouse=True)
def empty(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the test before, and what a test asks for is made for it."""
    monkeypatch.setattr(console_shared, "CONSOLE_SHARED_S", 0.0)
    assert port.site is not None
    port.site.shared.forget()
    port.proxy.kv.delete(prefix="")
    port.proxy.operations.asked.clear()


def get(port: EtcdPort, view: str) -> Any:
    reply = request(port.endpoint, "GET", f"/console/api/{view}")
    assert reply.status == 200, reply
    assert reply.headers["cache-control"] == "no-store"
    return json.loads(reply.body)


def act(port: EtcdPort, action: str, **arguments: Any) -> Reply:
    return request(port.endpoint, "POST", f"/console/api/act/{action}", json.dumps(arguments).encode(), JSON)


def level(port: EtcdPort, prefix: str = "", start: str = "") -> tuple[list[str], str | None]:
    """What is listed below a prefix, folders with a slash, and where the next page begins."""
    found = get(port, f"keys?prefix={quote(prefix)}" + (f"&start={start}" if start else ""))
    return [each["key"] for each in found["entries"]], found.get("next")


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_may_load_nothing_from_elsewhere_and_run_no_script_but_its_own(port: EtcdPort) -> None:
    for path, kind in (
        ("/console", "text/html"),
        ("/console/app.js", "text/javascript"),
        ("/console/style.css", "text/css"),
    ):
        reply = request(port.endpoint, "GET", path, None, {"Origin": "https://elsewhere"})
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        for text in (b"http://", b"https://", b"innerHTML", b"insertAdjacentHTML", b"document.write", b"eval("):
            assert text not in reply.body.replace(b"http://www.w3.org/", b""), (path, text)
        assert not [name for name in reply.headers if name.startswith("access-control") or name == "set-cookie"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/console", 405),
        ("GET", "/console/", 404),
        ("GET", "/console/../limits.py", 404),
        ("GET", "/console/%2e%2e/console_site.py", 404),
        ("GET", "/console/index.html", 200),
        ("HEAD", "/console", 200),
        ("GET", "/console/api/nothing", 404),
        ("GET", "/console/api/", 404),
        ("POST", "/console/api/cluster", 405),
        ("OPTIONS", "/console/api/cluster", 405),
        ("OPTIONS", "/console/api/act/compact", 405),
        ("GET", "/console/api/act/compact", 405),
        ("POST", "/console/api/act/nothing", 404),
        ("GET", "/console/api/cluster?what=1", 400),
        ("GET", "/console/api/keys?prefix=a&prefix=b", 400),
        ("GET", "/console/api/key?key=none", 404),
        ("GET", "/console/api/lease?id=zz", 400),
        ("GET", "/console/api/lease?id=0", 400),
        ("GET", "/console/api/lease?id=123456789", 404),
        ("GET", "/console/api/tail", 400),
        ("GET", "/console/api/tail?key=a&prefix=b", 400),
    ],
)
def test_methods_paths_and_parameters(port: EtcdPort, method: str, path: str, status: int) -> None:
    reply = request(port.endpoint, method, path, None, {"Origin": "https://elsewhere"})
    assert reply.status == status
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "access-control-allow-origin" not in reply.headers


def test_it_is_off_unless_asked_for() -> None:
    with etcd_port() as port:
        for path in ("/console", "/console/app.js", "/console/api/cluster"):
            assert request(port.endpoint, "GET", path).status == 404
        assert act(port, "compact", revision=1).status == 404


# --- views -----------------------------------------------------------------------------------------------------------


def test_the_cluster_and_what_has_happened_to_it(port: EtcdPort) -> None:
    status = port.proxy.member._status()
    found = get(port, "cluster")
    assert (found["cluster"], found["leader"], found["term"]) == (status.cluster_name, 1, status.term)
    assert found["cluster_id"] == f"{status.cluster:x}"
    assert (found["user"], found["acts"], found["alarms"], found["spare"]) == ("", True, [], 0)
    (member,) = found["members"]
    assert (member["id"], member["role"], member["pid"]) == (1, "leader", os.getpid())
    until(lambda: get(port, "cluster")["members"][0]["lag"] == 0)
    until(lambda: 0 < (now := get(port, "cluster")["members"][0])["applied_index"] == now["commit_index"])
    until(lambda: any(each["kind"] == "election" for each in get(port, "events")["events"]))


def test_two_members_without_a_lane_are_one_alarm(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two says so, and the page said it twice."""
    one = msgspec.structs.replace(port.proxy.member._status(), voters=(1, 2, 3), without_lane={2: "a firewall"})
    others = {
        2: msgspec.structs.replace(one, member=2, role="follower", without_lane={1: "refused", 3: "swallowed"}),
        3: msgspec.structs.replace(one, member=3, role="follower", without_lane={2: "refused"}),
    }

    async def told(calls: MemberCalls, member: int) -> MemberStatus:
        return others.get(member, one)

    monkeypatch.setattr(MemberCalls, "members", lambda calls: {1: "m1", 2: "m2", 3: "m3"})
    monkeypatch.setattr(MemberCalls, "status", told)
    found = get(port, "cluster")
    assert found["alarms"] == [
        "m1 has no lane to m2 and uses slower actor calls: a firewall",
        "m2 has no lane to m3: swallowed",
    ]
    assert [each["without_lane"] for each in found["members"]][2] == {"m2": "refused"}, "each tells its own side"


def test_a_level_of_the_tree_passes_over_what_is_in_folders(port: EtcdPort) -> None:
    kv = port.proxy.kv
    for key in ("a", "a/", "a/1", "a/2/x", "a0", "b//c", "/", "z/y"):
        kv.put(key, "v")
    assert level(port) == (["/", "a", "a/", "a0", "b/", "z/"], None)
    assert level(port, "a/") == (["", "1", "2/"], None)
    assert level(port, "b/") == (["/"], None)
    assert level(port, "none/") == ([], None)
    assert level(port, "a") == (["", "/", "0"], None)


def test_levels_come_page_by_page(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = port.proxy.kv
    names = [f"{number:02}" + ("/x" if number % 3 else "") for number in range(20)]
    for name in names:
        kv.put(name, "v")
        kv.put(f"{name}/deep" if "/" in name else name, "v")
    for bound, most in (("CONSOLE_KEYS", 3), ("CONSOLE_READS", 2), ("CONSOLE_KEY_BYTES", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(console_keys, bound, most)
            listed, start, pages = list[str](), "", 0
            while True:
                some, following = level(port, "", start)
                listed += some
                pages += 1
                if following is None:
                    break
                start = following
            assert listed == [name.partition("/")[0] + ("/" if "/" in name else "") for name in names], bound
            assert pages > 3 or bound == "CONSOLE_READS"


def test_a_key_with_its_history(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = port.proxy.kv
    for number in range(5):
        kv.put("k", f"v{number}")
    found = get(port, "key?key=k")
    assert (found["value"]["text"], found["version"], found["end"], found["lease"]) == ("v4", 5, "created", "")
    assert [each["value"]["text"] for each in found["history"]] == ["v3", "v2", "v1", "v0"]
    assert [each["version"] for each in found["history"]] == [4, 3, 2, 1]
    monkeypatch.setattr(console_keys, "CONSOLE_VERSIONS", 2)
    assert get(port, "key?key=k")["end"] == "more"
    kv.compact(found["mod_revision"])
    compacted = get(port, "key?key=k")
    assert (compacted["value"]["text"], compacted["history"], compacted["end"]) == ("v4", [], "compacted")


def test_long_and_binary_values_and_keys(port: EtcdPort) -> None:
    kv = port.proxy.kv
    kv.put(b"\xff/\x00", b"\x00\x01\xfe")
    assert level(port) == (["\\xff/"], None)
    (entry,) = get(port, "keys?prefix=%ff/")["entries"]
    assert (entry["key"], entry["path"]) == ("\\x00", "%FF/%00")
    assert get(port, f"key?key={entry['path']}")["value"] == {"hex": "00 01 fe", "size": 3, "cut": False}
    kv.put("long", "é" * 50_000)
    value = get(port, "key?key=long")["value"]
    assert (value["size"], value["cut"], len(value["text"])) == (100_000, True, 32_768)
    assert value_form("éé".encode(), 3) == {"text": "é", "size": 4, "cut": True}
    assert value_form("é".encode()[:1], 3) == {"hex": "c3", "size": 1, "cut": False}
    kv.put("n" * 5000, "v")
    assert max(len(each["key"]) for each in get(port, "keys")["entries"]) < 600


def test_a_live_tail(port: EtcdPort) -> None:
    kv = port.proxy.kv
    connection = http.client.HTTPConnection(port.endpoint, timeout=PATIENCE)
    connection.request("GET", "/console/api/tail?prefix=t/")
    reply = connection.getresponse()
    begun = json.loads(reply.readline())
    assert begun["revision"] <= kv.revision()
    kv.put("elsewhere", "x")
    kv.put("t/a", "x" * 1000)
    kv.delete("t/a")
    put, deleted = json.loads(reply.readline()), json.loads(reply.readline())
    assert (put["type"], put["key"], put["value"]["size"], len(put["value"]["text"])) == ("put", "t/a", 1000, 512)
    assert (deleted["type"], deleted["key"], deleted["revision"]) == ("delete", "t/a", put["revision"] + 1)
    connection.close()


def test_live_tails_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_keys, "MAX_CONSOLE_TAILS", 1)
    with etcd_port(console="read") as port:  # of its own: another test's tail may not have ended yet
        connection = http.client.HTTPConnection(port.endpoint, timeout=PATIENCE)
        connection.request("GET", "/console/api/tail?key=a")
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.readline()
        assert request(port.endpoint, "GET", "/console/api/tail?key=a").status == 429
        connection.close()
        reply.close()


def test_who_holds_and_who_waits(port: EtcdPort) -> None:
    kv = port.proxy.kv
    with kv.lock("re/ports", ttl=TTL) as held:
        second = kv.lock("re/ports", ttl=TTL)
        waiting = in_thread(second.acquire)
        until(lambda: get(port, "locks")["locks"] and get(port, "locks")["locks"][0]["waiters"])
        (found,) = get(port, "locks")["locks"]
        assert (found["kind"], found["name"], found["stuck"]) == ("lock", "re/ports", "")
        ((holder,), (waiter,)) = found["holders"], found["waiters"]
        assert (holder["token"], holder["pid"]) == (held.token, os.getpid())
        assert waiter["token"] > held.token
        holds = held.holder()
        assert holds is not None
        lease = next(each for each in get(port, "leases")["leases"] if each["id"] == f"{holds.lease:x}")
        assert (lease["ttl"], lease["client"]["pid"]) == (TTL, os.getpid())
        hangs = get(port, f"lease?id={lease['id']}")["keys"]
        assert {"kind": "lock", "key": "re/ports", "path": ""} in hangs
        assert [each["pid"] for each in get(port, "clients")["clients"] if each["leases"]] == [os.getpid()]
    waiting.result(PATIENCE)
    second.release()
    for name in ("semaphores", "elections", "queues", "barriers", "services"):
        assert get(port, name)[name] == []


def test_what_loads_the_cluster(port: EtcdPort) -> None:
    kv = port.proxy.kv
    kv.put("heavy/a", "v" * 1000)

    def rows() -> bool:
        kv.put("heavy/a", "v" * 1000)
        found = get(port, "load")
        assert found["silent"] == []
        ours = [each for each in found["clients"] if each["client"] and each["client"]["pid"] == os.getpid()]
        return bool(ours) and any(each["prefix"] == "heavy/" and each["puts"] > 0 for each in found["prefixes"])

    until(rows)


def test_lists_are_cut(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = port.proxy.kv
    for bound in ("CONSOLE_LEASES", "CONSOLE_NAMES", "CONSOLE_CLIENTS", "CONSOLE_EVENTS"):
        monkeypatch.setattr(console_views, bound, 1)
    locks = [kv.lock(f"l{number}", ttl=TTL) for number in range(3)]
    for lock in locks:
        assert lock.acquire()
    leases = get(port, "leases")
    assert (len(leases["leases"]), leases["total"] >= 3) == (1, True)
    assert len(get(port, "locks")["locks"]) == 1
    assert len(get(port, "clients")["clients"]) == 1
    assert len(get(port, "events")["events"]) <= 1
    for lock in locks:
        lock.release()


# --- actions ---------------------------------------------------------------------------------------------------------


def test_members_are_changed_by_those_who_start_and_stop_them(port: EtcdPort) -> None:
    assert json.loads(act(port, "move-leader", member=1).body) == {"leader": 1}
    assert act(port, "add-member", learner=True).status == 200
    assert act(port, "add-member").status == 200
    assert act(port, "move-leader", member=7).status == 400
    assert act(port, "remove-member", member=7).status == 404
    assert act(port, "remove-member", member=1).status == 500  # the last voter
    port.proxy.run(port.proxy.services.calls.change_membership([MemberChange(ChangeKind.ADD_LEARNER, 2)]))
    assert act(port, "remove-member", member=2).status == 200
    assert act(port, "remove-member", member=2).status == 404
    assert port.proxy.operations.asked == [("move", 1), ("add", True), ("add", False), ("remove", 2)]


def test_history_is_compacted(port: EtcdPort) -> None:
    kv = port.proxy.kv
    for number in range(3):
        kv.put("k", str(number))
    revision = kv.revision()
    assert act(port, "compact", revision=revision).status == 200
    assert get(port, "cluster")["compact_revision"] == revision
    assert act(port, "compact", revision=revision + 1000).status == 400
    assert act(port, "compact", revision=-1).status >= 400


def test_a_lease_is_revoked(port: EtcdPort) -> None:
    kv = port.proxy.kv
    lease = kv.lease(TTL, keep_alive=False)
    kv.put("leased", "v", lease=lease)
    assert act(port, "revoke-lease", lease=f"{lease.id:x}").status == 200
    assert kv.get("leased") is None
    assert act(port, "revoke-lease", lease=f"{lease.id:x}").status == 404
    for wrong in ("", "zz", "-1", "0", "f" * 17):
        assert act(port, "revoke-lease", lease=wrong).status == 400


@pytest.mark.parametrize("kind", ["lock", "election"])
def test_a_lock_is_released_and_the_next_in_line_has_it(port: EtcdPort, kind: str) -> None:
    kv = port.proxy.kv
    plural = f"{kind}s"

    def make() -> Any:
        return kv.lock("a/b", ttl=TTL) if kind == "lock" else kv.election("a/b", ttl=TTL)

    def take(contender: Any) -> Any:
        return contender.acquire() if kind == "lock" else contender.campaign("me")

    first, second = make(), make()
    take(first)
    taken = in_thread(lambda: take(second))
    until(lambda: get(port, plural)[plural][0]["waiters"])
    (found,) = get(port, plural)[plural]
    token = found["holders"][0]["token"]
    assert act(port, "release", kind=kind, path=found["path"], token=token + 1_000_000).status == 404
    assert act(port, "release", kind="queue", path=found["path"], token=token).status == 400
    assert act(port, "release", kind=kind, path="", token=token).status == 400
    assert act(port, "release", kind=kind, path=found["path"], token=token).status == 200
    taken.result(PATIENCE)
    until(lambda: first.lost.is_set())
    (found,) = get(port, plural)[plural]
    assert [each["token"] for each in found["holders"]] == [second.token]
    second.release() if kind == "lock" else second.resign()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"revision":1}', "text/plain", 415),
        (b'{"revision":1}', "application/x-www-form-urlencoded", 415),
        (b'{"revision":1}', "", 415),
        (b'{"revision":"1"}', "application/json", 400),
        (b'{"revision":1,"more":2}', "application/json", 400),
        (b"{}", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"revision":%s}' % (b" " * 70_000 + b"1"), "application/json", 400),
        (b'{"revision":' + b"9" * 30 + b"}", "application/json", 400),
    ],
)
def test_what_is_no_action(port: EtcdPort, body: bytes, content_type: str, status: int) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert request(port.endpoint, "POST", "/console/api/act/compact", body, headers).status == status


def test_a_console_for_reading_does_nothing() -> None:
    with etcd_port(console="read") as port:
        assert get(port, "cluster")["acts"] is False
        for action in ("move-leader", "add-member", "remove-member", "compact", "revoke-lease", "release"):
            assert act(port, action, member=1).status == 403
        assert port.proxy.operations.asked == []
