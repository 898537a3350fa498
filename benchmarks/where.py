"""Where the processor time of members goes: while idle, and for one put or get at a time.

    python benchmarks/where.py [--seconds 10]

A cluster of three members on this machine, and, to compare with:

- **an actor of Ray's that does nothing**: what of an idle member is Ray's own;
- **a wake-up**: a Python thread that waits in epoll for a tenth of a second, again and again: what it costs to be woken
  on this machine, with caches that others have filled meanwhile;
- **the code alone**: three replicas in this process, driven by hand, whose disks do not sync. What a put needs of
  RayKeeper's own code, RocksDB's writes included, when nothing has to be woken.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import ray
from rich.console import Console
from rich.table import Table
from run import kill_left
from systems import RayKeeper

import raykeeper
from raykeeper.actors.member.events import InboxEvent
from raykeeper.actors.member.operator_requests import OperatorRequests
from raykeeper.actors.member.replica import Replica
from raykeeper.actors.member.request_handler import RequestHandler
from raykeeper.actors.transport.peer_frames import PeerFrame, decode_frame, encode_frame
from raykeeper.limits import Limits, Timings
from raykeeper.raft.messages import Message
from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import Open, Opened, Read, Reads, Reply, Request, Writes, Written
from raykeeper.schema.operations import KeyRange, Put, Range
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.rocks import RocksDisk

MEMBERS = (1, 2, 3)
CALLS = 2000
WAKE_UPS = 50
VALUE = bytes(256)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


def threads(pid: int) -> dict[str, tuple[str, float]]:
    """Name and processor seconds of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name, spent = (task / "comm").read_text().strip(), (task / "schedstat").read_text().split()[0]
        except FileNotFoundError:  # it has ended
            continue
        found[task.name] = name, int(spent) / 1e9
    return found


def shares(pids: Sequence[int], seconds: float) -> list[tuple[float, float]]:
    """For each process the share of a core that it uses, and that of its busiest thread but the main one."""
    before = [threads(pid) for pid in pids]
    time.sleep(seconds)
    found = []
    for pid, earlier in zip(pids, before, strict=True):
        spent = {task: now - earlier.get(task, ("", 0.0))[1] for task, (_, now) in threads(pid).items()}
        others = [value for task, value in spent.items() if task != str(pid)]
        found.append((sum(spent.values()) / seconds, max(others) / seconds))
    return found


def a_wake_up() -> float:
    """Processor seconds of waiting once."""
    waits, path = select.epoll(), Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    before = int(path.read_text().split()[0])
    for _ in range(WAKE_UPS):
        waits.poll(0.1)
    return (int(path.read_text().split()[0]) - before) / 1e9 / WAKE_UPS


class Bench:
    """Three replicas without sockets, threads and clocks."""

    def __init__(self, folder: str) -> None:
        self._now = 0.0
        self._frames: dict[int, deque[bytes]] = {member: deque() for member in MEMBERS}
        self._events: dict[int, deque[InboxEvent]] = {member: deque() for member in MEMBERS}
        self._spent = dict.fromkeys(MEMBERS, 0.0)
        self.replicas = {member: self._replica(folder, member) for member in MEMBERS}
        self.handlers = {member: self._handler(member) for member in MEMBERS}
        while not (leaders := [member for member, replica in self.replicas.items() if replica.is_leader]):
            self._now += 0.1
            for member in MEMBERS:
                self._turn(member)
            self._settle()
        self.leader = leaders[0]
        self._settle()

    def _replica(self, folder: str, member: int) -> Replica:
        disk, path = RocksDisk(), f"{folder}/m{member}"
        founders = tuple(FirstMember(each, f"m{each}") for each in MEMBERS)
        DataDir.create(disk, path, Identity("bench", 7, member, f"m{member}", founders)).close()
        opened = DataDir.open(disk, path)
        opened.log._store.sync = lambda: None  # type: ignore[method-assign]
        return Replica(
            folder=opened,
            timings=Timings(),
            limits=Limits(),
            send=lambda messages: self._send(member, messages),
            clock=lambda: self._now,
            rng=random.Random(member),
            background=lambda work, then: None,
        )

    def _handler(self, member: int) -> RequestHandler:
        def enqueue(event: InboxEvent, size: int) -> bool:
            self._events[member].append(event)
            return True

        def status() -> Any:
            raise NotImplementedError

        replica = self.replicas[member]
        operators = OperatorRequests(
            SimpleNamespace(replica=replica), lambda work, then: None, lambda: None, lambda: self._now
        )
        return RequestHandler(replica, enqueue, lambda: self._now, status, operators)

    def _send(self, member: int, messages: Sequence[Message]) -> None:
        groups: dict[int, list[Message]] = {}
        for message in messages:
            groups.setdefault(message.to, []).append(message)
        for to, group in groups.items():
            self._frames[to].append(encode_frame(PeerFrame(7, member, to, 1, 1, tuple(group))))

    def _turn(self, member: int) -> None:
        began = time.perf_counter()
        messages: list[Message] = []
        while self._frames[member]:
            frame = decode_frame(self._frames[member].popleft())
            messages += frame.messages if frame is not None else ()
        events = list(self._events[member])
        self._events[member].clear()
        self.replicas[member].turn(messages, events)
        self._spent[member] += time.perf_counter() - began

    def _settle(self) -> None:
        while ready := [member for member in MEMBERS if self._frames[member] or self._events[member]]:
            for member in ready:
                self._turn(member)

    def ask(self, request: Request) -> Reply:
        """Have the leader answer."""
        replies: list[bytes] = []
        frame = _encode(request)
        began = time.perf_counter()
        self.handlers[self.leader].handle_request(frame, lambda make: replies.append(make()))
        self._spent[self.leader] += time.perf_counter() - began
        self._settle()
        reply: Reply = _decode(replies[0])
        return reply

    def cost(self, call: Callable[[int], object]) -> tuple[float, float]:
        """Seconds of a call in the leader, and in a follower."""
        for number in range(CALLS // 10):
            call(number)
        self._spent = dict.fromkeys(MEMBERS, 0.0)
        for number in range(CALLS // 10, CALLS // 10 + CALLS):
            self._now += 0.001
            call(number)
        followers = sum(spent for member, spent in self._spent.items() if member != self.leader) / 2
        return self._spent[self.leader] / CALLS, followers / CALLS


def code_alone() -> dict[str, tuple[float, float]]:
    """What puts and gets cost without waking any process: seconds in the leader, and in a follower."""
    folder = tempfile.mkdtemp(prefix="rkw-")
    try:
        bench = Bench(folder)
        opened = bench.ask(Open(7, 5.0, b"n" * 16))
        assert isinstance(opened, Opened), opened

        def put(number: int) -> None:
            write = ClientWrite(number + 1, Put(b"ubench/%04d" % (number % 1000), VALUE))
            reply = bench.ask(Writes(7, 5.0, ClientWrites(opened.session, number + 1, (write,))))
            assert isinstance(reply, Written), reply

        def get(number: int) -> None:
            bench.ask(Reads(7, 5.0, False, (Read(Range(KeyRange(b"ubench/0001"))),)))

        costs = {"put": bench.cost(put), "get": bench.cost(get)}
        for replica in bench.replicas.values():
            replica.stop("the end")
        return costs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def live(pids: dict[int, str], call: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Median latency of one call at a time; processor seconds of a call in the leader, and in a follower."""
    for _ in range(100):
        call()
    before = {pid: sum(spent for _, spent in threads(pid).values()) for pid in pids}
    times = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        call()
        times.append(time.monotonic() - began)
    spent = {pid: sum(now for _, now in threads(pid).values()) - before[pid] for pid in pids}
    leader = sum(value for pid, value in spent.items() if pids[pid] == "leader")
    followers = (sum(spent.values()) - leader) / (len(pids) - 1)
    return sorted(times)[len(times) // 2], leader / len(times), followers / len(times)


@click.command(help=__doc__)
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of each measurement.")
def main(seconds: float) -> None:
    """Measure and print."""
    code, wake_up = code_alone(), a_wake_up()
    scratch = tempfile.mkdtemp(prefix="rkw-")
    system = RayKeeper(scratch)
    try:
        system.start()
        kv = raykeeper.connect("bench", timeout=60)
        kv.put("key", VALUE)
        roles = {member.pid: member.role for member in system.cluster.members()}
        rows = [
            ("put", live(roles, lambda: kv.put("key", VALUE), seconds), code["put"]),
            ("get", live(roles, lambda: kv.get("key"), seconds), code["get"]),
        ]
        kv.close()

        class Idle:
            def pid(self) -> int:
                return os.getpid()

        remote: Any = ray.remote
        idle = remote(num_cpus=0)(Idle).remote()
        pids = [*roles, ray.get(idle.pid.remote())]
        time.sleep(5)  # what was just started comes to rest
        found = shares(pids, seconds)
    finally:
        system.stop()
        kill_left()
        shutil.rmtree(scratch, ignore_errors=True)
    console = Console(width=110)
    table = Table("one at a time", "median", "leader, CPU", "a follower, CPU", "code alone: leader", "a follower")
    for name, (median, *cpu), alone in rows:
        table.add_row(name, f"{median * 1e3:.2f} ms", *[f"{each * 1e6:.0f} us" for each in (*cpu, *alone)])
    console.print(table)
    table = Table("idle", "of one core", "its busiest thread")
    for pid, (all_threads, busiest) in zip(pids, found, strict=True):
        name = roles.get(pid, "an actor that does nothing")
        table.add_row(name, f"{all_threads:.2%}", f"{busiest:.2%}" if pid in roles else "")
    console.print(table)
    console.print(f"a wake-up from epoll, in Python: {wake_up * 1e6:.0f} us of processor time")


if __name__ == "__main__":
    main()
