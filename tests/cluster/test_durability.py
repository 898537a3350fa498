"""What a loss of power leaves: all members at once, their files cut back to what they had synced.

SIGKILL alone proves nothing about fsync, because the page cache survives it. Here the members' processes are frozen and
killed, and every file loses what no sync had vouched for; then the cluster must come back whole, with every write that
was acknowledged. The tests can fail: with any one of the store's syncs taken out, they do (``test_without_...``).
"""

from __future__ import annotations

import ast
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.power_loss import cut_back
from lab.ray.tools import Made, is_alive, leader, not_serving, remove, serving, wait_until
from raykeeper.actors.cluster import launch, node_storage
from raykeeper.actors.discovery import actors_gone, member_actors

pytestmark = pytest.mark.survival

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHORT_LOG = {"log_cut_entries": 60, "log_keep_entries": 20}
"""Limits with which the log is cut again and again within one test."""


class Power:
    """The plug of all machines."""

    def __init__(self, made: Made, journals: Path, fault: Path) -> None:
        self._made = made
        self._journals = journals
        self._fault = fault
        self.zero_fill = False

    def pull(self) -> int:
        """End all members at the same moment, and leave of their files what was synced. The number of bytes lost."""
        actors = member_actors(self._made.name)
        pids = [status.pid for status in ray.get([actor.status.remote() for actor in actors.values()], timeout=30)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for actor in actors.values():
            ray.kill(actor, no_restart=True)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
        wait_until(lambda: actors_gone(f"raykeeper/{self._made.name}/m{member}" for member in actors))
        return self.cut()

    def cut(self) -> int:
        """Take from the files what no sync has vouched for."""
        # Processes of one member follow each other, so the later journal is the one written to last.
        journals = sorted(self._journals.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        lost = cut_back(str(self._made.data_dir), [str(path) for path in journals], zero_fill=self.zero_fill)
        return sum(old - new for old, new in lost.values())

    def fault(self, line: str) -> None:
        """From now on, and in all processes: see ``lab/ray/patches``."""
        self._fault.write_text(line + "\n")


@pytest.fixture
def power(clusters: Made, local_ray: Path, scratch: Path) -> Iterator[Power]:
    power = Power(clusters, local_ray, scratch / "fault")
    yield power
    (scratch / "fault").unlink(missing_ok=True)


class Writers:
    """Threads that write without a pause; what was acknowledged is remembered."""

    def __init__(self, kv: Any, prefix: str) -> None:
        self.kv = kv
        self.acknowledged: dict[str, str] = {}
        self._stopping = False
        self._threads = ThreadPoolExecutor(8)
        self._runs = [self._threads.submit(self._run, f"{prefix}/{n}") for n in range(8)]

    def _run(self, prefix: str) -> None:
        n = 0
        while not self._stopping:
            key, value = f"{prefix}/{n}", f"{n}" * 50
            try:
                self.kv.put(key, value, timeout=2)
            except raykeeper.KeeperError:
                continue
            self.acknowledged[key] = value
            n += 1

    def wait(self, more: int) -> None:
        """Wait until this many more writes are acknowledged."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, 120, "writes acknowledged")

    def stop(self) -> dict[str, str]:
        self._stopping = True
        for run in self._runs:
            run.result(timeout=60)
        self._threads.shutdown()
        return self.acknowledged


def check_whole(cluster: Any, acknowledged: dict[str, str]) -> None:
    """All members serve, and every acknowledged write is there."""

    def whole() -> bool:
        why = not_serving(cluster)
        assert not any("Damaged" in each for each in why.values()), why
        return serving(cluster)

    wait_until(whole, 90, "all members serve")
    found = {item.key.decode(): item.text for item in cluster.client().range(prefix="w/", timeout=30)}
    lost = {key for key, value in acknowledged.items() if found.get(key) != value}
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged writes are lost"


def lose_power_under_load(clusters: Made, power: Power, patience: float = 60.0) -> None:
    cluster = clusters.launch(limits=SHORT_LOG)
    # All three take part from the first write on: one that came later would have its state from an image, which is safe
    # by itself, and the others would be rebuilt from it whatever they had lost.
    wait_until(lambda: serving(cluster), what="all members serve")
    writers = Writers(cluster.client(), "w/1")
    writers.wait(300)
    trimmed = 3 * SHORT_LOG["log_cut_entries"]
    wait_until(lambda: min(member.applied_index for member in cluster.members()) > trimmed, what="trimmed logs")
    lost_bytes = power.pull()
    acknowledged = dict(writers.stop())
    again = clusters.launch(timeout=patience)
    assert again.id == cluster.id
    check_whole(again, acknowledged)
    # Once more, over what a first loss has left, and soon after the start.
    more = Writers(again.client(), "w/2")
    more.wait(100)
    lost_bytes += power.pull()
    acknowledged.update(more.stop())
    check_whole(clusters.launch(timeout=patience), acknowledged)
    assert lost_bytes, "nothing was cut off: the test has proved nothing"


@pytest.mark.parametrize(
    "zero_fill", [pytest.param(False, marks=pytest.mark.core, id="cut"), pytest.param(True, id="zero-filled")]
)
def test_power_lost_under_load(clusters: Made, power: Power, zero_fill: bool) -> None:
    power.zero_fill = zero_fill
    lose_power_under_load(clusters, power)


class Interrupted(BaseException):
    """Stands for the death of the launching process."""


def create_and_die(base: str, identity: Any) -> None:
    """Write a member's place, and end without closing the databases (closing syncs more than it must)."""

    def die(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    node_storage.DataDir.close = die  # type: ignore[method-assign]
    node_storage.create_member(base, identity)


def lose_power_after_bootstrap(clusters: Made, power: Power, patch: pytest.MonkeyPatch) -> None:
    """All is just written, and nobody has been started yet."""
    real = launch.run_on

    def run_on(nodes: Any, what: Any, arguments: Any, timeout: float) -> Any:
        if what is not node_storage.create_member:
            return real(nodes, what, arguments, timeout)
        for member, node in nodes.items():
            with pytest.raises(raykeeper.Unavailable, match="WorkerCrashed"):
                real({member: node}, create_and_die, {member: arguments[member]}, timeout)
        raise Interrupted

    with patch.context() as context:
        context.setattr(launch, "run_on", run_on)
        with pytest.raises(Interrupted):
            clusters.launch()
    power.cut()
    cluster = clusters.launch()
    check_whole(cluster, {})


@pytest.mark.parametrize(
    "zero_fill", [pytest.param(False, id="cut"), pytest.param(True, marks=pytest.mark.core, id="zero-filled")]
)
def test_power_lost_after_bootstrap(
    clusters: Made, power: Power, monkeypatch: pytest.MonkeyPatch, zero_fill: bool
) -> None:
    power.zero_fill = zero_fill
    lose_power_after_bootstrap(clusters, power, monkeypatch)


PATIENT = {"election_timeout": 20.0}
"""Nobody campaigns while a member starts again: a vote would sync what this is about."""


def lose_power_after_a_promise_from_the_page_cache(
    clusters: Made, power: Power, stopped: list[int], also: str = ""
) -> None:
    """A follower dies between writing an entry and syncing it, starts again, finds the entry, and says that it has it.

    With that word the leader commits. Then the power goes, and the leader's disk with it: of the two that are left,
    the follower alone has the entry, and must have it still. Nothing that it writes after its start is synced: that
    would make the entry durable, too.
    """
    cluster = clusters.launch(timings=PATIENT)
    kv = cluster.client()
    kv.put("w/before", "1")
    lead = leader(cluster)
    follower, other = (member for member in cluster.members() if member.id != lead.id)
    wait_until(lambda: len({member.applied_index for member in cluster.members()}) == 1)
    os.kill(other.pid, signal.SIGSTOP)
    stopped.append(other.pid)
    power.fault(f"die raft_log:append {follower.pid} w/promised\nskip raft_log:append\n{also}")
    kv.put("w/promised", "2", timeout=60)
    assert not is_alive(follower.pid), "the follower died on the way"
    assert leader(cluster).id == lead.id
    os.kill(other.pid, signal.SIGCONT)
    power.pull()
    remove(clusters.folder(lead.id))
    again = clusters.launch()
    promised = again.client().get("w/promised")
    assert promised is not None, "acknowledged and lost"
    assert promised.text == "2"


# --- these tests can fail --------------------------------------------------------------------------------------------

SYNCS = {"raft_log:append", "stored_state:flush", "raft_log:create", "raft_log:open"}
"""Where the store syncs a database or the log, and must."""
DATABASE_SYNCS = ("engine.flush", "store.sync", "self._store.sync")
TWICE = {
    # What a loss of power takes of a reset, the next start does again: the state that it follows is durable before.
    "raft_log:reset",
    # A state that is lost is made again from a log that is whole, or from an image, however often.
    "stored_state:create",
    "stored_state:reset_for_new_cluster",
}
"""Where it syncs what is safe already; it does not rely on that."""


@pytest.mark.core
def test_every_sync_of_a_database_is_among_these() -> None:
    store = Path(raykeeper.__file__).parent / "store"
    places = set()
    for path in store.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(call, ast.Call) and ast.unparse(call.func) in DATABASE_SYNCS for call in ast.walk(function)
            ):
                places.add(f"{path.stem}:{function.name}")
    assert places == SYNCS | TWICE


@pytest.mark.core
@pytest.mark.parametrize("place", ["raft_log:append", "stored_state:flush"])
def test_without_a_sync_under_load(clusters: Made, power: Power, place: str) -> None:
    power.fault(f"skip {place}")
    with pytest.raises((AssertionError, raykeeper.KeeperError)) as caught:
        # A launch finds that two members are damaged; it would wait for them to be mended.
        lose_power_under_load(clusters, power, patience=20.0)
    assert re.search("are lost|Damaged|are gone", str(caught.value)), caught.value


def test_without_a_sync_at_bootstrap(clusters: Made, power: Power, monkeypatch: pytest.MonkeyPatch) -> None:
    power.fault("skip raft_log:create")
    with pytest.raises((AssertionError, raykeeper.KeeperError), match="Damaged"):
        lose_power_after_bootstrap(clusters, power, monkeypatch)


@pytest.mark.core
def test_a_promise_from_the_page_cache_is_kept(clusters: Made, power: Power, stopped: list[int]) -> None:
    lose_power_after_a_promise_from_the_page_cache(clusters, power, stopped)


def test_without_a_sync_at_the_start(clusters: Made, power: Power, stopped: list[int]) -> None:
    with pytest.raises((AssertionError, raykeeper.KeeperError)):
        lose_power_after_a_promise_from_the_page_cache(clusters, power, stopped, also="skip raft_log:open")
