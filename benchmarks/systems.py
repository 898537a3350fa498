"""The systems side by side: how each is started on this machine, found, robbed of its leader, and stopped.

Three members each, with the defaults of their makers; what is set is where data and ports are. Everything that is
started is a child of this process, and gone after ``stop``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from accounting import descendants
from faces import EQUAL_TERMS, FAST_DEATH, NO_LOG_DEDUP, Address

PATIENCE = 60.0
"""Seconds for whatever a system takes to start, elect or mend."""


class Missing(Exception):
    """A system is not installed; says what would install it."""


SystemT = TypeVar("SystemT", bound="System")


class System(ABC):
    """One system. What is not said here is the same for all."""

    name = ""
    kind = ""
    """Of its face."""
    get = "get"
    """Its linearizable read..."""
    stale_get = "stale get"
    """... and one that may be old; empty if it has none."""
    members = 3
    notes = ""
    durability = ""
    """The setting that makes it sync before it acknowledges."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def check(self) -> None:  # noqa: B027
        """Whether it can be started here.

        Raises:
            Missing: it cannot.
        """

    @abstractmethod
    def start(self) -> None:
        """Start it; it serves when this returns."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what was started, whatever of it was."""

    @abstractmethod
    def address(self, probing: bool = False) -> Address:
        """Where clients find it; ``probing`` is for a client that is to survive the death of the leader."""

    def address_of(self, number: int) -> Address:
        """One of several addresses, for crowds of clients whose library knows one endpoint: they are spread."""
        return self.address()

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes of its members."""

    def kill_leader(self) -> float:
        """SIGKILL; the moment (``time.monotonic``)."""
        raise LookupError(f"{self.name} has no leader")

    def mend(self) -> None:  # noqa: B027
        """Bring all members back."""


class RayKeeper(System):
    """A cluster of this repository on a Ray of its own."""

    name = "RayKeeper"
    kind = "raykeeper"
    durability = "fsync of the Raft log on a majority before the answer; there is no setting that turns it off"
    spec: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._cluster: Any = None

    def start(self) -> None:
        _start_ray(self.folder)
        self._launch()
        until(lambda: len(self.pids()) == 3, "three members")

    def _launch(self) -> None:
        import raykeeper

        self._cluster = raykeeper.launch(name="bench", members=3, data_dir=f"{self.folder}/data", **self.spec)

    @property
    def cluster(self) -> Any:
        """The running cluster."""
        return self._cluster

    def restart(self) -> float:
        """Stop all members and launch them again on their data; seconds from the launch to a linearizable read."""
        self._cluster.shutdown()
        began = time.monotonic()
        self._launch()
        self._cluster.client().revision()
        return time.monotonic() - began

    def stop(self) -> None:
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.shutdown()
        self._cluster = None
        _stop_ray()

    def address(self, probing: bool = False) -> Address:
        return {"ray": _ray_address(), "name": "bench"}

    def pids(self) -> list[int]:
        return [member.pid for member in self._cluster.members() if member.pid]

    def kill_leader(self) -> float:
        leader = until(
            lambda: next((m for m in self._cluster.members() if m.role == "leader" and m.pid), None), "leader"
        )
        return _kill(leader.pid)

    def mend(self) -> None:
        def whole() -> bool:
            status = self._cluster.status()
            return bool(status.leader) and all(not member.why_not_serving for member in status.members)

        until(whole, "all members serve again")


class RayKeeperByCalls(RayKeeper):
    """The same by actor calls alone."""

    name = "RayKeeper, lanes off"
    spec: ClassVar[dict[str, Any]] = {"lanes": False}

    def check(self) -> None:
        from raykeeper import ClusterSpec

        if "lanes" not in ClusterSpec.__struct_fields__:
            raise Missing("this version has no lanes that could be turned off: RayKeeper itself goes by actor calls")


class Processes(System):
    """One whose members are processes of this one's own, by number."""

    _processes: dict[int, subprocess.Popen[bytes]]

    @abstractmethod
    def _leader(self) -> int | None:
        """The number of the member that leads."""

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def kill_leader(self) -> float:
        leader = until(lambda: (n := self._leader()) is not None and n + 1, "a leader") - 1
        moment = _kill(self._processes[leader].pid)
        self._processes[leader].wait()
        return moment


class Etcd(Processes):
    """Three members of Debian's etcd, with aetcd."""

    name = "etcd + aetcd"
    kind = "etcd"
    notes = (
        "aetcd talks to one endpoint: to the leader's, which is best for etcd; when the leader is killed, to a "
        "follower's. It knows only coroutines; threads hand theirs to one event loop. Its lock leaves its lease behind "
        "at the release."
    )
    durability = "--unsafe-no-fsync is not given: the write-ahead log is synced before the answer"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._ports = free_ports(6)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        if shutil.which("etcd") is None:
            raise Missing("apt-get install etcd-server")
        if find_spec("aetcd") is None:
            raise Missing("pip install aetcd")

    def start(self) -> None:
        for number in range(3):
            self._start(number)
        until(lambda: self._leader() is not None, "a leader")

    def _start(self, number: int) -> None:
        peers = [f"http://{self._host(n)}:{port}" for n, port in enumerate(self._ports[3:])]
        client, peer = f"http://{self._host(number)}:{self._ports[number]}", peers[number]
        command = [*self._on(number), "etcd", "--name", f"m{number}", "--data-dir", f"{self.folder}/m{number}"]
        command += ["--log-level", "error"]
        command += ["--logger", "zap", "--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", ",".join(f"m{n}={url}" for n, url in enumerate(peers))]
        self._processes[number] = _spawn(command, f"{self.folder}/etcd.log")

    def stop(self) -> None:
        _end(self._processes.values())
        self._processes.clear()

    def _status(self, number: int) -> dict[str, Any] | None:
        url = f"http://{self._host(number)}:{self._ports[number]}/v3/maintenance/status"
        with contextlib.suppress(OSError, ValueError):
            request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=1) as reply:
                status: dict[str, Any] = json.load(reply)
                return status
        return None

    def _leader(self) -> int | None:
        for number in range(3):
            status = self._status(number)
            if status and status.get("leader", "0") != "0" and status["leader"] == status["header"]["member_id"]:
                return number
        return None

    def address(self, probing: bool = False) -> Address:
        leader = until(lambda: (n := self._leader()) is not None and n + 1, "a leader") - 1
        return self.address_of(leader + 1 if probing else leader)

    def address_of(self, number: int) -> Address:
        return {"ports": [self._ports[number % 3]], "host": self._host(number % 3)}

    def _host(self, number: int) -> str:
        """Where a member listens..."""
        return "127.0.0.1"

    def _on(self, number: int) -> list[str]:
        """... and what begins its command."""
        return []

    def mend(self) -> None:
        for number, process in list(self._processes.items()):
            if process.poll() is not None:
                self._start(number)
        until(lambda: all(self._status(number) for number in range(3)), "all members serve again")


class ZooKeeper(Processes):
    """Three members of Debian's ZooKeeper, with kazoo."""

    name = "ZooKeeper + kazoo"
    kind = "zookeeper"
    get = "sync+get"
    notes = (
        "A get of ZooKeeper is answered by whichever member the client is connected to, and may be stale: it stands "
        "with the stale reads. Its sync and then get, which is as near to linearizable as ZooKeeper comes, has a "
        "table and a label of its own (a leader that was deposed unawares may still answer the sync). kazoo knows only "
        "threads; coroutines await its callbacks. Its lock runs on threads."
    )
    durability = "forceSync is at its default, yes: the transaction log is synced before the answer"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._ports = free_ports(9)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        if shutil.which("java") is None or not Path("/usr/share/java/zookeeper.jar").exists():
            raise Missing("apt-get install zookeeper")
        if find_spec("kazoo") is None:
            raise Missing("pip install kazoo")

    def start(self) -> None:
        for number in range(3):
            folder = Path(self.folder, f"m{number}")
            folder.mkdir()
            (folder / "myid").write_text(str(number + 1))
            lines = ["tickTime=2000", "initLimit=10", "syncLimit=5", "admin.enableServer=false", "maxClientCnxns=0"]
            lines += [f"dataDir={folder}", f"clientPort={self._ports[number]}", "clientPortAddress=127.0.0.1"]
            for n in range(3):
                lines.append(f"server.{n + 1}=127.0.0.1:{self._ports[3 + n]}:{self._ports[6 + n]}")
            (folder / "zoo.cfg").write_text("\n".join(lines) + "\n")
            self._start(number)
        until(lambda: self._leader() is not None, "a leader")
        until(lambda: all(self._mode(number) for number in range(3)), "three members")

    def _start(self, number: int) -> None:
        command = ["java", "-cp", "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar"]
        command += ["-Dzookeeper.root.logger=ERROR,CONSOLE", f"-Dzookeeper.log.dir={self.folder}"]
        command += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", f"{self.folder}/m{number}/zoo.cfg"]
        self._processes[number] = _spawn(command, f"{self.folder}/zookeeper.log")

    def stop(self) -> None:
        _end(self._processes.values())
        self._processes.clear()

    def _mode(self, number: int) -> str:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._ports[number]), 1) as line:
            line.sendall(b"srvr")
            text = b"".join(iter(lambda: line.recv(4096), b"")).decode()
            return text.partition("Mode: ")[2].partition("\n")[0]
        return ""

    def _leader(self) -> int | None:
        return next((number for number in range(3) if self._mode(number) == "leader"), None)

    def address(self, probing: bool = False) -> Address:
        return {"ports": self._ports[:3]}

    def mend(self) -> None:
        for number, process in list(self._processes.items()):
            if process.poll() is not None:
                self._start(number)
        until(lambda: all(self._mode(number) for number in range(3)), "all members serve again")


class RayActor(System):
    """What many Ray programs do instead: one actor with a name and a dict."""

    name = "Ray actor with a dict"
    kind = "actor"
    stale_get = ""
    members = 1
    notes = "One process, no copy and no disk: what is in it is lost with it. It is here for its speed alone."
    durability = "none: memory of one process"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._actor: Any = None

    def start(self) -> None:
        _start_ray(self.folder)
        import ray

        class Table:
            def __init__(self) -> None:
                self._values: dict[str, bytes] = {}

            def put(self, key: str, value: bytes) -> None:
                self._values[key] = value

            def get(self, key: str) -> bytes | None:
                return self._values.get(key)

            def pid(self) -> int:
                return os.getpid()

        self._actor = (
            ray.remote(num_cpus=0)(Table).options(name="table", namespace="bench", lifetime="detached").remote()
        )
        self._pid = ray.get(self._actor.pid.remote())

    def stop(self) -> None:
        self._actor = None
        _stop_ray()

    def address(self, probing: bool = False) -> Address:
        return {"ray": _ray_address(), "actor": "table"}

    def pids(self) -> list[int]:
        return [self._pid]


SYSTEMS: tuple[type[System], ...] = (RayKeeper, RayKeeperByCalls, Etcd, ZooKeeper, RayActor)


@contextlib.contextmanager
def running(system: SystemT) -> Iterator[SystemT]:
    """A system that runs meanwhile.

    Raises:
        Missing: it cannot be started here.
    """
    system.check()
    try:
        system.start()
        yield system
    finally:
        system.stop()
        kill_left()


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for something, and return what it came to."""
    end = time.monotonic() + seconds
    while not (value := _tried(holds)):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return value


def _tried(holds: Callable[[], Any]) -> Any:
    """What it comes to; nothing while it raises, as questions to what just starts or dies do."""
    try:
        return holds()
    except Exception:
        return None


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def kill_left() -> None:
    """Kill whatever this process has started and has not ended yet, its children's children too."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def _spawn(command: list[str], log: str) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


def _end(processes: Iterator[Any] | Any) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
    for process in running:
        process.wait(10)


def _kill(pid: int) -> float:
    moment = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return moment


def _start_ray(folder: str) -> None:
    os.environ.update({FAST_DEATH: "0", NO_LOG_DEDUP: ".", EQUAL_TERMS: "0"})
    import ray

    ray.init(
        address="local",
        namespace="bench",
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=f"{folder}/ray",
    )


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)
