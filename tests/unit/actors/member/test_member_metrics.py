"""What a member says of itself: figures follow what was done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper.limits import Limits
from raykeeper.schema.operator_frames import AskFigures, Figures

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member() as member:
        member.wait_until_it_leads()
        yield member


def figures(member: OneMember) -> Samples:
    reply = member.ask(AskFigures())
    assert isinstance(reply, Figures)
    return {
        (family.name + sample.suffix, sample.labels): sample.value
        for family in reply.families
        for sample in family.samples
    }


def test_what_was_done_is_counted(member: OneMember) -> None:
    before = figures(member)
    with member.client() as kv:
        for number in range(5):
            kv.put(f"k{number}", "v")
        kv.get("k1")
        kv.delete(prefix="k")
        lease = kv.lease(60)
        kv.put("leased", "v", lease=lease)
        after = figures(member)

        def grew(name: str) -> float:
            return after[name, ()] - before[name, ()]

        assert grew("etcd_mvcc_put_total") == 6
        assert grew("etcd_mvcc_delete_total") == 5
        assert grew("etcd_mvcc_range_total") >= 1
        assert grew("etcd_debugging_lease_granted_total") == grew("raykeeper_leases") == 1
        assert after["raykeeper_sessions", ()] == 1
        assert grew("raykeeper_batch_writes_count") >= 8
        assert grew("etcd_disk_wal_fsync_duration_seconds_count") >= 8
        assert grew("etcd_disk_backend_commit_duration_seconds_count") >= 8
        assert grew("raykeeper_turn_duration_seconds_count") >= 8
        assert after["etcd_debugging_mvcc_current_revision", ()] == kv.revision()
        assert after["etcd_server_quota_backend_bytes", ()] == Limits().quota_bytes
        assert after["etcd_server_is_leader", ()] == after["etcd_server_has_leader", ()] == 1
        assert after["etcd_server_leader_changes_seen_total", ()] == 1
        lease.revoke()
        assert figures(member)["etcd_debugging_lease_revoked_total", ()] == 1


def test_watches(member: OneMember) -> None:
    with member.client() as kv, kv.watch(prefix="a") as watch:
        kv.put("a1", "v")
        assert watch.next(timeout=PATIENCE) is not None
        found = figures(member)
        assert found["etcd_debugging_mvcc_watcher_total", ()] == 1
        assert found["etcd_debugging_mvcc_watch_stream_total", ()] == 1
        assert found["etcd_debugging_mvcc_events_total", ()] == 1
        until(lambda: figures(member)["raykeeper_watch_lag_revisions", ()] == 0)


def test_locks_held_and_waited_for(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.member.member_metrics.METRICS_SCAN_PAUSE_S", 0.0)
    with member.client() as kv:
        held, waits = kv.lock("x", ttl=60), kv.lock("x", ttl=60)
        with held, kv.lock("y/z", ttl=60):
            assert not waits.acquire(timeout=0)
            found = figures(member)
            assert found["raykeeper_locks_held", (("kind", "lock"),)] == 2
            assert found["raykeeper_locks_waited_for", (("kind", "lock"),)] == 0
            assert found["raykeeper_contenders", (("kind", "lock"),)] == 2
            assert found["raykeeper_contenders", (("kind", "election"),)] == 0
        until(lambda: figures(member)["raykeeper_locks_held", (("kind", "lock"),)] == 0)


def test_a_member_that_has_stopped_says_nothing(member: OneMember) -> None:
    telemetry = member.loop.telemetry
    assert any(family.name == "etcd_mvcc_put" for family in telemetry.collect())
    member.loop.stop("the test")
    assert not any(family.name == "etcd_mvcc_put" for family in telemetry.collect())
