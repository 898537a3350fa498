"""What a replica logs: who leads and why that changed, who was lost, alarms, compaction, and what was slow."""

from __future__ import annotations

import logging
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lab.onemember import one_member
from lab.patience import until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.operator_log import OperatorLog, TurnTimes, describe_configuration
from raykeeper.errors import InvalidArgument
from raykeeper.limits import SLOW_S
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.raft.progress import ProgressState
from raykeeper.schema.commands import AlarmKind, ClientWrite, ClientWrites, CompactHistory, encode
from raykeeper.schema.operations import Put
from raykeeper.store.state import sessions


class Play:
    """An operator log over a node and a replica that show what the test likes."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "raykeeper.member")
        self._caplog = caplog
        self.node = SimpleNamespace(
            role="follower",
            term=3,
            leader=1,
            is_voter=True,
            configuration=Configuration((1, 2, 3)),
            progress={},
            transfer_target=0,
            taking_over=False,
            needs_snapshot=False,
        )
        self.silent: dict[int, float] = {}
        self.replica = SimpleNamespace(
            state=SimpleNamespace(alarms={}, compact_revision=0),
            why_not_serving="",
            is_leader=True,
            config_changes=SimpleNamespace(silent_for=lambda now: self.silent, silence=2.0),
        )
        node: Any = self.node
        self.log = OperatorLog(MemberLog("member", "c", "m2"), node, {}, 0)

    def lines(self) -> list[str]:
        said = [f"{record.levelname}: {record.getMessage().partition(', m2: ')[2]}" for record in self._caplog.records]
        self._caplog.clear()
        return said

    def becomes(self, role: str, term: int, leader: int) -> list[str]:
        self.node.role, self.node.term, self.node.leader = role, term, leader
        self.log.follow_leadership()
        return self.lines()

    def look(self) -> list[str]:
        replica: Any = self.replica
        self.log.follow_state(replica, 0.0)
        return self.lines()


@pytest.fixture
def play(caplog: pytest.LogCaptureFixture) -> Play:
    return Play(caplog)


def test_an_election_won_and_the_leadership_lost(play: Play) -> None:
    assert play.becomes("follower", 4, 1) == ["INFO: m1 leads in term 4 (no leader was known before)"]
    assert play.becomes("pre-candidate", 4, 0) == [
        "INFO: campaigns in term 4: it hears from no leader (before, m1 led in term 4)"
    ]
    assert play.becomes("candidate", 5, 0) == []
    assert play.becomes("leader", 5, 2) == ["INFO: won the election and leads in term 5 (before, m1 led in term 4)"]
    assert play.becomes("leader", 5, 2) == []
    assert play.becomes("follower", 6, 3) == [
        "INFO: no longer leads since term 5: m3 leads in term 6",
        "INFO: m3 leads in term 6 (before, m2 led in term 5)",
    ]


def test_an_election_lost(play: Play) -> None:
    play.becomes("pre-candidate", 3, 0)
    assert play.becomes("follower", 3, 0) == ["INFO: lost the election: no leader is known in term 3"]
    play.becomes("candidate", 4, 0)
    assert play.becomes("follower", 4, 3) == [
        "INFO: lost the election: m3 leads in term 4 (no leader was known before)"
    ]
    assert play.becomes("follower", 5, 0) == ["INFO: m3 leads no longer: an election has begun in term 5"]


def test_a_leadership_that_is_handed_over(play: Play) -> None:
    play.becomes("leader", 3, 2)
    play.node.transfer_target = 3
    assert play.becomes("leader", 3, 2) == ["INFO: hands leadership over to m3: it was asked to"]
    play.node.transfer_target = 0
    assert play.becomes("leader", 3, 2) == ["INFO: leads on: m3 did not take over"]
    play.node.transfer_target, play.node.needs_snapshot = 1, True
    assert play.becomes("leader", 3, 2) == ["INFO: hands leadership over to m1: its state is lost"]
    play.node.transfer_target = 0
    assert play.becomes("follower", 4, 1) == [
        "INFO: no longer leads since term 3: m1 leads in term 4",
        "INFO: m1 leads in term 4 (before, m2 led in term 3)",
    ]


def test_a_leadership_that_is_taken_over_as_the_leader_has_asked(play: Play) -> None:
    play.node.taking_over = True
    assert play.becomes("candidate", 4, 0) == [
        "INFO: campaigns in term 4: the leader has asked it to (no leader was known before)"
    ]


@pytest.mark.parametrize(
    ("term", "is_voter", "why"),
    [
        (3, True, "for an election timeout it has not heard from a quorum"),
        (3, False, "it is no longer a voter"),
        (4, True, "an election has begun in term 4"),
    ],
)
def test_why_a_leader_steps_down(play: Play, term: int, is_voter: bool, why: str) -> None:
    play.becomes("leader", 3, 2)
    play.node.is_voter = is_voter
    assert play.becomes("follower", term, 0) == [f"INFO: no longer leads since term 3: {why}"]


def test_members_that_are_lost_and_come_back(play: Play) -> None:
    play.silent = {1: 0.1, 3: 1.9}
    assert play.look() == []
    play.silent = {1: 0.1, 3: 2.5}
    assert play.look() == ["WARNING: m3 is lost: nothing was heard from it for 2.5 s"]
    play.silent = {1: 0.1, 3: 9.0}
    assert play.look() == []
    play.silent = {1: 0.1, 3: 0.0}
    assert play.look() == ["INFO: m3 is back after 9.0 s"]


def test_alarms_compaction_configuration_and_service(play: Play) -> None:
    play.replica.state.alarms = {(3, AlarmKind.NOSPACE): "full"}
    assert play.look() == ["WARNING: alarm NOSPACE of m3 is on: full"]
    play.replica.state.alarms = {}
    play.replica.state.compact_revision = 70
    play.node.configuration = Configuration((1, 2), learners=(4,))
    assert play.look() == [
        "INFO: alarm NOSPACE of m3 is off",
        "INFO: history is compacted up to revision 70",
        "INFO: the configuration is now voters m1 m2, learners m4",
    ]
    play.replica.why_not_serving = "its state is lost"
    assert play.look() == ["WARNING: serves no client: its state is lost"]
    play.replica.why_not_serving = ""
    assert play.look() == ["INFO: serves clients again: its state is rebuilt"]
    assert play.look() == []


def test_followers_that_are_sent_a_snapshot(play: Play) -> None:
    follower = SimpleNamespace(state=ProgressState.SNAPSHOT, match_index=0)
    play.node.progress = {3: follower}
    assert play.look() == ["INFO: m3 needs entries that the log no longer holds, and is sent a snapshot"]
    follower.state, follower.match_index = ProgressState.REPLICATE, 40
    assert play.look() == ["INFO: m3 needs no snapshot any more: its log reaches 40"]


def test_a_configuration_in_between() -> None:
    assert describe_configuration(Configuration((1, 4), (1, 3))) == "voters m1 m4, outgoing voters m1 m3"


def test_what_was_slow_and_what_caused_it(play: Play) -> None:
    put = ClientWrite(1, Put(b"k", b"v"))
    datas = [encode(ClientWrites(1, 1, (put, put))), encode(CompactHistory(7)), b"", b"noise"]
    entries = [Entry(5 + at, 1, EntryKind.NORMAL, data) for at, data in enumerate(datas)]
    entries.append(Entry(9, 1, EntryKind.CONFIGURATION, b"x"))
    size = sum(len(entry.data) for entry in entries)
    ready: Any = SimpleNamespace(entries=entries, must_sync=True)
    times = TurnTimes()
    times.apply = 0.2
    play.log.slow_append(0.15, ready)
    play.log.slow_sync(0.25, 70)
    play.log.slow_apply(0.35, entries)
    play.log.slow_turn(0.45, times, ["message"], [1, 2])
    assert play.lines() == [
        f"INFO: slow disk: 5 log entries ({size} bytes) with fsync took 0.150 s",
        "INFO: slow disk: flush of the state took 0.250 s, before trimming the log up to 70",
        f"INFO: slow apply: 5 entries up to index 9 took 0.350 s ({size} bytes, the largest entry "
        f"{max(map(len, datas))}): 2 Put, 1 CompactHistory, 1 no-op, 1 unknown command, 1 configuration",
        "INFO: slow turn: 0.450 s, of which append 0.000, apply 0.200, housekeeping 0.000; it had taken 2 int, 1 str",
    ]


@pytest.mark.parametrize(
    ("part", "method", "line"),
    [
        ("log", "append", "slow disk: "),
        ("state", "apply_some", "slow apply: "),
    ],
)
def test_a_real_member_logs_its_election_and_what_was_slow(
    caplog: pytest.LogCaptureFixture, part: str, method: str, line: str
) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        assert any("won the election and leads in term" in line for line in caplog.messages)
        owner = getattr(member.loop.replica.folder, part)
        original = getattr(owner, method)

        def slow(*arguments: Any, **options: Any) -> Any:
            time.sleep(1.5 * SLOW_S)
            return original(*arguments, **options)

        setattr(owner, method, slow)
        kv.put("a", "2")
        member.loop.stop("enough")  # the turn is over
        said = [each for each in caplog.messages if line in each]
        slow_turn = [line for line in caplog.messages if "slow turn" in line]
        assert said
        assert re.search(r"took \d+\.\d", said[0])
        assert slow_turn


def test_a_real_member_logs_a_slow_sync_of_its_state(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        replica = member.loop.replica
        monkeypatch.setattr(replica._trimmer, "_last_index_to_trim", lambda: replica.state.applied_index)
        monkeypatch.setattr(replica.state, "flush", lambda: time.sleep(1.5 * SLOW_S))
        until(lambda: any(re.search(r"flush of the state took \d+\.\d", line) for line in list(caplog.messages)))


def test_a_command_with_a_bug_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    original = sessions.Executor.run

    def run(self: Any, operation: Any, room: int, fresh: int) -> Any:
        if isinstance(operation, Put) and operation.key.endswith(b"boom"):
            raise LookupError("of our own")
        return original(self, operation, room, fresh)

    monkeypatch.setattr(sessions.Executor, "run", run)
    monkeypatch.setattr(sessions.Executor, "run_plain", lambda self, operation, room: None)
    with one_member() as member, member.client() as kv:
        with pytest.raises(InvalidArgument):
            kv.put("boom", "1")
        kv.put("a", "1")
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 2, "once beside others, once alone"
    assert f"cluster {member.name}, m1: a bug: the command at index" in records[0].getMessage()
    assert records[0].exc_info
    assert isinstance(records[0].exc_info[1], LookupError)
