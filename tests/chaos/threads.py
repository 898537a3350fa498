"""The same campaign without Ray: ``python -m chaos.threads --minutes 1 --seed 1``; ``make chaos-threads``.

Three members with their real loops, transports, request handlers and RocksDB in one process, real clients, real time;
an actor call is played by a thread of a pool. What cannot be had this way is the death of a process; everything else
runs as in the product, races between threads among it, and it needs neither Ray nor a quiet machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.ray.faults import Faults
from lab.ray.patches.switch import Post, Switch
from raykeeper.actors.client import hub_pool
from raykeeper.actors.member.event_loop import EventLoop
from raykeeper.actors.transport.client_transport import OnOwnThreads
from raykeeper.limits import Limits, Settings, Timings, encode_settings
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.rocks import RocksDisk
from simulation.checker import Violation

from .campaign import NAME, Campaign, main
from .field import Fault, Field
from .nemesis import (
    FAULTS,
    clients_cut_off,
    damage,
    flapping,
    isolate_follower,
    isolate_leader,
    leader_without_followers,
    noise,
    one_way,
)
from .worker import Worker

SETTINGS = Settings(timings=Timings(session_ttl=20.0), limits=Limits(log_cut_entries=1500, log_keep_entries=300))
CLUSTER = 4711
MEMBERS = 3


@dataclass
class Info:
    """What a cluster's ``members()`` says of one."""

    id: int
    name: str
    role: str
    pid: int
    why_not_serving: str
    term: int


@dataclass
class Status:
    """What its ``status()`` says."""

    leader: int
    members: tuple[Info, ...]
    alarms: tuple[str, ...] = ()


class Threads:
    """A cluster whose members are threads.

    Args:
        folder: of the data.
        table: of the fault switch.
    """

    def __init__(self, folder: Path, table: Path) -> None:
        self.name = NAME
        self.id = CLUSTER
        self._folder = folder
        self._disk = RocksDisk()
        self._post = Post(Switch(str(table)))
        self._pool = ThreadPoolExecutor(300, thread_name_prefix="calls")
        self._loops: dict[int, EventLoop | None] = {}
        names = tuple(FirstMember(n, f"m{n}", "") for n in range(1, MEMBERS + 1))
        for first in names:
            identity = Identity(
                cluster_name=NAME, cluster=CLUSTER, member=first.id, name=first.name, members=names, settings=SETTINGS
            )
            DataDir.create(self._disk, str(folder / first.name), identity).close()
            self.start(first.id)

    # -- members ------------------------------------------------------------------------------------------------------

    def start(self, member: int) -> None:
        """Open a member's data, and have it serve."""
        folder = DataDir.open(self._disk, str(self._folder / f"m{member}"))
        loop = EventLoop(folder, lambda to: Handle(self, member, to), lambda: self._status(member))
        self._loops[member] = loop
        loop.start()

    def stop(self, member: int) -> None:
        """End a member, as a process does that is asked to."""
        loop, self._loops[member] = self._loops[member], None
        if loop is not None:
            loop.stop("the campaign stops it")

    def loop(self, member: int) -> EventLoop:
        """A member that runs.

        Raises:
            LookupError: it does not.
        """
        loop = self._loops[member]
        if loop is None:
            raise LookupError(f"member {member} does not run")
        return loop

    def close(self) -> None:
        """End all."""
        for member in self._loops:
            self.stop(member)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def call(
        self, sender: str, to: str, frame: bytes, work: Callable[[bytes], bytes], again: Callable[[bytes], object]
    ) -> Future[bytes]:
        """A call that a thread of the pool does, through the switch."""
        return self._post.call(sender, to, frame, lambda copy: self._pool.submit(work, copy), again)

    # -- what ``Cluster`` tells ---------------------------------------------------------------------------------------

    def status(self) -> Status:
        """How it is."""
        found = []
        for member, loop in self._loops.items():
            if loop is None:
                found.append(Info(member, f"m{member}", "silent", 0, "it does not run", 0))
            else:
                node = loop.replica.node
                found.append(Info(member, f"m{member}", node.role, os.getpid(), "", node.term))
        leaders = [info for info in found if info.role == "leader"]
        return Status(max(leaders, key=lambda info: info.term).id if leaders else 0, tuple(found))

    def members(self) -> tuple[Info, ...]:
        """All of them."""
        return self.status().members

    def contents(self) -> dict[str, tuple[int, str]]:
        """What each has applied, and the hash of it."""
        states = {f"m{member}": self.loop(member).replica.state for member in self._loops}
        return {name: (state.applied_index, state.content_hash()) for name, state in states.items()}

    def _status(self, member: int) -> MemberStatus:
        node, state = self.loop(member).replica.node, self.loop(member).replica.folder.state
        return MemberStatus(
            cluster_name=NAME, cluster=CLUSTER, member=member, name=f"m{member}", role=node.role, term=node.term,
            leader=node.leader, commit_index=node.commit_index, applied_index=state.applied_index, last_log_index=0,
            first_log_index=0, revision=state.revision, compact_revision=state.compact_revision,
            voters=node.configuration.voters, learners=(), db_size=0, pid=os.getpid(), node="",
            settings=encode_settings(SETTINGS),
        )  # fmt: skip


class Handle:
    """Stands where one member has the actor handle of another."""

    def __init__(self, cluster: Threads, sender: int, to: int) -> None:
        cluster.loop(to)  # as a look-up of an actor that is gone would fail
        self._cluster, self._sender, self._to = cluster, sender, to

    def __getattr__(self, method: str) -> Any:
        return self

    def remote(self, frame: bytes) -> Handle:
        """Make the call."""
        cluster, sender, to = self._cluster, self._sender, self._to

        def again(answer: bytes) -> None:
            with contextlib.suppress(LookupError):
                transport: Any = cluster.loop(sender).transport
                if answer:
                    transport._receive(answer, None)

        made = Handle(cluster, sender, to)
        made._future = cluster.call(  # type: ignore[attr-defined]
            str(sender), str(to), frame, lambda copy: cluster.loop(to).transport.receive(copy), again
        )
        return made

    def future(self) -> Future[bytes]:
        """Its outcome."""
        outcome: Future[bytes] = self.__dict__["_future"]
        return outcome


class Transport(OnOwnThreads):
    """What a hub has in place of actor calls."""

    def __init__(self, cluster: Threads) -> None:
        self._cluster = cluster
        self.node = ""

    def members(self) -> dict[int, str]:
        """All of them, by id."""
        return {member.id: member.name for member in self._cluster.members()}

    def refresh(self) -> None:
        """Nothing changes."""

    def valid(self) -> bool:
        """Nobody leaves."""
        return True

    def close(self) -> None:
        """There is nothing to let go of."""

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        """Ask a member."""

        def work(copy: bytes) -> bytes:
            made: list[Callable[[], bytes]] = []
            ready = threading.Event()

            def take(make: Callable[[], bytes]) -> None:
                made.append(make)
                ready.set()

            self._cluster.loop(member).handler.handle_request(copy, take)
            if not ready.wait(60):
                raise TimeoutError("the member's loop did not answer")
            return made[0]()

        def finished(future: Future[bytes]) -> None:
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                done(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        self._cluster.call("client", str(member), frame, work, lambda answer: None).add_done_callback(finished)

    poll = send


def restart(field: Field) -> Fault:
    """A member ends, and starts again on its data."""
    member = field.rng.choice([field.leader(), field.follower()])
    field.cluster.stop(member.id)
    try:
        yield f"{member.name} is stopped, and started again"
    finally:
        field.cluster.start(member.id)
    return True


HERE = (
    isolate_leader,
    leader_without_followers,
    isolate_follower,
    one_way,
    flapping,
    clients_cut_off,
    noise,
    damage,
)


class ThreadCampaign(Campaign):
    """One run; see the module."""

    def _launch(self) -> Any:
        chosen = {fault.__name__ for fault in self._kinds}
        self._kinds = {fault: FAULTS[fault] for fault in HERE if fault.__name__ in chosen} | {restart: (1, 3)}
        (self.folder / "data").mkdir()
        self._threads = Threads(self.folder / "data", self._scratch / "switch")
        hub_pool.make_transport = lambda name: Transport(self._threads)  # type: ignore[assignment, return-value]
        deadline = time.monotonic() + 30
        while not self._threads.status().leader:
            if time.monotonic() > deadline:
                raise Violation("no leader")
            self._pause.wait(0.05)
        return self._threads

    def _make_field(self, cluster: Any) -> Field:
        field = super()._make_field(cluster)
        return replace(field, faults=Faults(self._scratch / "switch"))

    def _start_proxies(self, cluster: Any) -> None:
        """They would be processes, and look for members that are actors."""

    def _new_worker(self) -> None:
        self._numbers += 1
        worker = Worker(f"w{self._numbers}", NAME, str(self._journals), self.seed, self._began)
        self._field.workers[worker.name] = (worker, os.getpid())

    def _finish(self) -> list[str]:
        return [each for worker, _ in self._field.workers.values() for each in worker.finish(60.0)]

    def _contents(self, cluster: Any) -> dict[str, tuple[int, str]]:
        return self._threads.contents()

    def _replacements(self, cluster: Any) -> int:
        return 0  # there is no supervisor

    def _end(self) -> None:
        self._threads.close()


if __name__ == "__main__":
    status = main(ThreadCampaign, "chaos-threads")
    sys.stdout.flush()
    os._exit(status)  # threads of a pool may wait still
