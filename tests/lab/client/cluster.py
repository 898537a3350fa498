"""A cluster without consensus: one real state machine over a disk in memory, and members that hand everything to it.

The transport answers on a thread of its own, like Ray's. Members can be made mute or broken, and frames can be held
back.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

import msgspec
import pytest

from lab.patience import until
from raykeeper import Client
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.hub import Hub
from raykeeper.actors.transport.client_transport import OnOwnThreads
from raykeeper.limits import READ_SCAN_KEYS, Settings, encode_settings
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema.answers import Answer, Done, Failed, Reason, SessionOpened
from raykeeper.schema.commands import ClientWrites, CloseSession, Command, OpenSession
from raykeeper.schema.frames import (
    AskTerm,
    Close,
    CurrentTerm,
    KeepAlive,
    LoneRead,
    Open,
    Opened,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    Writes,
    Written,
)
from raykeeper.schema.operator_frames import AskStatus, MemberStatus, Status
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

decode = msgspec.msgpack.Decoder(Request).decode
encode = msgspec.msgpack.Encoder().encode

Reader = Callable[[bytes | Exception], None]


class FakeCluster:
    """Three members of one cluster; also the maker of transports to them."""

    def __init__(self, name: str = "test", cluster: int = 0x77, settings: Settings | None = None) -> None:
        self.name = name
        self.cluster = cluster
        self.settings = settings or Settings()
        members = (1, 2, 3)
        self.state = State.create(SimDisk(), "state", Configuration(voters=members), encode_settings(self.settings))
        self.members = {member: f"m{member}" for member in members}
        self.leader = 1
        self.mute: set[int] = set()
        """These take frames and do nothing."""
        self.broken: set[int] = set()
        """Calls to these fail at once."""
        self.foreign: set[int] = set()
        """These belong to another cluster."""
        self.not_serving: set[int] = set()
        self.requests: list[tuple[int, Request]] = []
        """All frames that arrived, status questions left out."""
        self.gate = threading.Event()
        """Frames wait while it is clear."""
        self.gate.set()
        self.read_scan = READ_SCAN_KEYS
        """Keys that one read looks at."""
        self.transports = 0
        self.refreshes = 0

    def transport(self, name: str) -> FakeTransport:
        """For ``registry.make_transport``."""
        self.transports += 1
        return FakeTransport(self if name == self.name else None)

    def count(self, kind: type) -> int:
        """How many frames of a kind arrived."""
        return sum(isinstance(request, kind) for _, request in self.requests)

    def expire_sessions(self) -> None:
        """As if no member had been heard from for a long time."""
        for session in list(self.state.sessions):
            self._apply(CloseSession(session))

    def answer(self, member: int, frame: bytes) -> bytes:
        return encode(self._answer(member, decode(frame)))

    def _answer(self, member: int, request: Request) -> Reply:
        cluster = self.cluster + 1 if member in self.foreign else self.cluster
        if isinstance(request, AskStatus):
            return Status(self._status(member, cluster))
        if isinstance(request, AskTerm):
            return CurrentTerm(member, 1)
        if isinstance(request, LoneRead):  # this one confirms itself
            request = Reads(request.cluster, request.deadline, False, (request.read,), request.traceparent)
        self.requests.append((member, request))
        if member in self.not_serving:
            return Refused(Refusal.NOT_SERVING, message="its disk is gone")
        if request.cluster != cluster:
            return Refused(Refusal.WRONG_CLUSTER)
        limits = self.settings.limits
        if isinstance(request, Reads):
            return ReadReply(
                tuple(
                    self.state.range(
                        read.range,
                        page_items=limits.max_page_items,
                        page_bytes=limits.max_page_bytes,
                        max_scanned=self.read_scan,
                    )
                    for read in request.reads
                )
            )
        if member != self.leader:
            return Refused(Refusal.NOT_LEADER, self.leader)
        if isinstance(request, Writes):
            return Written(self._apply(request.commands))
        if isinstance(request, Open):
            answer = self._apply(OpenSession(request.nonce, self.settings.timings.session_ttl))[0]
            assert isinstance(answer, SessionOpened)
            return Opened(answer.session, self.settings.timings.session_ttl)
        if isinstance(request, KeepAlive):
            alive = request.session in self.state.sessions
            return Written((Done(self.state.revision) if alive else Failed(Reason.SESSION_EXPIRED),))
        assert isinstance(request, Close)
        return Written(self._apply(CloseSession(request.session)))

    def _apply(self, command: Command | ClientWrites) -> tuple[Answer, ...]:
        entry = Entry(self.state.applied_index + 1, 1, EntryKind.NORMAL, encode(command))
        return self.state.apply([entry])[0]

    def _status(self, member: int, cluster: int) -> MemberStatus:
        return MemberStatus(
            cluster_name=self.name,
            cluster=cluster,
            member=member,
            name=self.members[member],
            role="leader" if member == self.leader else "follower",
            term=1,
            leader=self.leader,
            commit_index=0,
            applied_index=self.state.applied_index,
            last_log_index=0,
            first_log_index=1,
            revision=self.state.revision,
            compact_revision=self.state.compact_revision,
            voters=(1, 2, 3),
            learners=(),
            db_size=0,
            pid=os.getpid(),
            node="",
            why_not_serving="its disk is gone" if member in self.not_serving else "",
            settings=encode_settings(self.settings),
        )


def serve(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> None:
    """Have the hubs of this process find a fake cluster instead of Ray's, and begin without any hub."""
    monkeypatch.setattr(hub_pool, "make_transport", cluster.transport)
    monkeypatch.setattr(hub_pool, "_hubs", {})
    monkeypatch.setattr(hub_pool, "linger", 0.0)  # those whose subject is the end of a hub wait for it


def connect(name: str = "test", timeout: float = 30.0) -> Client:
    """What ``raykeeper.connect`` does, without Ray."""
    share = hub_pool.open_hub(name, timeout)
    return Client(name, share.hub.cluster, share=share, timeout=timeout)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another thread brings about."""
    until(condition)


def hub_of(kv: Client) -> Hub:
    assert kv._share is not None
    return kv._share.hub


class FakeTransport(OnOwnThreads):
    """Carries frames to a ``FakeCluster`` on a thread of its own."""

    def __init__(self, cluster: FakeCluster | None) -> None:
        self.node = "here"
        self._cluster = cluster
        self._frames: queue.SimpleQueue[tuple[int, bytes, Reader]] = queue.SimpleQueue()
        if cluster is not None:
            threading.Thread(target=self._carry, args=(cluster,), daemon=True).start()

    def members(self) -> dict[int, str]:
        return dict(self._cluster.members) if self._cluster is not None else {}

    def refresh(self) -> None:
        if self._cluster is not None:
            self._cluster.refreshes += 1

    def valid(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def send(self, member: int, frame: bytes, done: Reader) -> None:
        assert self._cluster is not None
        if member in self._cluster.broken:
            raise ConnectionError(f"member {member} is broken")
        self._frames.put((member, frame, done))

    def _carry(self, cluster: FakeCluster) -> None:
        while True:
            member, frame, done = self._frames.get()
            cluster.gate.wait()
            if member not in cluster.mute:
                done(cluster.answer(member, frame))
            del done  # it keeps the hub
