"""Raft nodes in memory, with disks that forget what was not synced and a network that is a list of messages."""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from lab.raft.invariants import Invariants
from raykeeper.raft import (
    Configuration,
    Entry,
    EntryCompacted,
    EntryKind,
    EntryUnavailable,
    HardState,
    Message,
    Node,
    NodeConfig,
    Ready,
    SnapshotMeta,
)
from raykeeper.raft.messages import InstallSnapshot


class MemoryLog:
    """A raft log in memory: ``Storage`` for a node, with what was written and not synced kept apart."""

    def __init__(self) -> None:
        self.base = (0, 0)
        self.held: list[Entry] = []
        self.hard_state = HardState()
        self.offered: SnapshotMeta | None = None
        self.snapshot_wanted = False
        """A follower needs a snapshot, and there is none."""
        self.images: dict[str, bytes] = {}
        self._synced: tuple[tuple[int, int], list[Entry], HardState] = ((0, 0), [], HardState())

    # -- Storage ------------------------------------------------------------------------------------------------------

    def first_index(self) -> int:
        return self.base[0] + 1

    def last_index(self) -> int:
        return self.base[0] + len(self.held)

    def term(self, index: int) -> int:
        position = index - self.base[0]
        if position < 0:
            raise EntryCompacted(index)
        if position > len(self.held):
            raise EntryUnavailable(index)
        return self.held[position - 1].term if position else self.base[1]

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if low <= self.base[0]:
            raise EntryCompacted(low)
        if high > self.last_index() + 1:
            raise EntryUnavailable(high)
        found: list[Entry] = []
        size = 0
        for entry in self.held[low - self.first_index() : high - self.first_index()]:
            size += len(entry.data) + 16
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def snapshot(self, at_least: int = 0) -> SnapshotMeta | None:
        if self.offered is None or self.offered.index < max(self.base[0], at_least):
            self.snapshot_wanted = True
            return None
        return self.offered

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes | None:
        image = self.images.get(meta.id)
        return None if image is None else image[offset : offset + max_bytes]

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        if entries:
            keep = entries[0].index - self.first_index()
            assert 0 <= keep <= len(self.held), "a gap in the log"
            self.held = [*self.held[:keep], *entries]
        if hard_state is not None:
            self.hard_state = hard_state
        if sync:
            self.sync()

    def sync(self) -> None:
        self._synced = (self.base, list(self.held), self.hard_state)

    def lose_unsynced(self) -> None:
        base, held, hard_state = self._synced
        self.base, self.held, self.hard_state = base, list(held), hard_state

    def trim(self, index: int) -> None:
        term = self.term(index)
        self.held = self.held[index - self.base[0] :]
        self.base = (index, term)
        self.sync()

    def reset(self, index: int, term: int) -> None:
        self.base, self.held = (index, term), []
        state = self.hard_state
        self.hard_state = replace(state, commit=max(state.commit, index))
        self.sync()


@dataclass
class Machine:
    """A state machine: the digest of everything applied, in order. ``durable`` is what a crash leaves of it."""

    applied: int = 0
    term: int = 0
    configuration: Configuration = field(default_factory=Configuration)
    digest: bytes = b""
    values: tuple[bytes, ...] = ()

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.applied + 1, "applied out of order"
        self.applied, self.term = entry.index, entry.term
        self.digest = hashlib.blake2b(self.digest + entry.data + bytes([entry.kind]), digest_size=16).digest()
        if entry.kind is EntryKind.NORMAL and entry.data:
            self.values += (entry.data,)

    def copy(self) -> Machine:
        return Machine(self.applied, self.term, self.configuration, self.digest, self.values)


class Member:
    """One node with its disk and its state machine."""

    def __init__(self, cluster: Cluster, id: int, configuration: Configuration) -> None:
        self.cluster = cluster
        self.id = id
        self.log = MemoryLog()
        self.now = 0.0
        """Its clock: it advances by one with each tick, and stands still while the member is down."""
        self.machine = Machine(configuration=configuration)
        self.durable = self.machine.copy()
        self.node: Node | None = None
        self.incoming: tuple[str, bytes] = ("", b"")
        self.reads: list[tuple[int, int]] = []
        """(context, index) of the reads that became safe; filled when they are."""
        self.failed_reads: list[int] = []
        self.writes_before_sync = 0

    def start(self) -> None:
        assert self.node is None
        self.machine = self.durable.copy()
        if self.log.last_index() < self.machine.applied or not self._log_holds_applied():
            self.log.reset(self.machine.applied, self.machine.term)
        self.node = Node(
            NodeConfig(id=self.id, **self.cluster.settings),
            self.log,
            hard_state=self.log.hard_state,
            configuration=self.machine.configuration,
            applied=self.machine.applied,
            rng=random.Random(self.cluster.rng.getrandbits(64)),
            now=self.now,
        )

    def _log_holds_applied(self) -> bool:
        return (
            self.machine.applied >= self.log.first_index() - 1
            and self.log.term(self.machine.applied) == self.machine.term
        )

    def crash(self, *, lose_unsynced: bool = True) -> None:
        self.node = None
        self.incoming = ("", b"")
        if lose_unsynced:
            self.log.lose_unsynced()
        else:
            self.durable = self.machine.copy()

    def work_off(self) -> list[Ready]:
        """The owner's loop. Returns what was handed out."""
        node = self.node
        done: list[Ready] = []
        while node is not None and node.has_ready():
            ready = node.ready()
            self.cluster.send(ready.messages)
            if ready.must_sync or ready.hard_state is not None:
                self.log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
            else:
                assert not ready.entries
            self.cluster.send(ready.messages_after)
            for entry in ready.committed:
                assert entry.index <= self.log.hard_state.commit, "applied beyond the written commit index"
                if entry.kind is EntryKind.CONFIGURATION:
                    assert entry.index <= self.log._synced[2].commit, "a configuration beyond the synced commit index"
                    self.machine.configuration = node.apply_configuration(entry)
                self.machine.apply(entry)
            if ready.chunk is not None:
                self._receive(ready.chunk)
            self.reads += ready.read_states
            self.failed_reads += ready.failed_reads
            for meta in ready.rejected_snapshots:
                self.log.images.pop(meta.id, None)
                self.log.offered = None
            node.advance(ready)
            if self.log.snapshot_wanted and self.cluster.makes_snapshots:
                self.make_snapshot()
            done.append(ready)
            self.cluster.invariants.check(node)
            assert len(done) < 1000, "the node is never done"
        return done

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def make_snapshot(self, id: str = "") -> SnapshotMeta:
        """A snapshot of the state machine as of now, offered to followers; the log is synced and may be trimmed."""
        machine = self.machine
        self.durable = machine.copy()
        image = repr((machine.digest, machine.values)).encode()
        meta = SnapshotMeta(
            machine.applied, machine.term, machine.configuration, id or f"{self.id}-{machine.applied}", len(image)
        )
        self.log.images = {meta.id: image}
        self.log.offered, self.log.snapshot_wanted = meta, False
        return meta

    def _receive(self, chunk: InstallSnapshot) -> None:
        node = self.node
        assert node is not None
        id, data = self.incoming
        if id != chunk.meta.id:
            data = b""
        if chunk.offset <= len(data):
            data = data[: chunk.offset] + chunk.data if chunk.offset + len(chunk.data) > len(data) else data
        self.incoming = (chunk.meta.id, data)
        node.snapshot_progress(chunk, len(data))
        if len(data) < chunk.meta.size:
            return
        self.incoming = ("", b"")
        if self.cluster.damages_snapshots:
            node.snapshot_rejected(chunk)
        elif node.snapshot_is_needed(chunk.meta):
            digest, values = ast.literal_eval(data.decode())
            meta = chunk.meta
            self.machine = Machine(meta.index, meta.term, meta.configuration, digest, values)
            self.durable = self.machine.copy()
            self.log.reset(meta.index, meta.term)
            node.snapshot_installed(meta)


SETTINGS: dict[str, Any] = {
    "election_ticks": 10,
    "heartbeat_ticks": 1,
    "max_append_bytes": 1000,
    "max_append_messages_in_flight": 8,
    "max_append_bytes_in_flight": 4000,
    "max_uncommitted_bytes": 10_000,
    "max_apply_bytes": 1000,
    "snapshot_chunk_bytes": 64,
}


class Cluster:
    """Members and the messages between them. Nothing moves by itself."""

    def __init__(self, voters: Sequence[int] = (1, 2, 3), seed: int = 0, **settings: Any) -> None:
        self.rng = random.Random(seed)
        self.settings = {**SETTINGS, **settings}
        self.network: list[Message] = []
        self.cut_links: set[tuple[int, int]] = set()
        self.invariants = Invariants()
        self.damages_snapshots = False
        self.makes_snapshots = True
        """Images are made when a follower needs one; else only by ``make_snapshot``."""
        self.members: dict[int, Member] = {}
        for id in voters:
            self.add(id, Configuration(voters=tuple(voters)))

    def add(self, id: int, configuration: Configuration | None = None) -> Member:
        member = self.members[id] = Member(self, id, configuration or Configuration())
        member.start()
        return member

    def node(self, id: int) -> Node:
        node = self.members[id].node
        assert node is not None, f"member {id} is down"
        return node

    @property
    def up(self) -> list[Member]:
        return [member for member in self.members.values() if member.node is not None]

    @property
    def leader(self) -> Node | None:
        """The leader of the highest term."""
        leaders = [node for node in (self.node(m.id) for m in self.up) if node.role == "leader"]
        return max(leaders, key=lambda node: node.term, default=None)

    def send(self, messages: Sequence[Message]) -> None:
        self.network += [m for m in messages if (m.sender, m.to) not in self.cut_links]

    def deliver(self, message: Message) -> None:
        """Hand a message over, which need not be in the network (any more)."""
        member = self.members.get(message.to)
        if member is not None and member.node is not None and (message.sender, message.to) not in self.cut_links:
            member.node.step(message)
            self.invariants.check(member.node)
            member.work_off()

    def run(self, rounds: int = 50) -> None:
        """Deliver in order until nothing is left to deliver, ``rounds`` messages deep at most."""
        for member in self.up:
            member.work_off()
        for _ in range(rounds):
            batch, self.network = self.network, []
            if not batch:
                return
            for message in batch:
                self.deliver(message)

    def tick(self, ids: Sequence[int] | None = None, count: int = 1) -> None:
        for _ in range(count):
            for member in self.up:
                if ids is None or member.id in ids:
                    assert member.node is not None
                    member.now += 1
                    member.node.set_time(member.now, member.now)
                    member.node.tick()
                    self.invariants.check(member.node)
                    member.work_off()

    def elect(self, id: int) -> Node:
        """Make a member the leader."""
        node = self.node(id)
        for _ in range(60):
            node.campaign()
            self.run()
            if node.role == "leader":
                return node
            self.tick()
            self.network.clear()
        raise AssertionError(f"member {id} was not elected")

    def partition(self, *groups: Sequence[int]) -> None:
        """Only members of one group reach each other; those in no group reach no other."""
        side = {id: number for number, group in enumerate(groups) for id in group}
        self.cut_links = {
            (a, b)
            for a in self.members
            for b in self.members
            if a != b and (a not in side or b not in side or side[a] != side[b])
        }
        self.network = [m for m in self.network if (m.sender, m.to) not in self.cut_links]

    def heal(self) -> None:
        self.cut_links = set()

    def settle(self, ticks: int = 100) -> Node:
        """Let time pass and messages flow until there is a leader with which all agree, and all have applied all."""
        for _ in range(ticks):
            self.tick()
            self.run()
            leader = self.leader
            if leader is not None and all(
                m.node is not None and m.node.leader == leader.id and m.node.applied_index == leader.last_index
                for m in self.up
            ):
                return leader
        raise AssertionError("the cluster does not settle")
