"""How a campaign ends: status and last line, what is kept of a bad end, the verdict on what there is, the ledger."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos import campaign, night
from chaos.campaign import SPEC, Campaign
from chaos.care import NEEDED, draw
from chaos.evidence import Diary, Evidence
from chaos.journal import OK, UNKNOWN, Record
from chaos.ledger import how_many, note_run, summary
from chaos.mixes import MIXES
from chaos.nemesis import FAULTS
from chaos.outcome import EXPIRED, Caused, Inconclusive, check_recoveries, check_that_it_counts, expired, table
from chaos.safety import safety
from chaos.slow_disks import flaky_reads
from chaos.verdict import Truth
from lab.patience import PATIENCE
from raykeeper.errors import Unavailable
from rooms import ROOT
from simulation.checker import Violation

PATCHES = ROOT / "tests" / "lab" / "ray" / "patches"


# --- the status and the last line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [
        (None, 0, "no promise was broken"),
        (Violation("lost\n  twice"), 1, "BROKEN: lost twice"),
        (AssertionError("not whole"), 1, "BROKEN: not whole"),
        (Unavailable("no leader"), 1, "BROKEN: "),
        (Inconclusive("only faults of kinds [1] bit"), 2, "INCONCLUSIVE, the faults did not bite: only"),
        (OSError("no room"), 3, "FAILED, the campaign itself: OSError('no room')"),
    ],
)
def test_the_status_and_the_last_line_say_how_it_ended(
    error: Exception | None,
    status: int,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(self: Campaign) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "data").mkdir()
        if error is not None:
            raise error

    monkeypatch.setattr(Campaign, "run", run)
    words = ["--seed", "7", "--mix", "long", "--minutes", "10", "--folder", str(tmp_path)]
    assert campaign.main(arguments=words) == status
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(last)
    assert ("again: make chaos MINUTES=10 SEED=7 MIX=long" in said) == bool(status)
    assert (tmp_path / "seed-7" / "data").exists() == bool(status), "what is broken is kept"
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["mix"], noted["seed"], noted["minutes"], noted["status"]) == ("long", 7, 10, status)


def caused(kind: int, **fields: Any) -> Caused:
    return Caused("fault", kind, "what", 0, 1, 1, **{"bit": True, "done": 5, **fields})


@pytest.mark.parametrize(
    ("entries", "must", "says"),
    [
        ([caused(1), caused(2), caused(3)], set(), ""),
        ([caused(1), caused(2), caused(3, bit=False)], set(), "only faults of kinds"),
        ([caused(1), caused(2), caused(3, done=0)], set(), "no operation succeeded"),
        ([caused(1), caused(2), caused(3)], {EXPIRED}, "it did not occur that a session expired"),
    ],
)
def test_a_run_counts_only_if_enough_happened(entries: list[Caused], must: set[str], says: str) -> None:
    if not says:
        check_that_it_counts(entries, [1, 2, 3, 4], must, {})
        return
    with pytest.raises(Inconclusive, match=says):
        check_that_it_counts(entries, [1, 2, 3, 4], must, {})


def test_sessions_that_expired_are_counted() -> None:
    gone = Record("w1.0", "put", result={"error": "SessionExpired('...')"})
    assert expired([gone, Record("w1.0", "put"), Record("w1.0", "get", result={"revision": 1})]) == 1
    assert expired([gone, Record("w1.0", "session", {"expired": 5}, {"session": 6})]) == 2


def test_it_heals_soon_mostly() -> None:
    def healed(*seconds: int) -> list[Caused]:
        begun = [100 * 10**9 * (n + 1) for n in range(len(seconds))]
        return [
            Caused("kill", 1, "", at, at + 10**9, at + (1 + each) * 10**9)
            for at, each in zip(begun, seconds, strict=True)
        ]

    check_recoveries(healed(1, 2, 89))
    check_recoveries(healed(1, 2, 200))
    check_recoveries(healed(*[3] * 18, 200, 200))
    two = healed(*[3] * 12, 100)
    check_recoveries([*two, Caused("other", 2, "", two[-1].start_ns, two[-1].end_ns, two[-1].whole_ns)])  # one round
    for slow in (healed(1, 200, 200), healed(*[3] * 26, 91, 200, 200)):
        with pytest.raises(Violation, match="slow to become whole"):
            check_recoveries(slow)


def test_the_table_says_how_long_it_took_to_become_whole() -> None:
    entries = [Caused("kill", 1, "", 0, 10**9, 3 * 10**9), Caused("kill", 1, "", 0, 10**9, 8 * 10**9)]
    entries.append(Caused("never", 2, "", 0, 10**9))
    heads, kill, never = table(entries, [], {}, {}).splitlines()[:3]
    assert heads.endswith("longest recovery s")
    assert (kill.split()[-1], never.split()[-1]) == ("7.0", "inf")


# --- mixes -----------------------------------------------------------------------------------------------------------


def test_the_short_mix_is_what_it_was() -> None:
    assert list(MIXES["short"].faults().items()) == list(FAULTS.items())
    one, other = random.Random(1), random.Random(1)
    assert MIXES["short"].hold(one) == other.choice((0.5, 1.5, 3.0, 5.0))


@pytest.mark.parametrize("name", MIXES)
def test_each_mix_names_faults_that_there_are(name: str) -> None:
    mix = MIXES[name]
    named = {fault.__name__ for fault in mix.faults()}
    assert {fault for fault, often in mix.often.items() if often} <= named
    assert not {fault for fault, often in mix.often.items() if not often} & named
    if mix.holds is not None:
        rng = random.Random(name)
        assert all(mix.holds[0] <= mix.hold(rng) <= mix.holds[1] for _ in range(100))


@pytest.mark.parametrize("name", MIXES)
def test_each_mix_has_its_cluster(name: str, tmp_path: Path) -> None:
    """What it says of timings is what its cluster gets; the rest is the campaign's."""
    spec = Campaign(1, 1, tmp_path, (), mix=MIXES[name])._spec()
    assert spec["timings"] == {**SPEC["timings"], **MIXES[name].timings}
    assert spec.get("lease_reads", False) is MIXES[name].lease_reads


def test_reads_of_two_members_never_fail_at_once(tmp_path: Path) -> None:
    """And a member that cannot read beside another fault is what is wanted."""
    campaign = Campaign(1, 1, tmp_path, (), mix=MIXES["disks"])
    drawn = [campaign._draw_some() for _ in range(3000)]
    assert not [faults for faults in drawn if faults.count(flaky_reads) > 1]
    assert [faults for faults in drawn if len(faults) > 1 and flaky_reads in faults]


def test_in_ten_minutes_an_operator_is_all_but_certain_to_upgrade_and_to_restore() -> None:
    """Though it comes to no more than twenty operations, and every other one fails."""
    names = ["upgrade", "restore", *map(str, range(7))]
    lacking = 0
    for seed in range(1000):
        rng, done = random.Random(seed), Counter[str]()
        for _ in range(20):
            name = draw(rng, names, done)
            done[name] += rng.random() < 0.5
        lacking += not all(done[name] for name in NEEDED)
    assert lacking < 50
    assert {draw(rng, names, Counter(NEEDED)) for _ in range(1000)} == set(names)


# --- what there is ---------------------------------------------------------------------------------------------------


def put(value: str, revision: int, begun: int, **more: Any) -> Record:
    fields: dict[str, Any] = {"result": {"revision": revision}, "end_ns": begun + 5, "outcome": OK, **more}
    return Record("w1.0", "put", {"key": "r/0/0", "value": value}, start_ns=begun, **fields)


def get(value: str, revision: int, begun: int) -> Record:
    item = {"key": "r/0/0", "value": value, "mod_revision": revision, "version": 1, "create_revision": 2}
    result = {"items": [item], "revision": revision}
    return Record("w2.0", "get", {"key": "r/0/0"}, result, begun, begun + 5, OK)


def watch(events: list[Any], upto: int, begun: int) -> Record:
    result = {"events": events, "upto": upto}
    return Record("w3.0", "watch", {"key": "r/0/0", "position": 1}, result, begun, begun + 5, OK)


def part() -> tuple[list[Record], Truth]:
    """Three writes, of which the store's own history is known up to the second."""
    records = [put("1", 2, 10), put("2", 3, 20), put("3", 4, 30), get("3", 4, 40)]
    records.append(watch([[2, "r/0/0", "1"], [3, "r/0/0", "2"], [4, "r/0/0", "3"]], 4, 50))
    records.append(Record("w1.0", "put", {"key": "r/0/0", "value": "4"}, None, 60, None, UNKNOWN))
    return records, Truth([(2, "r/0/0", "1"), (3, "r/0/0", "2")], 3)


def test_what_there_is_is_judged_though_the_end_is_missing() -> None:
    holds, lines = safety(*part())
    assert holds, lines
    assert "known up to revision 3" in lines[0]


def test_where_clocks_lie_what_rests_on_them_is_not_judged() -> None:
    records, truth = part()
    ended = {"missing": True, "lost": False}
    records.append(Record("w1.14", "lease_held", {"key": "t/w1.14:1", "ttl": 3.0}, ended, 70, 75, OK))
    assert not safety(records, truth)[0]
    assert safety(records, truth, clocks_lie=True)[0]


LIES: dict[str, Callable[[list[Record], Truth], Any]] = {
    "a write that the known part lacks": lambda records, truth: truth.changes.pop(0),
    "a read of the known part that is wrong": lambda records, truth: records.append(get("1", 3, 70)),
    "a stale read beyond it": lambda records, truth: records.append(get("2", 4, 70)),
    "an event of the known part is missing": lambda records, truth: records[4].result["events"].pop(0),  # type: ignore[index]
    "an error that no fault explains": lambda records, truth: records[5].__setattr__(
        "result", {"error": "x", "unexpected": True}
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_a_promise_that_is_broken_in_what_there_is_is_found(what: str) -> None:
    records, truth = part()
    LIES[what](records, truth)
    holds, lines = safety(records, truth)
    assert not holds, lines


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_stacks_of_processes_are_kept_and_those_that_cannot_be_had_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("ps") is None:
        pytest.skip("there is no ps: apt-get install procps")
    monkeypatch.setattr("chaos.evidence.STACKS_S", PATIENCE)
    where, into = tmp_path / "where", tmp_path / "run"
    where.mkdir()
    into.mkdir()
    code = "import sys\ndef waits_here():\n    print('here', flush=True)\n    sys.stdin.read()\nwaits_here()"
    environment = {**os.environ, "PYTHONPATH": str(PATCHES), "RAYKEEPER_TEST_STACKS": str(where)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        (where / "999999999").touch()
        evidence = Evidence(into)

        def broken() -> None:
            raise ValueError("a part that fails")

        missing = evidence.keep(
            Violation("lost"),
            [("first", broken), ("stacks", lambda: evidence.stacks(where)), ("processes", evidence.processes)],
        )
    finally:
        process.communicate()
    assert missing == ["first: ValueError('a part that fails')"]
    assert "waits_here" in (into / "stacks" / str(process.pid)).read_text()
    assert "test_stacks_of_processes" in (into / "stacks" / "campaign").read_text()
    assert str(process.pid) in (into / "processes.txt").read_text()
    said = (into / "evidence.txt").read_text()
    assert "lost" in said
    assert "not kept: first" in said


def test_logs_files_and_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.evidence.MOST", 10)
    logs, data, mounted, into = (tmp_path / name for name in ("logs", "data", "m1", "run"))
    for folder in (logs / "old", data / "m1", mounted, into):
        folder.mkdir(parents=True)
    (logs / "old" / "raylet.out").write_text("long ago, and now")
    (data / "m1" / "identity.json").write_text("{}")
    (mounted / "log").write_text("x")
    (mounted / "filler").write_text("x" * 100)
    evidence = Evidence(into)
    evidence.logs(logs)
    evidence.files(data, [mounted])

    def refuses() -> str:
        raise Unavailable("no leader")

    evidence.status([("members", lambda: ["m1 leads"]), ("events", refuses)])
    assert (into / "ray-logs" / "old" / "raylet.out").read_text() == "o, and now"[-10:]
    assert "m1/identity.json" in (into / "files.txt").read_text()
    assert [path.name for path in (into / "mounted" / "m1").iterdir()] == ["log"]
    said = (into / "status.txt").read_text()
    assert "m1 leads" in said
    assert "no leader" in said


def test_the_diary_is_written_as_it_happens(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary.jsonl")
    diary.note("kill_leader", "begun", what="SIGKILL of m1")
    (line,) = (tmp_path / "diary.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["fault"], noted["phase"], noted["what"]) == ("kill_leader", "begun", "SIGKILL of m1")
    diary.close()


# --- the ledger, and a night -----------------------------------------------------------------------------------------


def test_the_ledger_says_what_ran_for_how_long(tmp_path: Path) -> None:
    assert how_many(tmp_path) == 0
    note_run(tmp_path, "chaos", "long", 1, 10.0, 0, "no promise was broken")
    note_run(tmp_path, "chaos", "long", 2, 10.0, 1, "BROKEN")
    note_run(tmp_path, "chaos", "disks", 3, 5.0, 2, "INCONCLUSIVE")
    assert how_many(tmp_path) == 3
    rows = [line.split() for line in summary(tmp_path).splitlines()[1:]]
    assert rows == [["chaos", "disks", "1", "5", "0", "0", "1", "0"], ["chaos", "long", "2", "20", "1", "1", "0", "0"]]
    assert len(summary(tmp_path, since=2).splitlines()) == 2


@pytest.mark.parametrize(
    ("statuses", "ends"), [([0, 0], 0), ([0, 1], 1), ([3, 0], 3), ([2, 0], 2), ([2, 0, 0, 0, 0], 0), ([1, 3], 1)]
)
def test_a_night_goes_on_after_a_broken_promise_and_ends_with_the_worst(
    statuses: list[int], ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, now, mixes = list(statuses), [0.0], []

    def turn(words: list[str], **options: Any) -> Any:
        mix = words[words.index("--mix") + 1]
        mixes.append(mix)
        now[0] += 600.0
        note_run(tmp_path, "chaos", mix, 1, 10.0, left[0], "said")
        return subprocess.CompletedProcess(words, left.pop(0))

    monkeypatch.setattr(night.subprocess, "run", turn)
    monkeypatch.setattr(night.time, "monotonic", lambda: now[0])
    hours = len(statuses) / 6 + 0.01
    assert night.run(hours, tmp_path, 10.0, ["long", "disks"], random.Random(1)) == ends
    assert mixes == [["long", "disks"][n % 2] for n in range(len(statuses))]
