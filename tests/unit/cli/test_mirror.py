"""`make-mirror` between a member of ours and a real etcd, both ways; and backups of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.etcd import Etcd, running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port
from raykeeper import CompactedError, RequestTimeout, Unavailable
from raykeeper.actors.client.txn_parts import Op
from raykeeper.cli import main, mirror
from raykeeper.cli.etcd_gateway import Endpoint
from raykeeper.cli.gateway_client import GatewayClient
from raykeeper.cli.json_forms import FORMS, misfit
from raykeeper.cli.mirror import Mirror


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    with running_etcd() as etcd:
        yield etcd


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy waits as long as its client does, however busy the machine is."""
    for file in ("member_calls", "etcd_backend"):
        monkeypatch.setattr(f"raykeeper.actors.proxy.{file}.PROXY_TIMEOUT_S", 120.0)


@pytest.fixture
def ends(port: EtcdPort, etcd: Etcd) -> Iterator[tuple[Any, GatewayClient]]:
    """A handle of ours, and a client of the etcd; both empty."""
    handle = port.proxy.kv
    handle.delete(prefix="")
    with GatewayClient(Endpoint(f"http://{etcd.endpoint}"), 120) as client:
        client.delete(prefix=b"")
        yield handle, client


def pairs(client: Any, prefix: bytes = b"") -> dict[bytes, bytes]:
    return {item.key: item.raw for item in client.range(prefix=prefix)}


def fill(client: Any, prefix: bytes) -> dict[bytes, bytes]:
    for number in range(300):
        client.put(prefix + b"%03d" % number, b"v%d\xff" % number)
    client.put(b"other", b"not mirrored")
    return {prefix + b"%03d" % number: b"v%d\xff" % number for number in range(300)}


@pytest.mark.parametrize("way", ["to an etcd", "from an etcd"])
def test_a_copy_and_each_change_after_it(
    ends: tuple[Any, GatewayClient], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "GATEWAY_PAGE_ITEMS", 70)
    source, target = ends if way == "to an etcd" else ends[::-1]
    expected = fill(source, b"jobs/")
    made = Mirror(source, target, b"jobs/", b"copy/")
    pages = 0
    for _ in made.copy():
        source.put(b"jobs/late", b"%d" % pages)
        pages += 1
    assert pages == 5
    assert pairs(target) == {b"copy/" + key[5:]: value for key, value in expected.items()}
    assert made.mirrored == 300
    source.delete(prefix=b"jobs/0")
    source.txn([], [Op.put(b"jobs/x", b"1"), Op.put(b"jobs/y", b"2"), Op.delete(b"jobs/100")], [])
    last = source.put(b"jobs/end", b"\x00").revision
    for _ in made.follow():
        if made.revision >= last:
            break
    assert pairs(target) == {b"copy/" + key[5:]: value for key, value in pairs(source, b"jobs/").items()}
    assert b"copy/x" in pairs(target)


def test_what_fails_is_tried_again_until_it_is_there(ends: tuple[Any, GatewayClient]) -> None:
    source, target = ends
    fill(source, b"k")

    class Failing:
        """Every other write is made, or not, and its answer is lost."""

        calls = 0

        def txn(self, *parts: Any) -> Any:
            self.calls += 1
            if self.calls % 4 == 1:
                raise Unavailable("away")
            answer = target.txn(*parts)
            if self.calls % 4 == 3:
                raise RequestTimeout("late", applied=None)
            return answer

    pauses: list[int] = []
    made = Mirror(source, Failing(), b"", b"", pause=lambda: pauses.append(1))
    for _ in made.copy():
        pass
    assert pairs(target) == pairs(source)
    assert len(pauses) >= 2


def test_a_source_that_breaks_off_is_followed_from_where_it_was(ends: tuple[Any, GatewayClient]) -> None:
    target, source = ends
    first = source.put(b"a", b"1").revision
    made = Mirror(source, target, b"", b"", pause=lambda: None)
    made.revision = first - 1
    following = made.follow()
    while made.revision < first:
        next(following)
    source.gateway.close()
    other = GatewayClient(Endpoint(source.gateway.url), 120)
    last = other.put(b"a", b"2").revision
    while made.revision < last:
        next(following)
    assert target.get("a").raw == b"2"
    other.compact(last)
    gone = Mirror(source, target, b"", b"")
    gone.revision = first - 1
    with pytest.raises(CompactedError):
        next(gone.follow())
    other.close()


def test_the_command_copies_and_says_how_much(ends: tuple[Any, GatewayClient], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = ends

    class Borrowed:
        """A handle that the command may close."""

        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(mirror, "open_client", lambda *_: Borrowed())
    source.put(b"p/1", b"1")
    endpoint = target.gateway.url
    done = CliRunner().invoke(
        main.cli,
        ["make-mirror", endpoint, "--prefix", "p/", "--dest-prefix", "q/", "--once", "-o", "json", "--timeout", "120"],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"mirrored": 1, "revision": source.revision()}
    assert misfit(FORMS["make-mirror"], json.loads(done.stdout)) == ""
    assert pairs(target) == {b"q/1": b"1"}
    back = CliRunner().invoke(
        main.cli, ["make-mirror", endpoint, "--from", "--prefix", "q/", "--once", "--timeout", "120"]
    )
    assert back.exit_code == 0, back.output
    assert source.get("q/1").raw == b"1"
    bare = ["make-mirror", endpoint, "--prefix", "p/", "--no-dest-prefix", "--once", "--timeout", "120"]
    assert CliRunner().invoke(main.cli, bare).exit_code == 0
    assert pairs(target) == {b"q/1": b"1", b"1": b"1"}
    assert CliRunner().invoke(main.cli, [*bare, "--dest-prefix", "r/"]).exit_code == 2
    bad = CliRunner().invoke(main.cli, ["make-mirror", endpoint, "--remote-user", "x"])
    assert bad.exit_code == 2


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_an_endpoint_is_one_whose_status_can_be_told(port: EtcdPort, tmp_path: Path) -> None:
    revision = port.proxy.kv.put("s", "1").revision
    file = str(tmp_path / "backup")
    saved = CliRunner().invoke(main.cli, ["snapshot", "save", file, "--endpoint", port.endpoint, "-o", "json"])
    assert saved.exit_code == 0, saved.output
    assert [each.name for each in tmp_path.iterdir()] == ["backup"]
    told = CliRunner().invoke(main.cli, ["snapshot", "status", file, "-o", "json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert misfit(FORMS["snapshot save"], json.loads(saved.stdout)) == ""
    assert misfit(FORMS["snapshot status"], found) == ""
    assert (found["revision"], found["bytes"]) == (revision, json.loads(saved.stdout)["bytes"])
    data = bytearray(Path(file).read_bytes())
    data[len(data) // 2] ^= 1
    Path(file).write_bytes(data)
    damaged = CliRunner().invoke(main.cli, ["snapshot", "status", file])
    assert (damaged.exit_code, damaged.stderr.count("\n")) == (1, 1)
    nowhere = CliRunner().invoke(
        main.cli, ["snapshot", "save", str(tmp_path / "no" / "x"), "--endpoint", port.endpoint]
    )
    assert nowhere.exit_code == 1
    assert CliRunner().invoke(main.cli, ["snapshot", "status", str(tmp_path / "none")]).exit_code == 1


def test_a_snapshot_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "backup"
    gone = CliRunner().invoke(main.cli, ["snapshot", "save", str(file), "--endpoint", "127.0.0.1:1"])
    assert gone.exit_code == 1
    assert list(tmp_path.iterdir()) == []
