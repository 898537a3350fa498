"""The judge of chaos campaigns: passes what a correct store may show, and finds each kind of broken promise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos.journal import FAIL, OK, UNKNOWN, Journal, Record, gather, read_history
from chaos.verdict import Truth, judge
from simulation.checker import Violation


class Story:
    """A small campaign that could have happened."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.truth = Truth()
        self.left: list[str] = []
        self.total = 2
        self._now = 0

    def add(
        self,
        operation: str,
        result: dict[str, Any] | None = None,
        outcome: str = OK,
        process: str = "w1.0",
        **arguments: Any,
    ) -> Record:
        self._now += 10
        end = None if outcome == UNKNOWN else self._now + 5
        self.records.append(Record(process, operation, arguments, result or {}, self._now, end, outcome))
        return self.records[-1]

    def change(self, revision: int, key: str, value: str | None) -> None:
        self.truth.changes.append((revision, key, value))
        self.truth.upto = revision

    def judge(self) -> dict[str, int]:
        return judge(self.records, self.truth, self.left, self.total)


def item(key: str, value: str, revision: int) -> dict[str, Any]:
    return {"key": key, "value": value, "mod_revision": revision, "version": 1, "create_revision": revision}


def told() -> Story:
    s = Story()
    s.add("put", {"revision": 2}, key="r/0/0", value="w1:1")
    s.add("get", {"items": [item("r/0/0", "w1:1", 2)], "revision": 2}, key="r/0/0")
    s.add("begin_watch", {"revision": 2}, prefix="r/0/", start=0)
    s.add("put", outcome=UNKNOWN, key="r/0/0", value="w1:2")
    s.add("swap", {"revision": 4, "prev": "w1:2"}, key="r/0/0", value="w1:3")
    s.add(
        "cas",
        {"revision": 4, "succeeded": False, "items": [item("r/0/0", "w1:3", 4)]},
        key="r/0/0",
        old="x",
        value="w1:4",
    )
    s.add("delete", {"revision": 5, "deleted": 1}, key="r/0/0")
    s.add("put", {"error": "refused"}, outcome=FAIL, key="r/0/0", value="w1:5")
    s.add("put_pair", {"revision": 6}, keys=["p/0/a", "p/0/b"], value="w1:6")
    s.add("get_pair", {"items": [item("p/0/a", "w1:6", 6), item("p/0/b", "w1:6", 6)], "revision": 6}, prefix="p/0/")
    s.add("add", {"before": 0, "revision": 7}, key="c/0", value="w1:7")
    s.add("add", {"before": 1, "revision": 8}, key="c/0", value="w1:8")
    s.add("acquire", {"token": 100}, name="a", process="w1.1")
    s.add("held", name="a", token=100, process="w1.1")
    s.add("guarded_put", {"revision": 9}, key="g/a", value="100 w1.1 0", name="a", token=100, process="w1.1")
    s.add("acquire", {"token": 200}, name="a", process="w2.1")
    s.add("held", name="a", token=200, process="w2.1")
    s.add("guarded_put", {"revision": 10}, key="g/a", value="200 w2.1 0", name="a", token=200, process="w2.1")
    s.add("past_range", {"items": [item("r/0/0", "w1:1", 2)], "revision": 2}, prefix="r/0/", revision=2)
    s.add("pages", {"items": [item("p/0/a", "w1:6", 6), item("p/0/b", "w1:6", 6)], "revision": 10}, prefix="p/")
    s.add("stale_get", {"items": []}, key="r/0/0", at_least=4)
    s.add("watch", {"upto": 10, "events": [[3, "r/0/0", "w1:2"], [4, "r/0/0", "w1:3"], [5, "r/0/0", None]],
                    "progress": [[2, 0, None], [3, 1, None], [3, 2, None], [10, 3, None],
                                 [3, 1, 2], [4, 2, 4], [10, 3, 9]]},
          prefix="r/0/", position=2)  # fmt: skip
    s.add("watch", {"upto": 3, "events": [[3, "r/0/0", "w1:2", [2, "w1:1"]]]}, prefix="r/0/", position=2)
    s.add("list_txn", {"seen": {"l/0": []}, "revision": 1}, outcome=UNKNOWN, reads=["l/0"], appends={"l/0": "a"})
    s.add("list_txn", {"seen": {"l/0": ["a"]}, "revision": 10}, reads=["l/0"], appends={"l/0": "b"})
    s.add("lease_end", {"lasted": 2.0}, key="t/1", ttl=2.0)
    s.add("add_user", {}, user="ann")
    s.add("user_put", {"denied": True}, user="ann")
    for n in range(3):
        s.add("enqueue", name="work", item=f"i{n}", outcome=OK if n else UNKNOWN)
    s.add("claim", {"item": "i1"}, name="work")
    s.add("ack", name="work", item="i1")
    s.add("sum", {"value": 1}, name="sum")
    s.add("sum", {"value": 2}, name="sum")
    s.left = ["i2"]
    for revision, key, value in (
        (2, "r/0/0", "w1:1"), (3, "r/0/0", "w1:2"), (4, "r/0/0", "w1:3"), (5, "r/0/0", None), (6, "p/0/a", "w1:6"),
        (6, "p/0/b", "w1:6"), (7, "c/0", "w1:7"), (8, "c/0", "w1:8"), (9, "g/a", "100 w1.1 0"),
        (10, "g/a", "200 w2.1 0"), (10, "l/0", "a,b"),
    ):  # fmt: skip
        s.change(revision, key, value)
    return s


def find(story: Story, operation: str, number: int = 0) -> Record:
    return [record for record in story.records if record.operation == operation][number]


def result(story: Story, operation: str, number: int = 0) -> dict[str, Any]:
    found = find(story, operation, number).result
    assert found is not None
    return found


def test_what_a_correct_store_shows_passes() -> None:
    checked = told().judge()
    assert all(checked.values()), checked


def _change(n: int, value: str) -> Callable[[Story], None]:
    def break_it(s: Story) -> None:
        revision, key, _ = s.truth.changes[n]
        s.truth.changes[n] = (revision, key, value)

    return break_it


BROKEN: dict[str, Callable[[Story], Any]] = {
    "an acknowledged write is lost": lambda s: s.truth.changes.pop(0),
    "an acknowledged deletion is lost": lambda s: s.truth.changes.pop(3),
    "a write is there twice": lambda s: s.change(11, "r/0/0", "w1:3"),
    "a write of nobody": lambda s: s.change(11, "r/0/0", "ghost"),
    "a deletion of nobody": lambda s: s.change(11, "c/0", None),
    "a write that had failed": lambda s: s.change(11, "r/0/0", "w1:5"),
    "a comparison that failed": lambda s: s.change(11, "r/0/0", "w1:4"),
    "another value than was written": _change(0, "w1:9"),
    "the history is out of order": lambda s: s.truth.changes.reverse(),
    "a stale read": lambda s: s.add("get", {"items": [item("r/0/0", "w1:3", 4)], "revision": 4}, key="r/0/0"),
    "a read of what was overwritten": lambda s: result(s, "get").update(items=[]),
    "a swap that saw something else": lambda s: result(s, "swap").update(prev="w1:1"),
    "half a transaction": lambda s: result(s, "get_pair")["items"].pop(),
    "an increment counted twice": lambda s: result(s, "add", 1).update(before=2),
    "a read of the past that is wrong": lambda s: result(s, "past_range").update(items=[]),
    "a key that is missing long after": lambda s: result(s, "pages")["items"].pop(),
    "pages of two revisions": lambda s: result(s, "pages")["items"][1].update(mod_revision=7),
    "a stale read behind its bound": lambda s: s.add(
        "stale_get", {"items": [item("r/0/0", "w1:1", 2)]}, key="r/0/0", at_least=4
    ),
    "an event is missing": lambda s: result(s, "watch")["events"].pop(1),
    "an event comes twice": lambda s: result(s, "watch")["events"].append([5, "r/0/0", None]),
    "events change places": lambda s: result(s, "watch")["events"].reverse(),
    "progress ahead of an event": lambda s: result(s, "watch")["progress"].insert(2, [4, 1, None]),
    "progress ahead of an event that never comes": lambda s: result(s, "watch", 1).update(progress=[[4, 1, None]]),
    "progress that is taken back": lambda s: result(s, "watch")["progress"].append([9, 3, 9]),
    "progress that is older than what was known": lambda s: result(s, "watch")["progress"].append([10, 3, 11]),
    "a watch begins too late": lambda s: result(s, "begin_watch").update(revision=4),
    "a guarded write of an overtaken holder": lambda s: s.change(11, "g/a", "100 w1.1 0"),
    "two hold a lock": lambda s: s.add("held", name="a", token=100, process="w1.1"),
    "one token for two": lambda s: result(s, "acquire", 1).update(token=100),
    "an item is lost": lambda s: s.left.clear(),
    "an item is acknowledged twice": lambda s: s.add("ack", name="work", item="i1"),
    "an item is acknowledged and still there": lambda s: s.left.append("i1"),
    "an item of nobody": lambda s: s.left.append("i9"),
    "the counter lost one": lambda s: setattr(s, "total", 1),
    "the counter has one too many": lambda s: setattr(s, "total", 3),
    "two additions are the same": lambda s: result(s, "sum").update(value=2),
    "an acknowledged append is lost": lambda s: s.truth.changes.pop(),
    "an append changed what was there": _change(-1, "b"),
    "an error that no fault explains": lambda s: find(s, "put", 2).result.update(error="x", unexpected=True),  # type: ignore[union-attr]
}


def test_a_history_of_processes_that_go_on_ends_at_one_moment_for_all(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "w1.jsonl"), Journal(tmp_path / "w2.jsonl")
    early, under_way = one.begin("w1.0", "put", key="a"), one.begin("w1.1", "put", key="b")
    one.end(early, OK, revision=2)
    now = time.monotonic_ns()
    while time.monotonic_ns() == now:
        pass
    one.end(under_way, OK, revision=3)
    other.end(other.begin("w2.0", "get", key="b"), OK, revision=3)
    one.close()
    other.close()
    records = gather([tmp_path / "w1.jsonl", tmp_path / "w2.jsonl"], tmp_path / "history.jsonl", now)
    assert [(each.process, each.outcome, each.end_ns is None) for each in records] == [
        ("w1.0", OK, False),
        ("w1.1", UNKNOWN, True),
    ]


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_found(what: str) -> None:
    story = told()
    BROKEN[what](story)
    with pytest.raises(Violation):
        story.judge()


def test_a_history_survives_its_file_and_a_killed_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "w1.jsonl")
    done = journal.begin("w1.0", "put", key="a", value="1")
    open_ = journal.begin("w1.1", "put", key="a", value="2")
    journal.end(done, OK, revision=2)
    journal.close()
    with (tmp_path / "w1.jsonl").open("a") as file:
        file.write('{"number": 3, "process": "w1')  # killed in the middle of a line
    records = gather([tmp_path / "w1.jsonl"], tmp_path / "history.jsonl")
    assert [(r.process, r.outcome, r.result) for r in records] == [
        ("w1.0", OK, {"revision": 2}),
        ("w1.1", UNKNOWN, None),
    ]
    assert records[1].end_ns is None
    assert open_ == 2
    assert list(read_history(tmp_path / "history.jsonl")) == records
    fields = {"process", "operation", "arguments", "result", "start_ns", "end_ns", "outcome"}
    assert all(set(json.loads(line)) == fields for line in (tmp_path / "history.jsonl").read_text().splitlines())
