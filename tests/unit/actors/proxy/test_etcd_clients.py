"""etcd's own clients, unmodified, over real sockets: etcdctl (Go's clientv3) and aetcd."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port

aetcd = pytest.importorskip("aetcd")


def etcdctl_program() -> str | None:
    beside = Path(sys.executable).with_name("etcdctl")
    return str(beside) if beside.exists() else shutil.which("etcdctl")


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


class Etcdctl:
    """The command, for one endpoint."""

    def __init__(self, program: str, endpoint: str) -> None:
        self._command = [program, f"--endpoints={endpoint}"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=30)
        assert (process.returncode != 0) == fails, err
        return err if fails else out


@pytest.fixture
def etcdctl(port: EtcdPort) -> Etcdctl:
    program = etcdctl_program()
    if program is None:
        pytest.skip("there is no etcdctl")
    return Etcdctl(program, port.endpoint)


# --- etcdctl ---------------------------------------------------------------------------------------------------------


def test_keys(etcdctl: Etcdctl) -> None:
    assert etcdctl.run("put", "keys/a", "1") == "OK\n"
    assert etcdctl.run("put", "keys/b", "2", "--prev-kv") == "OK\n"
    assert etcdctl.run("get", "keys/", "--prefix") == "keys/a\n1\nkeys/b\n2\n"
    assert '"Count" : 2' in etcdctl.run("get", "keys/", "--prefix", "--count-only", "-w", "fields")
    assert etcdctl.run("del", "keys/", "--prefix") == "2\n"
    assert "required revision is a future revision" in etcdctl.run("get", "keys/a", "--rev=1000000", fails=True)


def test_a_large_value(etcdctl: Etcdctl) -> None:
    value = "v" * 1_000_000
    assert etcdctl.run("put", "large", stdin=value) == "OK\n"
    assert etcdctl.run("get", "large", "--print-value-only") == f"{value}\n"
    too_large = etcdctl.run("put", "large", stdin="v" * 1_600_000, fails=True)
    assert "request is too large" in too_large
    far_too_large = etcdctl.run("put", "large", stdin="v" * 3_000_000, fails=True)
    assert "trying to send message larger than max" in far_too_large, "the client refuses it itself"


def test_a_txn(etcdctl: Etcdctl) -> None:
    etcdctl.run("put", "txn", "1")
    assert etcdctl.run("txn", stdin='value("txn") = "1"\n\nput txn 2\n\nput txn 3\n\n').startswith("SUCCESS\n\nOK")
    assert etcdctl.run("get", "txn", "--print-value-only") == "2\n"


def test_a_watch(etcdctl: Etcdctl) -> None:
    watching = etcdctl.start("watch", "watched/", "--prefix")
    try:
        seen: list[str] = []
        assert watching.stdout is not None
        reader = threading.Thread(target=lambda: seen.extend(iter(watching.stdout.readline, "")), daemon=True)
        reader.start()
        end = time.monotonic() + 20
        number = 0
        while len(seen) < 9 and time.monotonic() < end:
            etcdctl.run("put", f"watched/{number}", "x")
            number += 1
            time.sleep(0.1)
        assert seen[:1] == ["PUT\n"]
        assert len(seen) >= 9
    finally:
        watching.kill()
        watching.wait()


def test_leases(etcdctl: Etcdctl) -> None:
    lease = etcdctl.run("lease", "grant", "60").split()[1]
    etcdctl.run("put", "leased", "x", f"--lease={lease}")
    assert f"lease {lease} keepalived" in etcdctl.run("lease", "keep-alive", "--once", lease)
    assert "attached keys([leased])" in etcdctl.run("lease", "timetolive", "--keys", lease)
    assert lease in etcdctl.run("lease", "list")
    assert "revoked" in etcdctl.run("lease", "revoke", lease)
    assert etcdctl.run("get", "leased") == ""


def test_a_lock_around_a_command(etcdctl: Etcdctl) -> None:
    assert etcdctl.run("lock", "mutex", "--", "echo", "held") == "held\n"


def test_an_election(etcdctl: Etcdctl) -> None:
    leading = etcdctl.start("elect", "office", "me")
    try:
        assert leading.stdout is not None
        assert leading.stdout.readline().startswith("office/")
        assert leading.stdout.readline() == "me\n"
    finally:
        leading.terminate()
        leading.communicate(timeout=20)


def test_what_etcdctl_says_of_the_endpoint(etcdctl: Etcdctl, port: EtcdPort) -> None:
    assert port.endpoint in etcdctl.run("endpoint", "health")
    assert "true" in etcdctl.run("endpoint", "status")


def test_a_method_that_there_is_not(etcdctl: Etcdctl) -> None:
    assert "Unimplemented" in etcdctl.run("user", "list", fails=True)


# --- aetcd -----------------------------------------------------------------------------------------------------------


def test_aetcd(port: EtcdPort) -> None:
    async def use() -> None:
        async with aetcd.Client(host=port.host, port=port.port) as client:
            await asyncio.gather(*(client.put(b"aetcd/%d" % number, b"v" * 100) for number in range(300)))
            assert len(list(await client.get_prefix(b"aetcd/"))) == 300
            found = await client.get(b"aetcd/7")
            assert found.value == b"v" * 100
            lease = await client.lease(30)
            await client.put(b"aetcd/leased", b"x", lease)
            await lease.revoke()
            assert await client.get(b"aetcd/leased") is None

    asyncio.run(use())


def test_an_aetcd_watch(port: EtcdPort) -> None:
    async def use() -> list[bytes]:
        async with aetcd.Client(host=port.host, port=port.port) as client:
            watch = await client.watch_prefix(b"seen/")
            for number in range(100):
                await client.put(b"seen/%d" % number, b"x")
            keys = []
            async for event in watch:
                keys.append(event.kv.key)
                if len(keys) == 100:
                    await watch.cancel()
                    break
            return keys

    assert asyncio.run(use()) == [b"seen/%d" % number for number in range(100)]
