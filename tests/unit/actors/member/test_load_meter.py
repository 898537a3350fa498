"""What loads a member is counted by client and by prefix; of much, a sample stands for all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lab.onemember import one_member
from lab.patience import until
from raykeeper.actors.member.client_list import may_be_of
from raykeeper.actors.member.load_meter import OTHER_KEYS, OTHERS, ClientKey, LoadMeter, prefix_of
from raykeeper.actors.this_process import ids_are_of
from raykeeper.limits import LOAD_ROWS, LOAD_SAMPLES
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.commands import ClientWrite
from raykeeper.schema.frames import Read
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.operations import Compact, Delete, Put, Range, Txn
from raykeeper.schema.operator_frames import AskLoad, Load, LoadShown


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> LoadMeter:
    return LoadMeter(clock)


def write(meter: LoadMeter, session: int, key: bytes, times: int = 1, size: int = 10) -> None:
    """As the request handler does it."""
    writes = [ClientWrite(1, Put(key, b"v"))] * times
    meter.writes.left -= times
    if meter.writes.left <= 0:
        meter.wrote(session, writes, size * times, None)


def test_what_is_little_is_exact(meter: LoadMeter, clock: Clock) -> None:
    for _ in range(20):
        write(meter, 7, b"ujobs/1")
        write(meter, 8, b"ujobs/2", times=2)
        write(meter, 8, b"uplain")
        clock.now += 0.25
    clients, prefixes = meter.shown(10)
    assert clients == [(ClientKey(8), Load(12.0, 0, 0, 120.0)), (ClientKey(7), Load(4.0, 0, 0, 40.0))]
    assert prefixes == [(b"ujobs/", Load(12.0, 0, 0, 120.0)), (b"u", Load(4.0, 0, 0, 40.0))]
    assert [len(each) for each in meter.shown(1)] == [1, 1]
    assert meter.total() == Load(16.0, 0, 0, 160.0)
    clock.now += 5
    assert meter.shown(10) == ([], [])
    assert meter.total() == Load(0, 0, 0, 0)


def test_a_member_that_has_just_started_averages_over_what_it_has_seen(meter: LoadMeter, clock: Clock) -> None:
    write(meter, 7, b"ua/1", times=6)
    assert meter.shown(10) == ([], [])  # its first second is not over
    clock.now += 2
    assert meter.shown(10)[0] == [(ClientKey(7), Load(3.0, 0, 0, 30.0))]


def test_a_sample_stands_for_all(meter: LoadMeter, clock: Clock) -> None:
    looked_at = 0
    for second in range(8):
        for number in range(40 * LOAD_SAMPLES):
            before = meter.writes.served
            write(meter, 7 if number % 4 else 8, b"ua/1" if number % 4 else b"ub/1")
            looked_at += second > 2 and meter.writes.served != before
        clock.now += 1.0
    clients, prefixes = meter.shown(10)
    rates = {client.session: load.writes for client, load in clients}
    assert sum(rates.values()) == pytest.approx(40 * LOAD_SAMPLES, rel=0.02)
    assert sum(load.writes for _, load in prefixes) == pytest.approx(40 * LOAD_SAMPLES, rel=0.02)
    assert looked_at <= 5 * 3 * LOAD_SAMPLES


def test_the_tables_are_bounded(meter: LoadMeter, clock: Clock) -> None:
    for number in range(LOAD_ROWS + 50):
        write(meter, 1 + number, b"up%d/x" % number)
    clock.now += 1
    clients, prefixes = (dict(each) for each in meter.shown(10 * LOAD_ROWS))
    assert len(clients) == len(prefixes) == LOAD_ROWS + 1  # type: ignore[arg-type]
    assert clients[OTHERS].writes == prefixes[OTHER_KEYS].writes == 50  # type: ignore[index]


def test_prefixes() -> None:
    for key, prefix in (
        (b"ujobs/1/2", b"ujobs/"),
        (b"u/registry/pods/x", b"u/registry/"),
        (b"u/x", b"u/"),
        (b"uplain", b"u"),
        (b"u", b"u"),
        (b"u" + b"x" * 100 + b"/", b"u"),
        (b"rlock/a/1", b"rlock/"),
        (b"r\0quiet", b"r"),
        (b"", b""),
    ):
        assert prefix_of(key) == prefix


def test_a_transaction_counts_for_its_first_key_and_some_writes_for_none(meter: LoadMeter, clock: Clock) -> None:
    for operation in (Txn(success=(Put(b"ut/1", b""),)), Txn(), Compact(3), Delete(KeyRange(b"ud/1", b"ud/2"))):
        meter.writes.left -= 1
        meter.wrote(7, [ClientWrite(1, operation)], 10, None)
    clock.now += 1
    clients, prefixes = meter.shown(10)
    assert clients == [(ClientKey(7), Load(4.0, 0, 0, 40.0))]
    assert dict(prefixes) == {b"ut/": Load(1.0, 0, 0, 10.0), b"ud/": Load(1.0, 0, 0, 10.0)}


def test_a_session_is_believed_of_its_own_process(clock: Clock) -> None:
    """Of one of this machine: of others the kernel knows nothing."""
    meter = LoadMeter(clock, lambda session, pid: (session, pid) == (7, 41))

    def lane(pid: int) -> Any:
        return SimpleNamespace(session=7, pid=pid, source=f"process {pid}")

    for number, pid in enumerate((41, 42, 0)):
        for countdown in (meter.writes, meter.reads):
            countdown.left -= 1
        meter.wrote(7, [ClientWrite(1, Put(b"u%d" % number, b"v"))], 10, lane(pid))
        meter.read([Read(Range(KeyRange(b"u1")))], 10, lane(pid))
    clock.now += 1
    assert dict(meter.shown(10)[0]) == {
        ClientKey(7): Load(2.0, 2.0, 0, 40.0),
        ClientKey(0, "process 42", 42): Load(1.0, 1.0, 0, 20.0),
    }


def test_whose_a_session_may_be() -> None:
    boot, namespace = ids_are_of()

    def state(identity: ClientIdentity | None) -> Any:
        return SimpleNamespace(clients={7: SimpleNamespace(identity=identity)})

    here = ClientIdentity(pid=41, boot=boot, pid_namespace=namespace)
    assert may_be_of(state(here), 7, 41)
    assert not may_be_of(state(here), 7, 42)
    assert not may_be_of(state(here), 8, 41), "there is no such session"
    assert not may_be_of(state(None), 7, 41), "it has not said"
    for elsewhere in (msgspec.structs.replace(here, boot="b"), msgspec.structs.replace(here, pid_namespace=1)):
        assert may_be_of(state(elsewhere), 7, 42), "ids of another machine, or container, say nothing"


def test_a_member_tells_who_and_what(clock: Clock) -> None:
    with one_member() as member:
        member.wait_until_it_leads()
        meter = member.loop.handler.load = member.loop.handler.reads._load = LoadMeter(clock)
        with member.client() as kv, kv.watch(prefix="jobs/") as watch:
            for number in range(4):
                kv.put(f"jobs/{number}", "v")
                assert watch.next() is not None
            kv.get("jobs/1")
            until(lambda: meter.events.served >= 4, what="the watch's events are counted once they are sent")
            clock.now += 1
            shown = member.ask(AskLoad(member.cluster, 10.0))
    assert isinstance(shown, LoadShown)
    writer = next(each for each in shown.clients if each.session)
    assert writer.load.writes >= 4
    assert writer.client is not None
    (prefix,) = [each for each in shown.prefixes if each.prefix == b"ujobs/"]
    assert prefix.load.writes >= 4
    assert prefix.load.reads >= 1
    assert prefix.load.events >= 4
    assert prefix.load.bytes > 0
