"""``/kv/``: single keys with their conditions, and pages of many; over one real member, by HTTP/1.1."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import Reply, request
from raykeeper.actors.proxy.key_forms import escaped
from raykeeper.limits import HTTP_PAGE_ITEMS, MAX_HTTP_PARAMETERS


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(autouse=True)
def empty(port: EtcdPort) -> None:
    port.proxy.kv.delete(prefix="")


def ask(
    port: EtcdPort, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    return request(port.endpoint, method, target, body, headers)


def tag(revision: int) -> str:
    return f'"{revision}"'


# --- one key ---------------------------------------------------------------------------------------------------------


def test_a_value_goes_in_and_comes_out_as_it_is(port: EtcdPort) -> None:
    value = bytes(range(256)) * 10
    written = ask(port, "PUT", "/kv/jobs/1", value)
    assert (written.status, written.body) == (201, b"")
    found = port.proxy.kv.get("jobs/1")
    assert found is not None
    assert found.raw == value
    read = ask(port, "GET", "/kv/jobs/1")
    assert (read.status, read.body) == (200, value)
    expected = {
        "etag": tag(found.mod_revision),
        "x-raykeeper-mod-revision": str(found.mod_revision),
        "x-raykeeper-create-revision": str(found.create_revision),
        "x-raykeeper-version": "1",
        "content-type": "application/octet-stream",
        "x-content-type-options": "nosniff",
    }
    assert expected.items() <= read.headers.items()
    assert written.headers["x-raykeeper-revision"] == read.headers["x-raykeeper-revision"] == str(found.mod_revision)
    assert "x-raykeeper-lease" not in read.headers
    again = ask(port, "PUT", "/kv/jobs/1", b"")
    assert (again.status, again.headers["x-raykeeper-version"]) == (200, "2")
    assert ask(port, "GET", "/kv/jobs/1").body == b""


@pytest.mark.parametrize("key", [b"a/b//c/", b"/", b"a b%?#", b"\0\xff\xfe", "schlüssel/☃".encode(), b"a+b", b"."])
def test_any_key(port: EtcdPort, key: bytes) -> None:
    assert ask(port, "PUT", "/kv/" + quote_from_bytes(key), b"1").status == 201
    everywhere = "/kv/" + "".join(f"%{byte:02x}" for byte in key)
    assert ask(port, "GET", everywhere).body == b"1"
    found = port.proxy.kv.get(key)
    assert found is not None
    (pair,) = json.loads(ask(port, "GET", "/kv/?prefix").body)["kvs"]
    assert b64decode(pair["key"]) == key
    assert ask(port, "GET", pair["path"]).body == b"1"


def test_a_key_that_does_not_exist(port: EtcdPort) -> None:
    for method in ("GET", "DELETE"):
        reply = ask(port, method, "/kv/nothing")
        assert (reply.status, reply.body) == (404, b"the key does not exist\n")
        assert int(reply.headers["x-raykeeper-revision"]) > 0


def test_head(port: EtcdPort) -> None:
    ask(port, "PUT", "/kv/a", b"value")
    reply = ask(port, "HEAD", "/kv/a")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "5")
    assert ask(port, "HEAD", "/kv/b").status == 404


def test_delete(port: EtcdPort) -> None:
    ask(port, "PUT", "/kv/a", b"1")
    reply = ask(port, "DELETE", "/kv/a")
    assert (reply.status, reply.body, reply.headers["x-raykeeper-deleted"]) == (200, b"", "1")
    assert int(reply.headers["x-raykeeper-revision"]) == port.proxy.kv.revision()
    assert ask(port, "GET", "/kv/a").status == 404


def test_the_past(port: EtcdPort) -> None:
    first = int(ask(port, "PUT", "/kv/a", b"1").headers["x-raykeeper-revision"])
    ask(port, "PUT", "/kv/a", b"2")
    reply = ask(port, "GET", f"/kv/a?revision={first}")
    assert (reply.status, reply.body, reply.headers["etag"]) == (200, b"1", tag(first))
    assert int(reply.headers["x-raykeeper-revision"]) == first + 1
    assert ask(port, "GET", "/kv/a?serializable").body == b"2"
    assert ask(port, "GET", f"/kv/a?revision={first + 1000}").status == 400
    port.proxy.kv.compact(first + 1)
    reply = ask(port, "GET", f"/kv/a?revision={first}")
    assert (reply.status, reply.headers["x-raykeeper-compact-revision"]) == (410, str(first + 1))
    assert b"compacted" in reply.body


def test_leases(port: EtcdPort) -> None:
    lease = port.proxy.kv.lease(60)
    assert ask(port, "PUT", f"/kv/a?lease={lease.id}", b"1").status == 201
    assert ask(port, "PUT", f"/kv/b?lease=0x{lease.id:x}", b"1").status == 201
    for key in ("a", "b"):
        found = port.proxy.kv.get(key)
        assert found is not None
        assert found.lease == lease.id
        assert ask(port, "GET", f"/kv/{key}").headers["x-raykeeper-lease"] == str(lease.id)
    lease.revoke()
    reply = ask(port, "PUT", f"/kv/a?lease={lease.id}", b"1")
    assert (reply.status, reply.body) == (404, b"the lease does not exist, or has expired\n")
    assert ask(port, "GET", "/kv/a").status == 404


# --- conditions ------------------------------------------------------------------------------------------------------


def test_create_only(port: EtcdPort) -> None:
    only = {"If-None-Match": "*"}
    assert ask(port, "PUT", "/kv/a", b"1", only).status == 201
    reply = ask(port, "PUT", "/kv/a", b"2", only)
    found = port.proxy.kv.get("a")
    assert found is not None
    assert (reply.status, reply.headers["etag"], found.raw) == (412, tag(found.mod_revision), b"1")
    assert reply.body == b"the condition does not hold: the key was changed last at revision %d\n" % found.mod_revision


@pytest.mark.parametrize("form", ['"%d"', "%d", 'W/"%d"', ' "%d" '])
def test_compare_and_swap(port: EtcdPort, form: str) -> None:
    revision = int(ask(port, "PUT", "/kv/a", b"1").headers["x-raykeeper-revision"])
    second = ask(port, "PUT", "/kv/a", b"2", {"If-Match": form % revision})
    assert second.status == 200
    stale = ask(port, "PUT", "/kv/a", b"3", {"If-Match": form % revision})
    assert (stale.status, stale.headers["etag"]) == (412, second.headers["etag"])
    assert ask(port, "DELETE", "/kv/a", None, {"If-Match": form % revision}).status == 412
    assert ask(port, "GET", "/kv/a").body == b"2"
    assert ask(port, "DELETE", "/kv/a", None, {"If-Match": second.headers["etag"]}).status == 200
    gone = ask(port, "DELETE", "/kv/a", None, {"If-Match": second.headers["etag"]})
    assert (gone.status, gone.body) == (412, b"the condition does not hold: the key does not exist\n")
    assert "etag" not in gone.headers


def test_only_what_exists_is_overwritten(port: EtcdPort) -> None:
    exists = {"If-Match": "*"}
    assert ask(port, "PUT", "/kv/a", b"1", exists).status == 412
    ask(port, "PUT", "/kv/a", b"1")
    assert ask(port, "PUT", "/kv/a", b"2", exists).status == 200


def test_what_the_client_has_is_not_sent_again(port: EtcdPort) -> None:
    written = ask(port, "PUT", "/kv/a", b"1")
    same = {"If-None-Match": written.headers["etag"]}
    reply = ask(port, "GET", "/kv/a", None, same)
    assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", written.headers["etag"])
    ask(port, "PUT", "/kv/a", b"2")
    assert ask(port, "GET", "/kv/a", None, same).body == b"2"
    assert ask(port, "GET", "/kv/a", None, {"If-Match": written.headers["etag"]}).status == 412


def test_a_request_that_is_sent_again_is_done_once(port: EtcdPort) -> None:
    once = {"Idempotency-Key": "task-1", "If-None-Match": "*"}
    replies = [ask(port, "PUT", "/kv/a", b"1", once) for _ in range(3)]
    assert {(each.status, each.headers["etag"]) for each in replies} == {(201, replies[0].headers["etag"])}
    deletes = [ask(port, "DELETE", "/kv/a", None, {"Idempotency-Key": "task-2"}) for _ in range(2)]
    assert [each.status for each in deletes] == [200, 200]
    other = ask(port, "PUT", "/kv/a", b"other", once)
    assert other.status == 400
    assert ask(port, "PUT", "/kv/a", b"", {"Idempotency-Key": "x" * 5000}).status == 413


# --- many keys -------------------------------------------------------------------------------------------------------


def test_pages_of_one_revision(port: EtcdPort) -> None:
    kv = port.proxy.kv
    for number in range(25):
        kv.put(f"jobs/{number:02}", str(number))
    kv.put("other", "1")
    revision = kv.revision()
    target, found, pages = "/kv/jobs/?prefix&limit=10", [], 0
    while target:
        reply = ask(port, "GET", target)
        page = json.loads(reply.body)
        found += [(b64decode(pair["key"]).decode(), b64decode(pair["value"]).decode()) for pair in page["kvs"]]
        assert reply.headers.get("link", "") == (f'<{page["next"]}>; rel="next"' if "next" in page else "")
        target = page.get("next", "")
        pages += 1
        kv.put(f"jobs/{pages:02}", "changed")  # which a page of the same revision does not show
    assert found == [(f"jobs/{number:02}", str(number)) for number in range(25)]
    assert pages == 3
    reply = ask(port, "GET", f"/kv/jobs/?prefix&revision={revision}&limit=1")
    assert json.loads(reply.body)["revision"] == reply.headers["x-raykeeper-revision"] == str(kv.revision())


def test_a_page_is_bounded_in_bytes(port: EtcdPort) -> None:
    for number in range(8):
        port.proxy.kv.put(f"big/{number}", bytes(1_000_000))
    target, found, pages = "/kv/big/?prefix", 0, 0
    while target:
        page: dict[str, Any] = json.loads(ask(port, "GET", target).body)
        found, pages, target = found + len(page["kvs"]), pages + 1, page.get("next", "")
    assert (found, pages) == (8, 2)


def test_json_of_a_pair(port: EtcdPort) -> None:
    lease = port.proxy.kv.lease(60)
    revision = port.proxy.kv.put("a b", b"\xff", lease=lease).revision
    expected = {
        "key": "YSBi",
        "path": "/kv/a%20b",
        "value": "/w==",
        "create_revision": str(revision),
        "mod_revision": str(revision),
        "version": "1",
        "lease": str(lease.id),
    }
    reply = ask(port, "GET", "/kv/?prefix")
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body) == {"revision": str(revision), "kvs": [expected]}
    del expected["value"]
    assert json.loads(ask(port, "GET", "/kv/a?prefix&keys_only").body)["kvs"] == [expected]


def test_lines_of_text(port: EtcdPort) -> None:
    kv = port.proxy.kv
    kv.put("a", "one\ttwo\nthree\\")
    kv.put(b"b\xff", "schön".encode())
    reply = ask(port, "GET", "/kv/?prefix&text")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.body.decode() == "a\tone\\ttwo\\nthree\\\\\nb\\xff\tschön\n"
    assert ask(port, "GET", "/kv/?prefix&text&keys_only").body == b"a\nb\\xff\n"
    first = ask(port, "GET", "/kv/?prefix&text&limit=1")
    following = first.headers["link"].partition(">")[0].removeprefix("<")
    assert ask(port, "GET", following).body.decode() == "b\\xff\tschön\n"


@pytest.mark.parametrize("data", [bytes(range(256)), "☃\u2028\u0085\U0001f600\\n".encode(), b"\xed\xa0\x80", b"plain"])
def test_escaped_text_can_be_read_by_a_shell(data: bytes) -> None:
    text = escaped(data)
    assert len(text.splitlines()) == 1
    assert "\t" not in text
    printed = subprocess.run(["bash", "-c", "printf '%b' \"$1\"", "-", text], capture_output=True, check=True)
    assert printed.stdout == data


def test_all_keys_with_a_prefix_are_deleted(port: EtcdPort) -> None:
    for key in ("a/1", "a/2", "b"):
        port.proxy.kv.put(key, "")
    assert ask(port, "DELETE", "/kv/a/?prefix").headers["x-raykeeper-deleted"] == "2"
    reply = ask(port, "DELETE", "/kv/a/?prefix")
    assert (reply.status, reply.headers["x-raykeeper-deleted"]) == (200, "0")
    assert [pair.key for pair in port.proxy.kv.range(prefix="")] == [b"b"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "headers", "what"),
    [
        ("GET", "/kv/", {}, "the key is empty"),
        ("PUT", "/kv/", {}, "the key is empty"),
        ("DELETE", "/kv/", {}, "the key is empty"),
        ("GET", "/kv/a?Prefix", {}, "a request to get does not take the parameter 'Prefix'"),
        ("GET", "/kv/a?limit=5", {}, "it takes: revision, serializable"),
        ("GET", "/kv/a?prefix=jobs/", {}, "prefix is a flag"),
        ("GET", "/kv/a?watch&revision=5", {}, "'revision'"),
        ("PUT", "/kv/a?prefix", {}, "'prefix'"),
        ("DELETE", "/kv/a?lease=1", {}, "it takes: none"),
        ("GET", "/kv/a?revision=x", {}, "revision must be a whole number"),
        ("GET", "/kv/a?revision=-1", {}, "revision must be a whole number"),
        ("GET", "/kv/a?revision=0", {}, "revision must be from 1 to"),
        ("GET", f"/kv/a?revision={1 << 63}", {}, "revision must be from 1 to"),
        ("GET", "/kv/a?revision=" + "9" * 5000, {}, "revision must be a whole number"),
        ("PUT", "/kv/a?lease=abc", {}, "or 0x and a hexadecimal one"),
        ("GET", "/kv/a?prefix&limit=0", {}, "limit must be from 1"),
        ("GET", f"/kv/a?prefix&limit={HTTP_PAGE_ITEMS + 1}", {}, f"limit must be from 1 to {HTTP_PAGE_ITEMS}"),
        ("GET", "/kv/a?prefix&start=b", {}, "start does not begin with the prefix"),
        ("GET", "/kv/a?revision=1&revision=2", {}, "given twice"),
        ("GET", "/kv/a?" + "&".join(f"p{number}" for number in range(MAX_HTTP_PARAMETERS + 1)), {}, "parameters"),
        ("GET", "/kv/a%2", {}, "the path has a %"),
        ("GET", "/kv/a?start=%zz", {}, "the query has a %"),
        ("PUT", "/kv/a", {"If-Match": '"1", "2"'}, "If-Match must be * or one mod revision"),
        ("PUT", "/kv/a", {"If-None-Match": '"x"'}, "If-None-Match must be * or one"),
        ("PUT", "/kv/a", {"If-Match": "0"}, "If-Match must be * or one"),
        ("PUT", "/kv/a", {"If-Match": "9" * 19}, "If-Match must be * or one"),
        ("DELETE", "/kv/a?prefix", {"If-Match": "*"}, "go with one key"),
        ("GET", "/kv/a?watch", {"Last-Event-ID": "x"}, "Last-Event-ID must be a revision"),
        ("PUT", "/kv/a", {"Idempotency-Key": ""}, "must not be empty"),
    ],
)
def test_bad_requests(port: EtcdPort, method: str, target: str, headers: Mapping[str, str], what: str) -> None:
    before = port.proxy.kv.revision()
    reply = ask(port, method, target, None, headers)
    assert (reply.status, what in reply.body.decode()) == (400, True), reply.body
    assert reply.body.endswith(b"\n")
    assert port.proxy.kv.revision() == before


def test_other_methods(port: EtcdPort) -> None:
    reply = ask(port, "POST", "/kv/a", b"1")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")
    assert ask(port, "HEAD", "/kv/a?watch").status == 405
    assert ask(port, "GET", "/kv").status == 404


def test_what_is_too_large(port: EtcdPort) -> None:
    most = port.proxy.backend.limits.max_request_bytes
    assert ask(port, "PUT", "/kv/a", bytes(most - 100)).status == 201
    assert ask(port, "PUT", "/kv/a", bytes(most + 1)).status == 413
    assert ask(port, "PUT", "/kv/a", bytes(2 * most)).status == 413
    assert ask(port, "PUT", "/kv/" + "k" * (port.proxy.backend.limits.max_key_bytes + 1), b"").status == 413


def test_a_cluster_that_is_full(port: EtcdPort) -> None:
    alarm = b'{"action": "%s", "memberID": 1, "alarm": "NOSPACE"}'
    ask(port, "POST", "/v3/maintenance/alarm", alarm % b"ACTIVATE")
    try:
        reply = ask(port, "PUT", "/kv/a", b"1")
        assert (reply.status, b"nothing was written" in reply.body) == (507, True)
        assert reply.headers["retry-after"] == "1"
    finally:
        ask(port, "POST", "/v3/maintenance/alarm", alarm % b"DEACTIVATE")
