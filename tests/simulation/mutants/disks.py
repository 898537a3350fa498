"""Wrong orders on disk: of the log's segments, of a state without a write-ahead log of its own, and after damage."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from typing import Any

from raykeeper.errors import NoSpace
from raykeeper.raft import Node
from raykeeper.store.data_dir import DataDir, StateDamaged
from raykeeper.store.engine.interface import Disk
from raykeeper.store.log import repair, segments
from raykeeper.store.log.repair import SegmentContent
from raykeeper.store.log.segments import SegmentedLog, segment_name
from raykeeper.store.state.machine import State
from raykeeper.store.state.write_batch import WriteBatch
from simulation.disk_content import ReadRefused
from simulation.disk_engine import Pairs
from simulation.mutants.registry import mutant, patched


@mutant("the log trimmed before the state is flushed", "power")
def _cut_before_sync() -> AbstractContextManager[None]:
    return patched(State, "flush", lambda state: None)


@mutant("the log trimmed after a flush that has failed", "full disks")
def _trimmed_after_failure() -> AbstractContextManager[None]:
    flush = State.flush

    def silent(state: State) -> None:
        with suppress(NoSpace):
            flush(state)

    return patched(State, "flush", silent)


def _without_sync(method: str) -> AbstractContextManager[None]:
    """A method of the log in which ``sync`` does nothing."""
    original = getattr(SegmentedLog, method)

    def without(log: SegmentedLog, *arguments: Any) -> None:
        log.sync = lambda: None  # type: ignore[method-assign]
        try:
            original(log, *arguments)
        finally:
            del log.sync

    return patched(SegmentedLog, method, without)


@mutant("a segment written to before the last one is synced", "power")
def _sealed_unsynced() -> AbstractContextManager[None]:
    return _without_sync("_open_segment")


@mutant("segments removed before the new base is synced", "power", first_seed=230)
def _released_unsynced() -> AbstractContextManager[None]:
    return _without_sync("release")


@mutant("a start that does not sync what it has read", "power", first_seed=60)
def _read_unsynced() -> AbstractContextManager[None]:
    original = SegmentedLog._settle

    def settle(log: SegmentedLog, contents: dict[int, SegmentContent]) -> None:
        original(log, contents)
        log._unsynced = False

    return patched(SegmentedLog, "_settle", settle)


@mutant("a segment that gets its number before it is blank", "power", first_seed=104)
def _numbered_early() -> AbstractContextManager[None]:
    original = segments._prepare

    def prepare(disk: Disk, path: str, number: int, size: int, recycled: str | None, *pause: Any) -> None:
        if recycled is None or disk.size(recycled) != size:
            original(disk, path, number, size, recycled, *pause)
            return
        name = f"{path}/{segment_name(number)}"
        disk.rename(recycled, name)
        file = disk.open_file(name)
        file.write_zeros(0, size)
        file.sync(0)

    return patched(segments, "_prepare", prepare)


@mutant("a lost state takes the log with it", "rot")
def _log_dropped() -> AbstractContextManager[None]:
    """The snapshot replaces the log too, with all that was acknowledged after it."""
    return patched(Node, "snapshot_keeps_log", lambda node, meta: False)


@mutant("an image that the log does not continue", "rot", first_seed=10)
def _any_image() -> AbstractContextManager[None]:
    return patched(Node, "_min_snapshot_index", lambda node: 1)


@mutant("damage that is forgotten", "rot")
def _damage_forgotten() -> AbstractContextManager[None]:
    return patched(DataDir, "mark_state_damaged", lambda folder, why: None)


@mutant("the applied index outside the batch", "power")
def _applied_outside() -> AbstractContextManager[None]:
    """Two writes instead of one: first the effects, then how far the log is applied."""
    original = WriteBatch.prepare

    def prepare(batch: Any, *arguments: Any) -> Generator[None, None, Callable[[], None]]:
        meta = batch._layers["meta"].values
        applied = meta.pop(b"applied", None)
        first = yield from original(batch, *arguments)

        def write() -> None:
            first()
            if applied is not None:
                batch._engine.write([("meta", b"applied", applied)])

        return write

    return patched(WriteBatch, "prepare", prepare)


class _Blank:
    """A disk of which what cannot be read, and what comes after it, is taken for blank."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def read(self, path: str) -> bytes:
        with suppress(ReadRefused):
            if not self._failed:
                data: bytes = self._disk.read(path)
                return data
        self._failed = True
        return bytes(self._disk.size(path))


@mutant("a read that fails taken for the log's end", "refused reads")
def _read_error_ends_the_log() -> AbstractContextManager[None]:
    original = SegmentedLog._replay

    def replay(log: SegmentedLog, first: int, last: int) -> dict[int, SegmentContent]:
        disk, log._disk = log._disk, _Blank(log._disk)  # type: ignore[assignment]
        try:
            return original(log, first, last)
        finally:
            log._disk = disk

    return patched(SegmentedLog, "_replay", replay)


@mutant("a read that fails taken for a damaged state", "refused reads")
def _read_error_is_damage() -> AbstractContextManager[None]:
    original = State.open

    def open_state(*arguments: Any) -> State:
        try:
            return original(*arguments)
        except ReadRefused as error:
            raise StateDamaged(str(error)) from error

    return patched(State, "open", staticmethod(open_state))


@mutant("an iteration that ends at a read that fails", "refused reads")
def _read_error_ends_an_iteration() -> AbstractContextManager[None]:
    """As rocksdict's own ``items`` does, which is why the product has an iterator that asks for the status."""
    original = Pairs.__next__

    def following(pairs: Pairs) -> tuple[bytes, bytes]:
        try:
            return original(pairs)
        except ReadRefused:
            raise StopIteration from None

    return patched(Pairs, "__next__", following)


@mutant("damage at the log's end taken for a torn record", "log rot")
def _all_is_torn() -> AbstractContextManager[None]:
    return patched(repair, "count_blanks", lambda data: 1 << 30)
