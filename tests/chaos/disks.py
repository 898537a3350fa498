"""What a campaign does to the disks of its members; see ``nemesis``.

Each strikes one member, and the campaign lets the cluster become whole before the next one that costs a member what it
holds: a quorum must keep its data, or nothing could be demanded of the cluster.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from lab.power_loss import cut_back
from lab.ray.tools import is_alive, is_stopped, wait_until
from lab.segment_files import last_segment, written_ranges
from raykeeper.errors import DataCorrupted
from simulation.checker import Violation

from .field import Fault, Field, NotNow, frozen

SMALL_DISK = "512m"
SOON = 15.0
"""Seconds for what happens within moments, or not at all."""


# --- power -----------------------------------------------------------------------------------------------------------


def _pull_the_plug(field: Field, members: list[Any]) -> bool:
    """Freeze the processes, take from their files what no sync has vouched for, and kill them.

    Whether one has is said by the layer between the processes and the kernel, or where there is none by their own
    journal of syncs.
    """
    with frozen(*(member.pid for member in members)):
        if field.layer is not None:
            torn = field.rng if field.rng.random() < 0.5 else None
            return sum(field.layer.cut(field.folder(member.id), torn=torn) for member in members) > 0
        journals = sorted(field.journals.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for member in members:
            cut_back(str(field.folder(member.id)), [str(path) for path in journals], zero_fill=field.rng.random() < 0.5)
    return True


def power_of_one(field: Field) -> Fault:
    member = field.anyone()
    bit = _pull_the_plug(field, [member])
    yield f"power of {member.name} lost"
    return bit


def power_of_all(field: Field) -> Fault:
    bit = _pull_the_plug(field, field.members())
    yield "power of all members lost"
    return bit


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int, bit: int) -> None:
    """Flip a bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def _flip_any(path: Path, rng: random.Random) -> None:
    flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))


def damaged_state(field: Field) -> Fault:
    """A bit flips in a table of a member's state, and the member starts again: it must not serve what is there."""
    member = field.anyone()
    tables = sorted(field.folder(member.id).glob("state-*/*.sst"))
    if not tables:
        raise NotNow(f"the state of {member.name} has no table yet")
    path = field.rng.choice(tables)
    with frozen(member.pid):
        _flip_any(path, field.rng)
    yield f"a bit flipped in {path.parent.name}/{path.name} of {member.name}"

    def found() -> bool:
        # It may lie where nobody has looked yet; before another member is struck, it must be out of the world.
        with suppress(ray.exceptions.RayError, DataCorrupted):
            now = field.again(member)
            if now is not None:
                ray.get(now.actor.__ray_call__.remote(look_through), timeout=60)
        return True

    return found


def look_through(host: Any) -> None:
    """Runs in a member: it reads all of its state, and ends if that is damaged."""
    host.member._loop.replica.state.verify()


def _inside(log: str, rng: random.Random) -> int:
    """A place in the frames of a segment, be it the last one: what changes there is no torn write.

    Raises:
        NotNow: there is none.
    """
    ranges = written_ranges(Path(log).read_bytes())
    if not ranges:
        raise NotNow(f"{log} has no frames")
    start, end = ranges[-1] if rng.random() < 0.3 else rng.choice(ranges)
    return rng.randrange(start, end)


def damaged_log(field: Field) -> Fault:
    """A bit flips in a log, often in the last record: what the member has promised is not known, and it is replaced."""
    member = field.anyone()
    _inside(_log_of(field, member), field.rng)  # rather than kill a member for nothing
    with frozen(member.pid):
        log = _log_of(field, member)
        flip(Path(log), _inside(log, field.rng), field.rng.randrange(8))
    yield f"a bit flipped in the log of {member.name}"
    return lambda: _never_again(field, member)


def _log_of(field: Field, member: Any) -> str:
    return str(last_segment(field.folder(member.id) / "log"))


def deleted_folder(field: Field) -> Fault:
    """A member's data is deleted while it runs: it is replaced."""
    member = field.anyone()
    os.kill(member.pid, signal.SIGSTOP)  # it creates no files meanwhile
    try:
        wait_until(lambda: is_stopped(member.pid), 10, "process stopped")
        shutil.rmtree(field.folder(member.id), ignore_errors=True)
    finally:
        os.kill(member.pid, signal.SIGCONT)
    yield f"the data of {member.name} is deleted"
    return lambda: _never_again(field, member)


def _never_again(field: Field, member: Any) -> bool:
    if field.again(member) is not None:
        raise Violation(f"{member.name} serves again, though its promises are lost")
    return True


def damaged_image(field: Field) -> Fault:
    """A member loses its state, and of the image of another one that it gets instead a bit is wrong."""
    member = field.follower()
    if ray.get(member.actor.status.remote(), timeout=10).first_log_index == 1:
        raise NotNow(f"the log of {member.name} has all that there is")
    folder = field.folder(member.id)
    with frozen(member.pid):
        shutil.rmtree(folder / (folder / "CURRENT").read_text())
    damaged: set[Path] = set()
    pause, until = threading.Event(), time.monotonic() + SOON
    while not damaged and time.monotonic() < until:
        for checkpoint in _images(field):
            with suppress(OSError):  # it is just being made, or is gone again
                tables = sorted(checkpoint.glob("*.sst"), key=lambda path: path.stat().st_size)
                other = tables[-1].with_suffix(".copy")  # the table itself is the sender's own
                shutil.copyfile(tables[-1], other)
                _flip_any(other, field.rng)
                other.rename(tables[-1])
                damaged.add(checkpoint)
        pause.wait(0.002)
    yield f"{member.name} lost its state, and {len(damaged)} images of others have a wrong bit"

    def found() -> bool:
        return bool(damaged) and not any(map(Path.exists, damaged))

    return found


def _images(field: Field) -> list[Path]:
    """Checkpoints that are complete and wait to be sent, or are being sent."""
    folders = (field.folder(member) for member in range(1, 100))
    found = itertools.chain.from_iterable(folder.glob("outgoing/*/checkpoint") for folder in folders)
    return [path for path in found if (path / "CURRENT").exists() and list(path.glob("*.sst"))]


# --- a disk that takes nothing ---------------------------------------------------------------------------------------


def failing_fsync(field: Field) -> Fault:
    """The disk refuses to make a member's log durable: its process must end."""
    member = field.anyone()
    with field.breaking(f"fail raft_log:append {member.pid}"):
        with suppress(AssertionError):  # another fault keeps it from writing
            wait_until(lambda: not is_alive(member.pid), SOON)
        yield f"an fsync of {member.name} failed"
    return not is_alive(member.pid)


def read_only_disk(field: Field) -> Fault:
    """A member finds its disk read-only when it starts, says so, and is told to try again once that is mended."""
    member = field.anyone()
    folder = field.folder(member.id)
    with frozen(member.pid):
        field.mount(folder, "--bind", str(folder))
        field.mount(folder, "-o", "remount,bind,ro")
        field.mounts.pop()  # the second was none of its own
    try:
        bit = _says(field, member, "Read-only")
        yield f"the disk of {member.name} is read-only"
    finally:
        field.unmount(folder)
    now = field.again(member)
    if now is not None and now.actor is not None:
        ray.get(now.actor.open.remote(), timeout=10)
    return bit


def full_disk(field: Field) -> Fault:
    """A member's disk is full. For that it gets a small one of its own, and keeps it."""
    member = field.anyone()
    folder = field.folder(member.id)
    if folder not in field.mounts:
        with frozen(member.pid), tempfile.TemporaryDirectory() as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            field.mount(folder, "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs")
            shutil.copytree(copy, folder, dirs_exist_ok=True)
        if field.rng.random() < 0.7:  # else the next process begins on a full disk
            with suppress(AssertionError):
                wait_until(lambda: not getattr(field.again(member), "why_not_serving", "gone"), SOON)
    filler = folder / "filler"
    try:
        _fill(filler, field.rng.choice((0, 500_000, 3_000_000)))
        bit = _says(field, member, "NoSpace", "NOSPACE")
        yield f"the disk of {member.name} is full"
    finally:
        filler.unlink(missing_ok=True)
    return bit


def _fill(filler: Path, keep: int) -> None:
    """Take all that is free on a disk but this many bytes, while others write to it."""
    with filler.open("wb") as file:
        for _ in range(100):
            free = shutil.disk_usage(filler.parent).free - keep
            if free <= 0:
                return
            with suppress(OSError):  # somebody was faster
                os.posix_fallocate(file.fileno(), 0, free)
                return


def _says(field: Field, member: Any, *words: str) -> bool:
    """Whether the cluster's status soon has one of these words for a member."""

    def said() -> bool:
        alarms = [alarm for alarm in field.cluster.status().alarms if alarm.startswith(f"{member.name} ")]
        return any(word in alarm for word in words for alarm in alarms)

    with suppress(AssertionError):
        return wait_until(said, SOON)
    return False
