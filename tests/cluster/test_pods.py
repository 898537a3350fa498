"""What becomes of a cluster on pods: they come back under other addresses, one at a time and all at once, and so does
the head, with GCS fault tolerance and without it. What ``docs/kubernetes.md`` says is what happens here.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.patience import PATIENCE
from lab.ray.pods import Pods, why_no_pods
from lab.ray.tools import wait_until

pytestmark = pytest.mark.survival

GROUPS = ("a", "b", "c")

WRITER = """
import os, sys, time
import raykeeper

folder = sys.argv[1]
kv = raykeeper.connect("default", timeout=60)
with open(f"{folder}/written", "w", buffering=1) as written:
    number = 0
    while not os.path.exists(f"{folder}/stop"):
        number += 1
        try:
            kv.put(f"written/{number:08}", str(number), timeout=300)
        except raykeeper.KeeperError as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            continue
        print(number, time.monotonic(), file=written)
        time.sleep(0.005)
"""
LOOK = """
import json, raykeeper
kv = raykeeper.connect("default", timeout=60)
numbers = [int(item.text) for item in kv.range(prefix="written/")]
cluster = raykeeper.attach("default")
members = {m.name: [m.pid, m.role, m.node_id] for m in cluster.members()}
print("LOOK" + json.dumps([numbers, members, list(cluster.status().alarms)]))
"""


@pytest.fixture(autouse=True)
def _possible() -> None:
    if reason := why_no_pods():
        pytest.skip(reason)


class Writer:
    """A process of a pod that writes one key after the other, and notes those that were acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def acknowledged(self) -> list[tuple[int, float]]:
        """Numbers, and when they were acknowledged."""
        path = self._folder / "written"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines if line.endswith("\n")]

    def wait(self, more: int = 20) -> None:
        """Until so many writes more were acknowledged."""
        known = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= known + more, 5 * PATIENCE, "writes are acknowledged")

    def longest(self, since: float) -> float:
        """The longest time without an acknowledgement since then, in seconds."""
        times = [since, *[at for _, at in self.acknowledged if at >= since]]
        return max(after - before for before, after in itertools.pairwise(times))

    def stop(self) -> None:
        (self._folder / "stop").write_text("")


@contextmanager
def writing(pods: Pods, pod: str) -> Iterator[Writer]:
    folder = pods.folder / f"writer-{len(list(pods.folder.glob('writer-*')))}"
    folder.mkdir()
    with pods.running(pod, sys.executable, "-c", WRITER, str(folder)) as process:
        writer = Writer(folder)
        writer.wait()
        yield writer
        writer.stop()
        assert process.wait(5 * PATIENCE) == 0


def started(pods: Pods) -> None:
    """All pods, and a cluster on those of the groups."""
    pods.start_head()
    for group in GROUPS:
        pods.start(group)
    pods.start("work", cpus=1)
    wait_until(lambda: pods.nodes() == 5, 5 * PATIENCE, lambda: f"five nodes\n{pods.logs()}")
    made = pods.up("--bootstrap", "auto")
    assert made.returncode == 0, made.stderr
    pods.wait_ready(*GROUPS)


def opened_again(pods: Pods, whole: bool) -> None:
    """What the head's hook does: try until it is done. Before all members are there, ``up`` fails, and shows a leader
    if there is one; ``whole`` says what to wait for."""
    tries: list[subprocess.CompletedProcess[str]] = []

    def up() -> bool:
        tries.append(pods.up())
        return tries[-1].returncode == 0 if whole else " leader for " in tries[-1].stdout

    wait_until(up, 5 * PATIENCE, lambda: f"{tries[-1].stdout}\n{tries[-1].stderr}\n{pods.logs()}")


def look(pods: Pods, pod: str) -> tuple[set[int], dict[str, list[str]], list[str]]:
    """The numbers that are there, the members with process, role and node, and the alarms."""
    said = pods.execute(pod, sys.executable, "-c", LOOK).stdout
    numbers, members, alarms = json.loads(said.partition("LOOK")[2])
    return set(numbers), members, alarms


def nothing_is_lost(pods: Pods, pod: str, *writers: Writer) -> dict[str, list[str]]:
    acknowledged = {number for writer in writers for number, _ in writer.acknowledged}  # first: it may go on
    numbers, members, _ = look(pods, pod)
    missing = acknowledged - numbers
    assert not missing, f"acknowledged, and gone: {sorted(missing)[:10]}"
    assert sorted(members) == ["m1", "m2", "m3"], members
    return members


def test_a_rolling_update_one_pod_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with Pods() as pods:
        started(pods)
        addresses = {group: pods.pods[group].address for group in GROUPS}
        with writing(pods, "work") as writer:
            for group in GROUPS:
                began = time.monotonic()
                pods.delete(group)
                pods.start(group)
                pods.wait_ready(group)
                writer.wait()
                with capsys.disabled():
                    took = time.monotonic() - began
                    print(
                        f"\npod {group}: ready after {took:.1f} s, writes stood still for {writer.longest(began):.2f} s"
                    )
            assert all(pods.pods[group].address != addresses[group] for group in GROUPS)
        nothing_is_lost(pods, "work", writer)


def test_all_pods_with_members_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody runs anything, and nobody has to."""
    with Pods() as pods:
        started(pods)
        with writing(pods, "work") as writer:
            began = time.monotonic()
            for group in GROUPS:
                pods.kill(group)
            for group in reversed(GROUPS):
                pods.start(group)
            writer.wait()
            pods.wait_ready(*GROUPS)
            with capsys.disabled():
                print(f"\nall pods: writes stood still for {writer.longest(began):.1f} s")
        nothing_is_lost(pods, "work", writer)


def test_the_head_is_lost_without_redis_and_all_pods_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """KubeRay starts all of them again; the head's hook opens the data, with the first majority of volumes."""
    with Pods() as pods:
        started(pods)
        with writing(pods, "work") as writer:
            writer.wait()
        began = time.monotonic()
        for name in ("head", *GROUPS, "work"):
            pods.kill(name)
        pods.start_head()
        wait_until(lambda: pods.nodes() == 1, 5 * PATIENCE, lambda: f"a head\n{pods.logs()}")
        missing = pods.up()
        assert missing.returncode == 1
        assert "Traceback" not in missing.stderr
        for group in ("c", "a"):
            pods.start(group)
        opened_again(pods, whole=False)
        pods.raykeeper("a", "put", "written again", "1")
        with capsys.disabled():
            print(
                f"\nwritten again {time.monotonic() - began:.1f} s after the head was lost, with two of three volumes"
            )
        pods.start("b")
        opened_again(pods, whole=True)
        pods.wait_ready(*GROUPS)
        nothing_is_lost(pods, "head", writer)


def test_the_head_is_lost_with_redis(capsys: pytest.CaptureFixture[str]) -> None:
    """Members, proxies and clients go on; a pod that is replaced after that gets its member as before."""
    with Pods(redis=True) as pods:
        started(pods)
        _, before, _ = look(pods, "work")
        with writing(pods, "work") as writer:
            began = time.monotonic()
            pods.kill("head")
            writer.wait(100)
            pods.start_head()
            wait_until(lambda: pods.nodes() == 5, 5 * PATIENCE, lambda: f"the same nodes\n{pods.logs()}")
            writer.wait()
            with capsys.disabled():
                print(f"\nhead lost with Redis: writes stood still for {writer.longest(began):.2f} s")
            after = nothing_is_lost(pods, "work", writer)
            assert {name: pid for name, (pid, *_) in after.items()} == {name: pid for name, (pid, *_) in before.items()}
            opened_again(pods, whole=True)  # by the hook of the new head's pod
            pods.delete("b")
            pods.start("b")
            pods.wait_ready(*GROUPS)
        nothing_is_lost(pods, "work", writer)
