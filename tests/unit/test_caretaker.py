"""The threads that care for a member, beside one real member and without Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from onemember import OneMember, one_member

from raykeeper import Client, NoSpace
from raykeeper.actors import care
from raykeeper.actors.care import Caretaker
from raykeeper.actors.protocol import Administer, MemberStatus, Refused, Reply, Written
from raykeeper.limits import Limits, Settings, Timings, encode_settings
from raykeeper.store.commands import Administration, AlarmKind, Answer, Configure, HashContent, SetAlarm
from raykeeper.store.rocks import RocksDisk

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Reply).decode
KEY = (1, AlarmKind.NOSPACE)


def administer(member: OneMember, command: Administration) -> Answer:
    replies: list[bytes] = []
    ready = threading.Event()

    def done(make: Callable[[], bytes]) -> None:
        replies.append(make())
        ready.set()

    member.loop.service.submit(encode(Administer(member.cluster, 5.0, command)), done)
    assert ready.wait(10)
    reply = decode(replies[0])
    assert not isinstance(reply, Refused), reply
    assert isinstance(reply, Written)
    return reply.answers[0]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.02)
    return value


def configure(member: OneMember, **limits: int) -> None:
    settings = Settings(limits=Limits(**limits), timings=Timings(check_interval=0.05))
    administer(member, Configure(encode_settings(settings)))


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    for name in ("CARE_PAUSE", "CHECK_RETRY", "RECLAIM_PAUSE"):
        monkeypatch.setattr(care, name, 0.1)
    with one_member(RocksDisk(), str(tmp_path / "member")) as made:
        monkeypatch.setattr(care, "administer", lambda name, cluster, command, deadline: administer(made, command))
        yield made


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as client:
        client.put("first", "v")  # somebody leads
        yield client


def watched_over(member: OneMember, tmp_path: Path) -> Caretaker:
    return Caretaker(member.name, member.cluster, member.loop.server, str(tmp_path / "member"))


def puts(kv: Client, size: int = 1) -> bool:
    try:
        kv.put("big", os.urandom(size))
        return True
    except NoSpace:
        return False


def test_an_alarm_comes_with_the_quota_and_goes_when_there_is_room(
    member: OneMember, kv: Client, tmp_path: Path
) -> None:
    configure(member, quota_bytes=3_000_000)
    state = member.loop.server.state
    caretaker = watched_over(member, tmp_path)
    until(lambda: not puts(kv, 200_000))
    assert "of a quota of 3.0 MB" in state.alarms[KEY]
    assert kv.get("first") is not None
    kv.delete("big")
    kv.compact(kv.revision())
    until(lambda: not state.alarms)
    assert puts(kv)
    caretaker.stop()


def test_what_takes_little_room_once_it_stands_in_tables_raises_no_alarm(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Administration] = []
    monkeypatch.setattr(care, "administer", lambda name, cluster, command, deadline: asked.append(command))
    configure(member, quota_bytes=3_000_000)
    state = member.loop.server.state
    for _ in range(20):
        kv.put("big", bytes(200_000))  # which compresses well
    assert state.size() >= 4_000_000
    caretaker = watched_over(member, tmp_path)
    until(lambda: state.size() < 3_000_000)
    caretaker.stop()
    assert not [command for command in asked if isinstance(command, SetAlarm)]


def test_an_alarm_comes_when_the_disk_is_nearly_full(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1 << 40]
    monkeypatch.setattr(care, "free_bytes", lambda path: free[0])
    state = member.loop.server.state
    caretaker = watched_over(member, tmp_path)
    free[0] = Limits().reserve_bytes - 1
    until(lambda: KEY in state.alarms)
    assert not puts(kv)
    free[0] = Limits().reserve_bytes + 1  # room again, but not enough to begin all over at once
    until(lambda: caretaker.free == free[0])
    assert KEY in state.alarms
    free[0] = 2 * Limits().reserve_bytes
    until(lambda: not state.alarms)
    assert puts(kv)
    caretaker.stop()


def test_a_look_that_fails_is_not_the_last(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def free(path: str) -> int:
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError("Ray is gone")
        return 0

    monkeypatch.setattr(care, "free_bytes", free)
    caretaker = watched_over(member, tmp_path)
    until(lambda: KEY in member.loop.server.state.alarms)
    caretaker.stop()


def test_the_leader_compares_and_ends_an_alarm_that_is_over(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = member.loop.server

    def statuses(handles: object, what: str) -> dict[int, MemberStatus]:
        told = {"contents": server.hashing.results, "contents_begin": server.hashing.begins}
        return {1: msgspec.structs.replace(member._status(), **told)}

    monkeypatch.setattr(care, "member_actors", lambda name: {1: None})
    monkeypatch.setattr(care, "ask_all", statuses)
    compared = care.compare_contents(member.name, member.cluster, time.monotonic() + 20)
    assert compared.equal
    assert list(compared.hashes) == [1]
    assert compared.revision == 2
    assert compared.hashes[1] == server.state.content_hash()

    monkeypatch.setattr(care, "should_rebuild", lambda *arguments: "")
    administer(member, SetAlarm(1, AlarmKind.CORRUPT, True, "odd once"))
    server.timings = Timings(check_interval=0.05)
    caretaker = watched_over(member, tmp_path)
    until(lambda: not server.state.alarms)
    caretaker.stop()


def test_the_next_comparison_is_due_whoever_leads(member: OneMember, kv: Client) -> None:
    """Every member notes when a leader last asked for one; what an operator asks for does not count."""
    server = member.loop.server
    until(lambda: server.seconds_since_check >= 0.3)
    administer(member, HashContent())
    assert server.seconds_since_check >= 0.3
    administer(member, HashContent(routine=True))
    until(lambda: server.seconds_since_check < 0.3)
