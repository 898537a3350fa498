"""Processes killed and paused in the middle of something: what they promised holds, and what they hold is freed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

import raykeeper
from chaos.journal import OK, Journal, read_journal
from lab.ray.crowd import Crowd, connect
from lab.ray.direct import keep, open_session, replies, write
from lab.ray.tools import Made, leader, serving, wait_until
from raykeeper.errors import KeeperError, LockLost
from raykeeper.schema.frames import Kept, LeasesKept, Refused, Written

pytestmark = pytest.mark.survival
for module in (__name__, "chaos.journal"):  # processes of the crowd know nothing of the tests
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])


def write_pairs(cluster: str, journal: str, number: int) -> None:
    """Write the same value to two keys in one transaction, forever, and note what was acknowledged."""
    kv, notes = connect(cluster), Journal(journal)
    with kv.lock("pairs", ttl=2):
        for n in range(10**9):
            value = f"{number}.{n}"
            entry = notes.begin(str(number), "pair", value=value)
            kv.txn(success=[raykeeper.Op.put(f"{side}/{number}", value) for side in "ab"])
            notes.end(entry, OK)


@pytest.mark.core
def test_clients_killed_in_the_middle_leave_whole_writes_and_no_locks(
    clusters: Made, crowd: Crowd, tmp_path: Path
) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    for number in range(5):
        (person,) = crowd.take(1)
        path = tmp_path / f"{number}.jsonl"
        person.start(write_pairs, cluster.name, str(path), number)
        wait_until(lambda path=path: path.exists() and len(path.read_bytes().splitlines()) > 20, 60)  # type: ignore[misc]
        person.kill()
        notes = read_journal(path)
        acknowledged = [note.arguments["value"] for note in notes if note.outcome == OK]
        a, b = (kv.get(f"{side}/{number}") for side in "ab")
        assert a.raw == b.raw, "half a transaction"
        assert a.mod_revision == b.mod_revision
        last = int(acknowledged[-1].partition(".")[2])
        assert a.text in (f"{number}.{last}", f"{number}.{last + 1}"), "acknowledged and lost"
        assert a.version == int(a.text.partition(".")[2]) + 1, "done twice"
    with kv.lock("pairs", ttl=5) as lock:  # and the last one's lock is free in time
        assert lock.token


@pytest.mark.core
def test_a_paused_leader_acknowledges_nothing_that_it_should_not(clusters: Made, stopped: list[int]) -> None:
    """It wakes up with keep-alives and writes before it, and a lease by its own account alive."""
    cluster = clusters.launch()
    kv = cluster.client()
    for n in range(3):
        old = leader(cluster)
        session = open_session(old, cluster.id)
        lease = kv.lease(2, keep_alive=False)
        kv.put(f"leased/{n}", "1", lease=lease)
        os.kill(old.pid, signal.SIGSTOP)
        stopped.append(old.pid)
        keeping = [keep(old, cluster.id, lease.id, 20.0) for _ in range(10)]
        writing = [write(old, cluster.id, session, k, b"w/%d/%d" % (n, k), b"1", 20.0) for k in range(1, 11)]
        wait_until(lambda n=n: kv.get(f"leased/{n}", timeout=60) is None, 60, "the lease has ended")  # type: ignore[misc]
        os.kill(old.pid, signal.SIGCONT)
        keeping += [keep(old, cluster.id, lease.id, 5.0) for _ in range(10)]
        for answer in replies(keeping):
            assert isinstance(answer, Refused | LeasesKept), answer
            assert not (isinstance(answer, LeasesKept) and Kept.ALIVE in answer.kept), "kept alive after its end"
        wait_until(lambda: serving(cluster), 60)
        for k, answer in enumerate(replies(writing), 1):
            if isinstance(answer, Written) and type(answer.answers[0]).__name__ == "PutAnswer":
                assert kv.get(f"w/{n}/{k}") is not None, "acknowledged and lost"


def hold(cluster: str, journal: str) -> str:
    """Take a lock and write under it forever; what ended that, and whether the loss was known then."""
    kv, notes = connect(cluster), Journal(journal)
    lock = kv.lock("shared", ttl=2)
    lock.acquire()
    token = lock.token
    guarded = lock.guard()
    while True:
        entry = notes.begin("holder", "write", token=token)
        try:
            guarded.put("out", str(token), timeout=20)
        except LockLost:
            lost = lock.lost.wait(10)
            return f"LockLost, lost is {'set' if lost else 'not set'}"
        except KeeperError as error:
            return repr(error)
        notes.end(entry, OK)
        threading.Event().wait(0.01)


@pytest.mark.core
def test_a_paused_client_loses_its_lock_cleanly(
    clusters: Made, crowd: Crowd, tmp_path: Path, stopped: list[int]
) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    (person,) = crowd.take(1)
    path = tmp_path / "holder.jsonl"
    result = person.start(hold, cluster.name, str(path))
    wait_until(lambda: path.exists() and len(path.read_bytes().splitlines()) > 4, 60)
    person.stop()
    stopped.append(person.pid)
    with kv.lock("shared", ttl=5) as mine:
        mine.guard().put("out", str(mine.token))
        person.go_on()
        assert ray.get(result, timeout=60) == "LockLost, lost is set"
        there = kv.get("out")
        assert int(there.text) == mine.token, "an overtaken holder has written"
        assert mine.held
    tokens = {note.arguments["token"] for note in read_journal(path)}
    assert max(tokens) < int(there.text), "tokens grow"


def test_a_pause_of_everybody_breaks_nothing(clusters: Made, stopped: list[int]) -> None:
    """All members stop, and go on: leases were not counted down by a clock that ran while nobody could renew them."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("a", "1")
    pids = [member.pid for member in cluster.members()]
    stopped += pids
    for _ in range(2):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(KeeperError):
            kv.put("a", "2", timeout=2)
        assert time.monotonic() - began < 10
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        kv.put("a", "3", timeout=60)
        assert kv.get("a").text == "3"
    wait_until(lambda: serving(cluster), 60)
