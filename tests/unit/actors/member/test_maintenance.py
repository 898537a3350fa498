"""The maintenance threads, beside one real member and without Ray."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, NoSpace, Unavailable
from raykeeper.actors import consistency
from raykeeper.actors.member import maintenance
from raykeeper.actors.member.maintenance import Maintenance
from raykeeper.limits import Limits, Settings, Timings, encode_settings
from raykeeper.schema.answers import Answer
from raykeeper.schema.commands import Administration, AlarmKind, Configure, HashContent, SetAlarm
from raykeeper.schema.frames import Refused, Reply, Written
from raykeeper.schema.operator_frames import Administer, MemberStatus
from raykeeper.store.engine.rocks import RocksDisk

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Reply).decode
KEY = (1, AlarmKind.NOSPACE)


def administer(member: OneMember, command: Administration) -> Answer:
    replies: list[bytes] = []
    ready = threading.Event()

    def done(make: Callable[[], bytes]) -> None:
        replies.append(make())
        ready.set()

    member.loop.handler.handle_request(encode(Administer(member.cluster, 5.0, command)), done)
    assert ready.wait(PATIENCE)
    reply = decode(replies[0])
    assert not isinstance(reply, Refused), reply
    assert isinstance(reply, Written)
    return reply.answers[0]


def configure(member: OneMember, **limits: int) -> None:
    settings = Settings(limits=Limits(**limits), timings=Timings(check_interval=0.05))
    administer(member, Configure(encode_settings(settings)))


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    for name in ("DISK_CHECK_PAUSE_S", "CHECK_RETRY_S", "RECLAIM_PAUSE_S"):
        monkeypatch.setattr(maintenance, name, 0.1)
    with one_member(RocksDisk(), str(tmp_path / "member")) as made:
        for module in (maintenance, consistency):
            monkeypatch.setattr(module, "administer", lambda name, cluster, command, end: administer(made, command))
        yield made


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as client:
        client.put("first", "v")  # somebody leads
        yield client


def watched_over(member: OneMember, tmp_path: Path) -> Maintenance:
    return Maintenance(member.name, member.cluster, member.loop.replica, str(tmp_path / "member"))


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
    state = member.loop.replica.state
    running = watched_over(member, tmp_path)
    until(lambda: not puts(kv, 200_000))
    assert "of a quota of 3.0 MB" in state.alarms[KEY]
    assert kv.get("first") is not None
    kv.delete("big")
    kv.compact(kv.revision())
    until(lambda: not state.alarms)
    assert puts(kv)
    running.stop()


def test_an_alarm_that_is_ended_comes_again_while_its_cause_lasts(
    member: OneMember, kv: Client, tmp_path: Path
) -> None:
    configure(member, quota_bytes=3_000_000)
    state = member.loop.replica.state
    running = watched_over(member, tmp_path)
    until(lambda: not puts(kv, 200_000))
    until(lambda: KEY in state.alarms)
    configure(member, quota_bytes=2_000_000)  # however much is reclaimed meanwhile, the cause lasts
    administer(member, SetAlarm(1, AlarmKind.NOSPACE, False, "an operator"))
    until(lambda: KEY in state.alarms)
    assert not puts(kv)
    running.stop()


def test_what_takes_little_room_once_it_stands_in_tables_raises_no_alarm(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Administration] = []
    monkeypatch.setattr(maintenance, "administer", lambda name, cluster, command, deadline: asked.append(command))
    configure(member, quota_bytes=3_000_000)
    state = member.loop.replica.state
    for _ in range(20):
        kv.put("big", bytes(200_000))  # which compresses well
    assert state.size() >= 4_000_000
    running = watched_over(member, tmp_path)
    until(lambda: state.size() < 3_000_000)
    running.stop()
    assert not [command for command in asked if isinstance(command, SetAlarm)]


def test_an_alarm_comes_when_the_disk_is_nearly_full(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1 << 40]
    monkeypatch.setattr(maintenance, "free_bytes", lambda path: free[0])
    state = member.loop.replica.state
    running = watched_over(member, tmp_path)
    free[0] = Limits().reserve_bytes - 1
    until(lambda: KEY in state.alarms)
    assert not puts(kv)
    free[0] = Limits().reserve_bytes + 1  # room again, but not enough to begin all over at once
    until(lambda: running.free == free[0])
    assert KEY in state.alarms
    free[0] = 2 * Limits().reserve_bytes
    until(lambda: not state.alarms)
    assert puts(kv)
    running.stop()


def test_a_look_that_fails_is_not_the_last(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def free(path: str) -> int:
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError("Ray is gone")
        return 0

    monkeypatch.setattr(maintenance, "free_bytes", free)
    running = watched_over(member, tmp_path)
    until(lambda: KEY in member.loop.replica.state.alarms)
    running.stop()


def test_the_leader_compares_and_ends_an_alarm_that_is_over(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = member.loop.replica

    def statuses(name: str) -> dict[int, MemberStatus]:
        told = {"contents": replica.hashing.results, "contents_begin": replica.hashing.begins}
        return {1: msgspec.structs.replace(member._status(), **told)}

    monkeypatch.setattr(consistency, "member_statuses", statuses)

    def compared_as_it_is() -> bool:
        """Entries of the leader's own, the note of its election among them, come when they come."""
        compared = consistency.compare_contents(member.name, member.cluster, time.monotonic() + PATIENCE)
        assert compared.equal
        assert list(compared.hashes) == [1]
        assert compared.revision == 2
        return compared.hashes[1] == replica.state.content_hash()

    until(compared_as_it_is)

    monkeypatch.setattr(maintenance, "should_rebuild", lambda *arguments: "")
    administer(member, SetAlarm(1, AlarmKind.CORRUPT, True, "odd once"))
    replica.timings = Timings(check_interval=0.05)
    running = watched_over(member, tmp_path)
    until(lambda: not replica.state.alarms)
    running.stop()


def test_where_no_majority_is_right_nothing_is_rebuilt_and_all_is_served(member: OneMember, kv: Client) -> None:
    """CORRUPT of as many members that no majority is without: an operator decides, and meanwhile nothing stops."""
    administer(member, SetAlarm(1, AlarmKind.CORRUPT, True, "there is no majority"))
    administer(member, HashContent())
    replica = member.loop.replica
    assert maintenance.should_rebuild(1, replica, 0) == ""
    assert puts(kv)
    assert kv.get("first") is not None


def test_the_next_comparison_is_due_whoever_leads(member: OneMember, kv: Client) -> None:
    """Every member notes when a leader last asked for one; what an operator asks for does not count."""
    replica = member.loop.replica
    until(lambda: replica.seconds_since_check >= 0.3)
    last = -replica.seconds_since_check + time.monotonic()
    administer(member, HashContent())
    assert replica.seconds_since_check >= 0.3
    administer(member, HashContent(routine=True))
    until(lambda: time.monotonic() - replica.seconds_since_check > last + 0.2)


def test_a_check_that_fails_is_logged_and_tried_again(
    member: OneMember, kv: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    errors: list[Exception] = [Unavailable("no leader"), OSError("no such folder")]

    def free(path: str) -> int:
        if errors:
            raise errors.pop(0)
        return 10**12

    monkeypatch.setattr(maintenance, "free_bytes", free)
    running = watched_over(member, tmp_path)
    until(lambda: running.free == 10**12)
    running.stop()
    said = [line for line in caplog.messages if "maintenance has failed" in line]
    assert said == [f"cluster {member.name}, m1: maintenance has failed, and is tried again: OSError('no such folder')"]
