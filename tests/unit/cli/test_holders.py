"""How those who hold and wait are shown, for people and as JSON."""

from __future__ import annotations

import json

import pytest

from raykeeper.actors.client.client_info import ClientInfo, Owner
from raykeeper.actors.recipes.in_use import InUse, Participant
from raykeeper.actors.recipes.in_use_fields import in_use_fields
from raykeeper.cli import holders
from raykeeper.cli.render import CommandResult, show

WORKER = ClientInfo(
    12, "rk1", 4711, "ab" * 28, "10.0.0.1", "01000000", "shards-3", "default_worker.py", "alice", 1000.0, True, 1
)
HOLDER = Participant(7, "", Owner(WORKER, "Worker.take", 1100.0), 10.0, 9.0, lease=0x2C)
SILENT = Participant(9, "read", Owner(ClientInfo(13, open=False)), 10.0, 2.0, "silent for 8.0 s")
LOCK = InUse("lock", b"reports", (HOLDER,), (SILENT,), stuck="silent for 8.0 s")


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders.time, "time", lambda: 1160.0)


def test_lines_say_who_where_and_since_when() -> None:
    assert list(holders._lines([LOCK], "locks")) == [
        "lock reports  STUCK",
        "  held by actor shards-3 (pid 4711 on rk1, 10.0.0.1; job 01000000; user alice), task Worker.take for 60 s, "
        "token 7, lease 2c",
        "  waits [read] session 13 (its session has ended), token 9  STUCK: silent for 8.0 s",
    ]
    assert list(holders._lines([], "locks")) == ["no locks"]


def test_json_has_stable_fields(capsys: pytest.CaptureFixture[str]) -> None:
    show(CommandResult({"locks": [in_use_fields(LOCK)]}, []), "json")
    (lock,) = json.loads(capsys.readouterr().out)["locks"]
    assert list(lock) == ["kind", "name", "holders", "waiters", "size", "more", "stuck"]
    assert list(lock["holders"][0]) == [
        "token",
        "what",
        "weight",
        "host",
        "node",
        "address",
        "actor",
        "job",
        "program",
        "user",
        "pid",
        "task",
        "since",
        "session",
        "session_open",
        "lease",
        "ttl",
        "remaining",
        "stuck",
    ]
    assert (lock["name"], lock["holders"][0]["pid"], lock["waiters"][0]["session_open"]) == ("reports", 4711, False)


def test_what_no_process_is_known_for() -> None:
    unknown = Participant(7, "", None, 0.0, 0.0, "its lease has just ended")
    lines = list(holders._lines([InUse("queue", b"q\x1b", (unknown,), (), 3, True)], "queues"))
    assert lines == [
        "queue q\\x1b, 3 items",
        "  claimed by an unknown process, token 7  STUCK: its lease has just ended",
        "  and more",
    ]


def test_a_client_in_one_line() -> None:
    assert holders._client_line(WORKER) == (
        "12: actor shards-3 (pid 4711 on rk1, 10.0.0.1; job 01000000; user alice), connected for 3 min, 1 leases"
    )
    assert holders._client_line(ClientInfo(13, open=False)) == "13: session 13, its session has ended"


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h"), (400_000, "4.6 d")]
)
def test_lengths_of_time(seconds: float, said: str) -> None:
    assert holders.duration(seconds) == said
