"""A proxy watches real processes, by a real kernel; the cluster is played."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raykeeper
from lab.patience import PATIENCE, until
from raykeeper import Unavailable
from raykeeper.actors.client import proxy_monitor
from raykeeper.actors.client.proxy_monitor import ProxyMonitor
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import process_watch
from raykeeper.actors.proxy.process_watch import ProcessWatch
from raykeeper.actors.proxy_claims import CLAIM, NOT_WATCHED, WATCHED
from raykeeper.actors.this_process import this_client
from raykeeper.schema.client_identity import ClientIdentity

CHILD = """
import socket, sys, time
name, token, session, package = sys.argv[1:]
sys.path.insert(0, package)
from raykeeper.actors.proxy_claims import CLAIM
from raykeeper.actors.this_process import this_client
import msgspec
print(msgspec.json.encode(this_client()).decode(), flush=True)
input()
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + name)
sock.sendall(CLAIM.pack(bytes.fromhex(token), int(session)))
print(sock.recv(1)[0], flush=True)
if input() == "close":
    sock.close()
    print("closed", flush=True)
time.sleep(3600)
"""


class PlayedCluster:
    """Who has which session, and which were ended."""

    def __init__(self) -> None:
        self.sessions: dict[int, ClientIdentity] = {}
        self.ended: list[int] = []
        self.failures = 0
        self.error: Exception = Unavailable("no leader")
        self.asked = 0

    def who(self, session: int) -> ClientIdentity | None:
        self.asked += 1
        if self.failures:
            raise self.error
        return self.sessions.get(session)

    def end_sessions(self, sessions: tuple[int, ...]) -> None:
        self.asked += 1
        if self.failures:
            raise self.error
        self.ended.extend(sessions)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PlayedCluster:
    monkeypatch.setattr(proxy_monitor, "PROXY_MONITOR_S", PATIENCE)
    return PlayedCluster()


@pytest.fixture
def watch(cluster: PlayedCluster) -> Iterator[ProcessWatch]:
    made = ProcessWatch(cluster.who, cluster.end_sessions, MemberLog("proxy", "c", "p"))
    yield made
    made.close()


class Child:
    """A process that has itself watched."""

    def __init__(self, watch: ProcessWatch, session: int) -> None:
        name, token = watch.offer
        package = str(Path(raykeeper.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, name, token.hex(), str(session), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        import msgspec

        self.identity = msgspec.json.decode(self._line(), type=ClientIdentity)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> str:
        """Let it go on; what it says then."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_the_session_of_a_process_ends_when_it_is_dead(watch: ProcessWatch, cluster: PlayedCluster) -> None:
    child = Child(watch, 7)
    cluster.sessions[7] = child.identity
    assert child.say("claim") == str(WATCHED[0])
    assert cluster.ended == []
    child.kill()
    until(lambda: cluster.ended == [7], what="its session ends")


def test_the_end_of_its_socket_ends_nothing(watch: ProcessWatch, cluster: PlayedCluster) -> None:
    child = Child(watch, 7)
    cluster.sessions[7] = child.identity
    child.say("claim")
    assert child.say("close") == "closed"
    until(lambda: not watch._peers, what="the proxy has seen it")
    assert len(watch) == 1
    assert cluster.ended == []
    child.kill()
    until(lambda: cluster.ended == [7], what="its session ends")


def test_what_the_cluster_does_not_take_is_reported_again(watch: ProcessWatch, cluster: PlayedCluster) -> None:
    child = Child(watch, 7)
    cluster.sessions[7] = child.identity
    child.say("claim")
    cluster.failures = 1
    asked = cluster.asked
    child.kill()
    until(lambda: cluster.asked >= asked + 3, what="it is tried")
    assert cluster.ended == []
    cluster.failures = 0
    until(lambda: cluster.ended == [7], what="its session ends")


def connected(watch: ProcessWatch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(f"\0{watch.offer[0]}")
    return sock


@pytest.mark.parametrize("field", ["pid", "started", "boot", "pid_namespace", "no session", "no leader", "no Ray"])
def test_a_session_is_that_of_the_process_that_opened_it(
    watch: ProcessWatch, cluster: PlayedCluster, field: str
) -> None:
    """Nobody can have the session of another end with it."""
    import msgspec

    me = this_client()
    if field in ("no leader", "no Ray"):
        cluster.failures = 1
        if field == "no Ray":
            cluster.error = RuntimeError("Ray's own error: its control service is away")
    elif field != "no session":
        other: Any = "another" if field == "boot" else getattr(me, field) + 1
        cluster.sessions[7] = msgspec.structs.replace(me, **{field: other})
    with connected(watch) as sock:
        sock.sendall(CLAIM.pack(watch.offer[1], 7))
        assert sock.recv(1) == NOT_WATCHED
        assert len(watch) == 0
        cluster.failures, cluster.sessions[7] = 0, me
        sock.sendall(CLAIM.pack(watch.offer[1], 7))
        assert sock.recv(1) == WATCHED, "it may ask again"


@pytest.mark.parametrize("claim", [b"x" * CLAIM.size, b"", b"short"])
def test_who_does_not_know_the_token_is_sent_away(watch: ProcessWatch, cluster: PlayedCluster, claim: bytes) -> None:
    with connected(watch) as sock:
        sock.sendall(claim)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert cluster.asked == 0


def test_those_who_say_nothing_are_few(
    watch: ProcessWatch, cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_watch, "MAX_UNAUTHENTICATED_LANES", 2)
    cluster.sessions[7] = this_client()
    with connected(watch) as watched:
        watched.sendall(CLAIM.pack(watch.offer[1], 7))
        assert watched.recv(1) == WATCHED
        with connected(watch) as first, connected(watch), connected(watch):
            assert first.recv(1) == b"", "the oldest goes"
            assert len(watch) == 1
    monkeypatch.setattr(process_watch, "MAX_WATCHED_PROCESSES", 0)
    with connected(watch) as one_more:
        assert one_more.recv(1) == b""


@pytest.mark.parametrize("own", [1000, 0])
def test_another_user_takes_no_place(
    watch: ProcessWatch, cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    """One that is not root sends it away at once. Root could watch it, but it makes way first."""
    monkeypatch.setattr(process_watch, "MAX_UNAUTHENTICATED_LANES", 2)
    monkeypatch.setattr(process_watch, "_OWN_USER", own)
    users = iter([own, 2000, own])
    monkeypatch.setattr(process_watch, "peer_user", lambda sock: next(users))
    cluster.sessions[7] = this_client()
    with connected(watch) as first, connected(watch) as foreign, connected(watch):
        assert foreign.recv(1) == b""
        first.sendall(CLAIM.pack(watch.offer[1], 7))
        assert first.recv(1) == WATCHED


class FullListener:
    """A listener of a process that has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.tried, self.full = 0, True

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> Any:
        self.tried += 1
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()

    def close(self) -> None:
        self._listener.close()


def test_without_a_descriptor_it_pauses(
    watch: ProcessWatch, cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_watch, "PROXY_ACCEPT_PAUSE_S", 100 * PATIENCE)
    cluster.sessions[7] = this_client()
    claim = CLAIM.pack(watch.offer[1], 7)
    with connected(watch) as first:
        first.sendall(claim)
        assert first.recv(1) == WATCHED
        listener: Any = FullListener(watch._listener)
        watch._listener = listener
        with connected(watch) as second:
            until(lambda: listener.tried, what="it is accepted")
            for _ in range(3):  # the thread goes round, and the listener is ready all the time
                first.sendall(claim)
                assert first.recv(1) == WATCHED
            assert listener.tried == 1
            listener.full, watch._accept_at = False, 0.0
            first.sendall(claim)
            assert first.recv(1) == WATCHED
            second.sendall(claim)
            assert second.recv(1) == WATCHED


# --- the client's side -----------------------------------------------------------------------------------------------


class Heard:
    """Sessions that are said to be monitored."""

    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.came = threading.Event()

    def __call__(self, session: int) -> None:
        self.sessions.append(session)


def test_a_process_has_itself_watched_and_stays(watch: ProcessWatch, cluster: PlayedCluster) -> None:
    cluster.sessions.update({7: this_client(), 8: this_client()})
    heard, asked = Heard(), []

    def ask(name: str, node: str) -> Any:
        asked.append((name, node))
        return watch.offer

    monitor = ProxyMonitor("c", "n", heard, ask)
    for session in (7, 7, 8):
        count = len(heard.sessions)
        monitor.claim(session)
        until(lambda count=count: len(heard.sessions) > count)  # type: ignore[misc]
    assert heard.sessions == [7, 7, 8]
    assert asked == [("c", "n")] * 2, "the connection stays as long as the session"
    monitor.close()
    until(lambda: not watch._peers, what="it has hung up")


def test_a_proxy_that_was_started_again_is_found(cluster: PlayedCluster) -> None:
    cluster.sessions[7] = this_client()
    log = MemberLog("proxy", "c", "p")
    watches = [ProcessWatch(cluster.who, cluster.end_sessions, log)]
    heard = Heard()
    monitor = ProxyMonitor("c", "n", heard, lambda name, node: watches[-1].offer)
    monitor.claim(7)
    until(lambda: heard.sessions == [7])
    watches[0].close()
    watches.append(ProcessWatch(cluster.who, cluster.end_sessions, log))
    monitor.claim(7)
    until(lambda: heard.sessions == [7, 7])
    assert len(watches[1]) == 1
    monitor.close()
    watches[1].close()


@pytest.mark.parametrize("why", ["no proxy", "it does not answer", "its socket is gone"])
def test_where_no_proxy_watches_it_is_looked_for_ever_more_rarely(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(proxy_monitor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    heard, asked = Heard(), []

    def ask(name: str, node: str) -> Any:
        asked.append(now[0])
        if why == "it does not answer":
            raise Unavailable("Ray does not answer")
        return None if why == "no proxy" else (f"raykeeper-nothing-{os.getpid()}", bytes(16))

    monitor = ProxyMonitor("c", "n", heard, ask)
    for _ in range(400):
        monitor._claims.put(7)
        monitor._claims.put(-1)
        monitor._run()
        now[0] += 1
    assert asked[:5] == [100.0, 101.0, 103.0, 107.0, 115.0]
    assert asked[-1] - asked[-2] == 60
    assert set(heard.sessions) == {0}


def test_a_process_on_no_node_looks_for_none() -> None:
    monitor = ProxyMonitor("c", "", Heard(), lambda name, node: pytest.fail("it looks"))
    monitor.claim(7)
    assert monitor._claims.empty()
