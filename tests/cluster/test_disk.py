"""Disks that fail, under real members: damage is found, never served, and healed where the promises are still there.

A member's process is frozen, its files are damaged, and it is killed; Ray starts the next one over what is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import ray

import raykeeper
from lab.ray.contents import content
from lab.ray.tools import Made, is_alive, leader, not_serving, remove, serving, wait_until
from lab.segment_files import last_segment, tear, written_ranges
from raykeeper.schema.frames import Read, Reads
from raykeeper.schema.key_spaces import USER_SPACE
from raykeeper.schema.operations import KeyRange, Range

pytestmark = pytest.mark.survival
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

encode = msgspec.msgpack.encode

SHORT_LOG = {"log_cut_entries": 40, "log_keep_entries": 10}
"""Limits with which a log soon lacks its beginning."""
SLOW = {
    **SHORT_LOG,
    "snapshot_chunk_bytes": 64 * 1024,
    "snapshot_bytes_per_second": 400_000,
    "max_append_messages_in_flight": 4,
}
"""And images take seconds. Few messages wait on the lane of a frozen member: many might reach as far as where the log
begins when it wakes up, and it would need no image."""


def random_text(n: int, size: int = 1000) -> str:
    """Text that no disk can compress."""
    return random.Random(n).randbytes(size // 2).hex()


def fill(kv: Any, count: int, prefix: str = "k", size: int = 1000) -> None:
    """Write this many keys, in log entries of their own."""
    for n in range(count):
        kv.put(f"{prefix}/{n:05}", random_text(n, size), timeout=30)


def follower(cluster: Any) -> Any:
    """A member that does not lead."""
    lead = leader(cluster)
    return next(member for member in cluster.members() if member.id != lead.id)


def spoil(member: Any, what: Callable[[], None]) -> None:
    """Freeze a member's process, do something to its files, and kill it."""
    os.kill(member.pid, signal.SIGSTOP)
    what()
    os.kill(member.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(member.pid))


def flip(path: Path, position: int) -> None:
    """Flip a bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def state_of(folder: Path) -> Path:
    """The state that a member works with."""
    return folder / (folder / "CURRENT").read_text()


def all_equal(cluster: Any) -> bool:
    """Whether all members serve, and have the same content at the same index."""
    return serving(cluster) and len({content(member) for member in cluster.members()}) == 1


def whole_again(cluster: Any, count: int, prefix: str = "k") -> None:
    """Wait until all members serve and are equal; every key must be there."""
    wait_until(lambda: serving(cluster), 90, lambda: f"all serve: {not_serving(cluster)}")
    wait_until(lambda: all_equal(cluster), 60, "all are equal")
    assert cluster.client().range(prefix=f"{prefix}/", count_only=True, timeout=30).count == count


# --- the state -------------------------------------------------------------------------------------------------------


def _remove_state(folder: Path) -> None:
    remove(state_of(folder))


def _remove_current(folder: Path) -> None:
    (folder / "CURRENT").unlink()


def _spoil_manifest(folder: Path) -> None:
    (manifest,) = state_of(folder).glob("MANIFEST-*")
    flip(manifest, 20)


@pytest.mark.parametrize(
    ("limits", "damage"),
    [
        pytest.param(SHORT_LOG, _remove_state, marks=pytest.mark.core, id="gone, from an image"),
        pytest.param({}, _spoil_manifest, marks=pytest.mark.core, id="damaged, from the log"),
        pytest.param(SHORT_LOG, _remove_current, id="nobody knows which, from an image"),
    ],
)
def test_a_lost_state_is_rebuilt_under_the_same_id(
    clusters: Made, limits: dict[str, int], damage: Callable[[Path], None]
) -> None:
    cluster = clusters.launch(limits=limits)
    kv = cluster.client()
    fill(kv, 120)
    victim = follower(cluster)
    folder = clusters.folder(victim.id)
    identity = (folder / "identity.json").read_bytes()
    spoil(victim, lambda: damage(folder))
    fill(kv, 30, "meanwhile")
    whole_again(cluster, 120)
    assert cluster.client().range(prefix="meanwhile/", count_only=True).count == 30
    assert (folder / "identity.json").read_bytes() == identity
    wait_until(lambda: not (folder / "damaged.json").exists(), 30)  # just after it serves
    wait_until(lambda: len(list(folder.glob("state-*"))) == 1, 30, "the damaged state is taken away")


def test_the_leader_loses_its_state(clusters: Made) -> None:
    cluster = clusters.launch(limits=SHORT_LOG)
    kv = cluster.client()
    fill(kv, 120)
    lead = leader(cluster)
    folder = clusters.folder(lead.id)
    spoil(lead, lambda: _remove_state(folder))
    fill(kv, 30, "meanwhile")
    whole_again(cluster, 120)


def read_from(member: Any, cluster: Any, first: bytes, last: bytes) -> bytes:
    """Ask one member for a range, whatever it knows."""
    keys = KeyRange(USER_SPACE + first, USER_SPACE + last)
    frame = Reads(cluster.id, 5.0, True, (Read(Range(keys)),))
    return bytes(ray.get(member.actor.request.remote(encode(frame)), timeout=20))


def test_flipped_bits_in_the_state_of_a_running_member_are_found_by_a_reader(clusters: Made) -> None:
    cluster = clusters.launch(limits=SHORT_LOG)
    kv = cluster.client()
    fill(kv, 300)
    victim = follower(cluster)
    os.kill(victim.pid, signal.SIGKILL)  # the next process has read nothing yet of the tables that trimming made
    wait_until(lambda: serving(cluster) and not is_alive(victim.pid), 60)
    victim = next(member for member in cluster.members() if member.id == victim.id)
    tables = [path for path in state_of(clusters.folder(victim.id)).glob("*.sst") if path.stat().st_size > 20_000]
    assert tables, "the test needs a table worth the name"
    assert len(read_from(leader(cluster), cluster, b"k/", b"k0")) > 200_000, "and a read that takes it in"
    os.kill(victim.pid, signal.SIGSTOP)
    for table in tables:
        for position in range(1000, int(table.stat().st_size * 0.9), 4096):
            flip(table, position)
    os.kill(victim.pid, signal.SIGCONT)

    def found() -> bool:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            read_from(victim, cluster, b"k/", b"k0")
        return not is_alive(victim.pid)

    wait_until(found, 30, "a member with a damaged state ends")
    whole_again(cluster, 300)


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_flipped_bit_in_the_middle_of_the_log_keeps_a_member_down(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, 100)
    victim = follower(cluster)
    folder = clusters.folder(victim.id)

    def damage() -> None:
        log = last_segment(folder / "log")
        ranges = written_ranges(log.read_bytes())
        flip(log, ranges[len(ranges) // 2][0] + 40)

    spoil(victim, damage)
    fill(kv, 20, "meanwhile")

    def said() -> str:
        why = str(not_serving(cluster).get(victim.name, ""))
        return why if "LogDamaged" in why else ""

    wait_until(said, 60, "the member says that its log is damaged")
    again = next(member for member in cluster.members() if member.id == victim.id)
    ray.get(again.actor.open.remote(), timeout=10)  # nor does it come back when it is told to
    wait_until(said, 30)
    assert kv.range(prefix="meanwhile/", count_only=True).count == 20


def test_a_torn_last_write_of_the_log_is_dropped(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, 50)
    victim = follower(cluster)
    folder = clusters.folder(victim.id)
    spoil(victim, lambda: tear(folder / "log"))
    whole_again(cluster, 50)


# --- images ----------------------------------------------------------------------------------------------------------


def fall_behind(cluster: Any, clusters: Made, stopped: list[int]) -> tuple[Any, int]:
    """A follower that needs an image: it is frozen while the others cut their logs. It, and how many keys there are."""
    kv = cluster.client()
    fill(kv, 20)
    victim = follower(cluster)
    os.kill(victim.pid, signal.SIGSTOP)
    stopped.append(victim.pid)
    for n in range(100):
        kv.put(f"k/{20 + n:05}", random_text(n, 30_000), timeout=30)
    lead = leader(cluster)
    wait_until(lambda: ray.get(lead.actor.status.remote(), timeout=10).first_log_index > 40, 30, "the log is cut")
    return victim, 120


def arriving(folder: Path) -> int:
    """Bytes of an image that have come."""
    return sum(path.stat().st_size for path in folder.glob("incoming/*/stream"))


def test_an_image_that_is_damaged_on_its_way_is_refused_and_made_anew(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch(limits=SLOW)
    victim, count = fall_behind(cluster, clusters, stopped)
    lead = clusters.folder(leader(cluster).id)
    os.kill(victim.pid, signal.SIGCONT)
    wait_until(lambda: arriving(clusters.folder(victim.id)) > 0, 60, "an image is on its way")
    (source,) = lead.glob("outgoing/*/checkpoint")
    table = max(source.glob("*.sst"), key=lambda path: path.stat().st_size)
    other = table.with_suffix(".copy")  # the table itself is the leader's own
    shutil.copyfile(table, other)
    flip(other, other.stat().st_size - 300_000)
    other.rename(table)
    wait_until(lambda: not source.exists(), 90, "the damaged image is dropped")
    whole_again(cluster, count)


def test_a_transfer_survives_the_death_of_either_side(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch(limits=SLOW)
    victim, count = fall_behind(cluster, clusters, stopped)
    folder = clusters.folder(victim.id)
    os.kill(victim.pid, signal.SIGCONT)
    wait_until(lambda: arriving(folder) > 500_000, 60, "a part of the image is there")
    before = arriving(folder)
    os.kill(victim.pid, signal.SIGKILL)
    lowest = []

    def goes_on() -> bool:
        lowest.append(arriving(folder))
        return lowest[-1] > before + 200_000

    wait_until(goes_on, 60, "the transfer goes on")
    assert min(lowest) >= before, "it started over"
    os.kill(leader(cluster).pid, signal.SIGKILL)
    whole_again(cluster, count)


# --- the disk as a whole ---------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_failing_fsync_ends_the_process(clusters: Made, local_ray: Path, scratch: Path) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, 10)
    victim = follower(cluster)
    fault = scratch / "fault"
    fault.write_text(f"fail raft_log:append {victim.pid}\n")
    try:
        kv.put("k/more", "1", timeout=30)
        wait_until(lambda: not is_alive(victim.pid), 30, "the process ends")
    finally:
        fault.unlink()
    whole_again(cluster, 11)


@pytest.mark.core
def test_a_data_directory_that_is_deleted_under_a_running_member(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, 20)
    victim = leader(cluster)
    folder = clusters.folder(victim.id)
    remove(folder)
    wait_until(lambda: not is_alive(victim.pid), 30, "the process ends")
    fill(kv, 20, "after")
    wait_until(lambda: victim.name in not_serving(cluster), 30)
    assert not (folder / "identity.json").exists(), "it must not come back as if it had never voted"
    assert kv.range(prefix="k/", count_only=True).count == 20


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this test mounts a file system, and may not: {done.stderr.strip()}")


@pytest.fixture
def mounts() -> Iterator[list[Path]]:
    """What a test has mounted is unmounted at its end."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


@pytest.mark.core
def test_a_disk_that_becomes_read_only(clusters: Made, mounts: list[Path]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, 20)
    victim = follower(cluster)
    folder = clusters.folder(victim.id)

    def protect() -> None:
        mount("--bind", str(folder), str(folder))
        mounts.append(folder)
        mount("-o", "remount,bind,ro", str(folder))

    spoil(victim, protect)
    fill(kv, 20, "meanwhile")
    wait_until(lambda: "Read-only" in str(not_serving(cluster).get(victim.name)), 60, "it says why")
    subprocess.run(["umount", str(folder)], check=True)
    mounts.remove(folder)
    whole_again(cluster, 20)


@pytest.mark.core
def test_a_full_disk_of_one_member_harms_nobody(clusters: Made, mounts: list[Path], tmp_path: Path) -> None:
    """It strikes in the middle of a write, since next to nothing is held in reserve. Puts may be refused meanwhile;
    the member says that there is no room, and does not end again and again; its data is not damaged, and what was
    acknowledged is there. Then the disk must have room for a snapshot, too: as it arrives, unpacked, and beside the old
    state."""
    cluster = clusters.launch(limits={"reserve_bytes": 400_000, "log_cut_bytes": 200_000})
    kv = cluster.client()
    fill(kv, 20)
    victim = follower(cluster)
    folder = clusters.folder(victim.id)

    def move() -> None:
        shutil.copytree(folder, tmp_path / "copy")
        mount("-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder))
        mounts.append(folder)
        shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)

    spoil(victim, move)
    whole_again(cluster, 20)
    before = next(member for member in cluster.members() if member.id == victim.id).pid
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(folder).free - 1_000_000))
    count = 20
    for n in range(10):
        with contextlib.suppress(raykeeper.NoSpace):
            kv.put(f"k/{count:05}", random_text(n, 1_200_000), timeout=60)
            count += 1
    wait_until(lambda: not is_alive(before), 30, "the disk was full in the middle of something")
    wait_until(lambda: "NoSpace" in str(not_serving(cluster).get(victim.name)), 60, "it says why")
    waiting = next(member for member in cluster.members() if member.id == victim.id).pid
    assert kv.delete("k/00000", timeout=60).deleted == 1
    assert "NoSpace" in str(not_serving(cluster).get(victim.name))
    filler.unlink()  # the member looks by itself whether there is room again

    def taken() -> bool:
        with contextlib.suppress(raykeeper.NoSpace):
            return bool(kv.put("k/00000", "again", timeout=60).revision)
        return False

    wait_until(taken, 60, "puts are taken again")
    whole_again(cluster, count)
    assert next(member for member in cluster.members() if member.id == victim.id).pid == waiting
