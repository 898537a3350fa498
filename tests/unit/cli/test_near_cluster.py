"""How a command finds out that a proxy of its node serves the cluster. Played proxy."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from lab.patience import PATIENCE
from raykeeper.cli import near_cluster
from raykeeper.proxy_notices import ProxyNotice
from raykeeper.schema.frames import Reply
from raykeeper.schema.operator_frames import MemberStatus, Status


def status_of(cluster: int) -> bytes:
    numbers = "term leader commit_index applied_index last_log_index first_log_index revision compact_revision db_size"
    plain: dict[str, Any] = {
        **dict.fromkeys(numbers.split(), 1),
        "voters": (1, 2),
        "learners": (),
        "node": "",
        "pid": 1,
    }
    status = MemberStatus(cluster_name="c", cluster=cluster, member=1, name="m1", role="leader", **plain)
    reply: Reply = Status(status)
    return msgspec.msgpack.encode(reply)


class PlayedRelay:
    """A proxy of three members; those without an answer hang."""

    goes_by_ray = False

    def __init__(self, answers: dict[int, bytes]) -> None:
        self._answers = answers
        self.closed = False

    def members(self) -> dict[int, str]:
        return {1: "m1", 2: "m2", 3: "m3"}

    def send(self, member: int, frame: bytes, done: Any) -> None:
        if member in self._answers:
            done(self._answers[member])

    def close(self) -> None:
        self.closed = True


def test_the_first_member_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = PlayedRelay({1: status_of(8), 3: status_of(7)})
    monkeypatch.setattr(near_cluster, "relay_calls", lambda notice, join: relay)
    monkeypatch.setattr(near_cluster, "RELAY_TIMEOUT_S", 10 * PATIENCE)  # nothing is gained by waiting for the second
    notice = ProxyNotice("c", 7, "ray", "http://127.0.0.1:1", "", False, 1, 1)
    found: list[Any] = []
    looking = threading.Thread(
        target=lambda: found.append(near_cluster.near_cluster(notice, {}, lambda: None)), daemon=True
    )
    looking.start()
    looking.join(PATIENCE)
    assert found
    assert found[0].id == 7
    found[0].close()


def test_without_one_of_that_cluster_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = PlayedRelay({member: status_of(8) for member in (1, 2, 3)})
    monkeypatch.setattr(near_cluster, "relay_calls", lambda notice, join: relay)
    notice = ProxyNotice("c", 7, "ray", "http://127.0.0.1:1", "", False, 1, 1)
    assert near_cluster.near_cluster(notice, {}, lambda: None) is None
    assert relay.closed
