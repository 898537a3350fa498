"""However the work of applying is cut into turns, and wherever the member crashes, the outcome is the same.

One state applies each entry whole; the other one a little at a time, with a limit so low that it stops within most
commands. Between any two of its turns it shows exactly what the first one showed at the same index: on the disk, to
readers, in a copy of it, and after a restart.
"""

from __future__ import annotations

import random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.extremes import encoded, raw
from lab.store_model import FIRST, Hand, encode
from raykeeper.limits import Limits, Settings, encode_settings
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema.answers import Answer, ContentAsked
from raykeeper.schema.auth_operations import (
    Access,
    AskUsers,
    AuthDisable,
    AuthEnable,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    UserAdd,
    UserDelete,
    UserGrantRole,
)
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.commands import (
    ByUser,
    Caller,
    CheckpointLeases,
    ClientWrite,
    ClientWrites,
    CloseSession,
    ClusterEvent,
    Command,
    CompactHistory,
    Configure,
    EndDeadSessions,
    ExpireLeases,
    ExpireSessions,
    Expiry,
    ForgetRequests,
    HashContent,
    LeaseDeadline,
    OpenSession,
    PassTime,
    RecordEvents,
    RegisterMember,
    RenewLeases,
    RenewSessions,
    RequestId,
    ReserveMember,
    RetireMember,
    SetAlarm,
)
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Relation,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.state import executor, machine, ranges, sessions, write_batch
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

KEYS = (b"a", b"b", b"c", b"d", b"e")


class Author:
    """Writes a log."""

    def __init__(self, rng: random.Random, first: int, session: int) -> None:
        self.rng = rng
        self.first = first
        self.index = first
        self.session = session
        self.sequence = 1
        self.configurations: dict[int, Configuration] = {}

    def log(self) -> list[Entry]:
        entries = []
        for _ in range(self.rng.randrange(3, 14)):
            if self.rng.random() < 0.08:
                voters = tuple(sorted(self.rng.sample(range(1, 6), 3)))
                self.configurations[self.index] = Configuration(voters=voters)
                entries.append(Entry(self.index, 1, EntryKind.CONFIGURATION, b"x"))
            else:
                entries.append(Entry(self.index, 1, EntryKind.NORMAL, self.data()))
            self.index += 1
        return entries

    def data(self) -> bytes:
        kind = self.rng.randrange(12)
        if kind == 0:
            return b""
        if kind == 1:
            return encoded(Command, self.rng)
        if kind == 2:
            self.sequence += 1
            return msgspec.msgpack.encode((20, self.session, 0, ((self.sequence - 1, raw(Operation, self.rng)),)))
        return encode(self.own() if kind < 7 else self.frame())

    def frame(self) -> Command:
        writes = []
        for _ in range(self.rng.choice((1, 2, 5, 12))):
            name = RequestId(self.rng.choice(KEYS), b"m", self.rng.randrange(2)) if self.rng.random() < 0.2 else None
            old = self.rng.random() < 0.2
            sequence = self.rng.randrange(1, self.sequence + 1) if old else self.sequence
            self.sequence += not old
            writes.append(ClientWrite(sequence, self.operation(2), name))
        low = max(0, self.sequence - self.rng.randrange(60))
        return ClientWrites(self.session, low, tuple(writes))

    def operation(self, depth: int) -> Any:
        rng = self.rng
        keys = KeyRange(rng.choice(KEYS), rng.choice((None, None, b"d", b"")))
        lease = rng.choice((0, 0, KEEP_LEASE, 7, 8))
        name = rng.choice(("root", "a", "b"))
        if rng.random() < 0.15:
            kinds_of_users: list[Any] = [
                UserAdd(name, b"h"),
                UserGrantRole(name, rng.choice(("root", "a"))),
                UserDelete(name),
                RoleAdd(name),
                RoleDelete(name),
                RoleGrantPermission(name, Permission(rng.choice(list(Access)), keys)),
                AskUsers(),
                AuthEnable(b"k" * 32),
                AuthDisable(),
            ]
            return rng.choice(kinds_of_users)
        kinds: list[Any] = [
            lambda: Put(keys.key, rng.choice((b"", b"v", b"w" * 1500, None)), lease, rng.random() < 0.3),
            lambda: Put(keys.key, b"v%d" % self.sequence, rng.choice((0, 7))),
            lambda: Delete(keys, rng.random() < 0.3),
            lambda: Range(keys, limit=rng.randrange(3)),
            lambda: LeaseGrant(rng.choice((0, 7, 8)), 30.0, owned=rng.random() < 0.6),
            lambda: LeaseRevoke(rng.choice((7, 8))),
        ]
        if depth == 2:
            kinds.append(lambda: Compact(rng.randrange(1, 30)))
        if depth:
            kinds += [lambda: self.txn(depth)] * 4
        return rng.choice(kinds)()

    def txn(self, depth: int) -> Txn:
        rng = self.rng
        looked = [KeyRange(rng.choice(KEYS), rng.choice((None, b""))) for _ in range(rng.randrange(3))]
        compare = tuple(TxnCompare(keys, Target.VERSION, Relation(rng.randrange(4)), 1) for keys in looked)
        branches = [tuple(self.operation(depth - 1) for _ in range(rng.randrange(4))) for _ in range(2)]
        return Txn(compare, branches[0], branches[1])

    def own(self) -> Command:
        rng = self.rng
        if rng.random() < 0.3:
            return PassTime(rng.choice((0.0, 5.0, 10.0)), 5.0, self.index - 1, 5, rng.random() < 0.5)
        if rng.random() < 0.2:
            return Configure(encode_settings(Settings(limits=Limits(max_leases=rng.randrange(1, 4)))))
        return rng.choice(
            [
                lambda: OpenSession(rng.choice(KEYS), 5.0, rng.choice((None, ClientIdentity("host", 4711)))),
                lambda: CloseSession(rng.randrange(1, self.index)),
                lambda: ExpireSessions(1, (Expiry(rng.randrange(1, self.index), rng.randrange(self.index)),)),
                lambda: ExpireLeases(1, tuple(Expiry(id, rng.randrange(self.index)) for id in (7, 8))),
                lambda: RenewLeases(1, (7, 8), rng.choice((0, self.session))),
                lambda: EndDeadSessions((rng.choice((self.session, *[rng.randrange(1, self.index)] * 3)),)),
                lambda: CheckpointLeases(1, (LeaseDeadline(rng.choice((7, 8)), rng.choice((5.0, 40.0))),)),
                lambda: RenewSessions(1, (rng.randrange(1, self.index),)),
                lambda: ForgetRequests(rng.randrange(self.index)),
                lambda: CompactHistory(rng.randrange(1, 20)),
                lambda: ReserveMember(rng.choice(KEYS), "pin", "base"),
                lambda: RegisterMember(rng.randrange(1, 8), "pin", "base", 1),
                lambda: RetireMember(rng.randrange(1, 8)),
                lambda: SetAlarm(rng.randrange(1, 5), rng.choice((0, 1)), rng.random() < 0.3),  # type: ignore[arg-type]
                lambda: HashContent(),
                lambda: RecordEvents((ClusterEvent("lost", "text", 1.0, rng.randrange(1, 5), id=rng.choice(KEYS)),)),
                lambda: ByUser(
                    Caller(rng.choice(("", "root")), rng.choice((0, 1 << 20)), 1e9),
                    rng.choice((OpenSession(rng.choice(KEYS), 5.0), self.frame())),  # type: ignore[arg-type]
                ),
            ]
        )()


def memory(machine: State) -> Any:
    """All that is held of the state beside the disk."""
    return (
        machine.applied_index,
        machine.applied_term,
        machine.revision,
        machine.compact_revision,
        machine.configuration,
        machine.settings,
        dict(machine.members.by_id),
        dict(machine.alarms),
        (machine.users.head, dict(machine.users.users), dict(machine.users.roles)),
        machine.clock.encoded(),
        machine.remembered_requests,
        machine._sessions.request_bytes,
        {lease.id: (lease.ttl, lease.heard, lease.until, lease.keys, lease.owner) for lease in machine.leases.values()},
        {
            each.id: (
                *(each.ttl, each.nonce, each.low, each.heard, each.user),
                *(each.size, dict(each.answered), sorted(each.batches)),
            )
            for each in machine.sessions.values()
        },
        (
            machine._executor.limits,
            machine._executor.compact_revision,
            machine._executor.read_only,
            machine._mvcc.revision,
        ),
    )


def begun() -> tuple[SimDisk, State, int]:
    disk = SimDisk()
    made = State.create(disk, "s", FIRST)
    hand = Hand(made)
    hand.run(LeaseGrant(7, 30.0), Put(b"a", b"1", 7), Put(b"b", b"2" * 2000), Put(b"c", b"3"))
    hand.sequence = 0
    return disk, made, hand.apply(OpenSession(b"another", 60.0)).session  # type: ignore[union-attr]


def test_every_command_is_drawn() -> None:
    author = Author(random.Random(1), 5, 1)
    drawn = {type(author.own()) for _ in range(2000)}
    assert drawn | {ClientWrites} == set(get_args(Command))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32))
def test_cut_into_slices_and_broken_off_anywhere_it_comes_to_the_same(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "ENTRY_CHANGES", 6)
        rng = random.Random(seed)
        patch.setattr(executor, "DELETE_SLICE_KEYS", rng.choice((1, 2, 1000)))
        for module in (executor, ranges):
            patch.setattr(module, "SCAN_SLICE", rng.choice((1, 3, 1000)))
        patch.setattr(write_batch, "BATCH_SLICE_WRITES", rng.choice((1, 3, 10_000)))

        def work(most: int) -> None:
            patch.setattr(sessions, "APPLY_WORK", most)
            patch.setattr(machine, "APPLY_WORK", most)

        _run(random.Random(seed), work)


def _run(rng: random.Random, work: Any) -> None:
    (_, whole, session), (disk, sliced, _) = begun(), begun()
    author = Author(rng, whole.applied_index + 1, session)
    log, configurations = author.log(), author.configurations
    for each in (whole, sliced):
        each.take_changed_keys()
    digests, answers, kept = {whole.applied_index: whole.content_hash()}, {}, {}
    changed: dict[int, list[bytes]] = {}
    work(1 << 40)
    for entry in log:
        (answers[entry.index],) = whole.apply([entry], configurations)
        digests[entry.index] = whole.content_hash()
        kept[entry.index] = memory(whole)
        changed[entry.index] = whole.take_changed_keys()
    work(rng.choice((10, 20, 60)))
    given: dict[int, tuple[Answer, ...]] = {}
    told: list[bytes] = []
    since, copies, where = log[0].index, 0, "s"
    while sliced.applied_index < log[-1].index:
        left = log[sliced.applied_index + 1 - author.first :]
        before, part = sliced.applied_index, left[: rng.choice((1, 2, len(left), len(left), len(left)))]
        for entry, found in zip(part, sliced.apply_some(part, configurations), strict=False):
            given[entry.index] = found
        applied = sliced.applied_index
        told += sliced.take_changed_keys()
        expected = {key for index in range(since, applied + 1) for key in changed[index]}
        assert set(told) == expected
        content = sliced.take_content_hasher()
        asked = [index for index in range(before + 1, applied + 1) if ContentAsked in map(type, given[index])]
        assert asked == ([] if content is None else [content.index])
        if content is not None:
            assert content.digest() == digests[content.index]
        assert sliced.content_hash() == digests[applied]
        if sliced._unwritten is None and applied >= author.first:
            assert memory(sliced) == kept[applied]
        what = rng.random()
        if what < 0.3:  # a crash, or a snapshot that another member continues with
            if what < 0.1:
                copies += 1
                where = f"copy{copies}"
                sliced.flush()
                sliced.checkpoint(where)
            sliced.close()
            sliced = State.open(disk, where)
            assert sliced.content_hash() == digests[applied]
            if applied >= author.first:
                assert memory(sliced) == kept[applied]
            told, since = [], applied + 1
    assert given == answers
    for each in (whole, sliced):
        each.close()
