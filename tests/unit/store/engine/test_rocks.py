"""The real disk: what its engine promises, what its errors mean, and what would survive a loss of power."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.power_loss import cut_back
from raykeeper.errors import DataCorrupted, NoSpace, Unavailable
from raykeeper.store.engine.rocks import RocksDisk, translate
from raykeeper.store.state.write_batch import WriteBatch
from simulation.disk import SimDisk

FAMILIES = ("a", "b")


def test_bounds_of_many_iterators_stay_what_they_are(disk: RocksDisk, tmp_path: Path) -> None:
    """rocksdict does not keep the memory that a bound lies in."""
    engine = disk.open(str(tmp_path / "db"), FAMILIES, create=True)
    engine.write([("a", n.to_bytes(8, "big"), b"") for n in range(500)])
    iterators = [(n, engine.iterate("a", b"", n.to_bytes(8, "big"))) for n in range(0, 500, 7)]
    junk = [os.urandom(8) for _ in range(10_000)]
    gc.collect()
    assert [len(list(pairs)) for _, pairs in iterators] == [n for n, _ in iterators]
    assert len(junk) == 10_000
    engine.close()


def test_the_size_is_that_of_what_was_written_and_no_more(tmp_path: Path) -> None:
    """However many families are written to, before and after it went into tables, and after it was reopened."""
    path, families = str(tmp_path / "db"), tuple(f"family {n}" for n in range(8))
    disk = RocksDisk()
    engine = disk.open(path, families, create=True)
    assert engine.size() < 20_000
    written = 0
    for n in range(300):
        value = os.urandom(2000)
        engine.write([(families[n % 8], n.to_bytes(8, "big"), value)])
        written += len(value)
        assert written <= engine.size() <= 1.05 * written + 20_000
    engine.flush()
    assert written <= engine.size() <= 1.05 * written + 20_000
    engine.close()
    engine = disk.open(path, families)
    assert written <= engine.size() <= 1.05 * written + 20_000
    engine.close()


def test_the_size_in_use_leaves_out_what_was_overwritten(tmp_path: Path) -> None:
    engine = RocksDisk().open(str(tmp_path / "db"), ("family",), create=True)
    written = 0
    for _ in range(2):
        written = 0
        for n in range(200):
            value = os.urandom(2000)
            engine.write([("family", n.to_bytes(8, "big"), value)])
            written += len(value)
        engine.flush()
    assert engine.size() >= 2 * written
    assert written <= engine.size_in_use() <= 1.1 * written + 20_000
    engine.close()


def read_calls() -> int:
    """How often this process has read from a file."""
    return int(Path("/proc/self/io").read_text().partition("syscr: ")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads are not counted here")
def test_a_bloom_filter_spares_new_keys_the_read(tmp_path: Path) -> None:
    """Every put looks for the key first. Of one that is not there, and lies between others, the filter says so."""
    path, absent, present = str(tmp_path / "db"), 500, range(0, 40_000, 2)
    engine = RocksDisk().open(path, FAMILIES, create=True)
    engine.write([("a", n.to_bytes(8, "big"), os.urandom(200)) for n in present])
    engine.flush()
    engine.close()

    def reads(odd: int) -> int:
        engine = RocksDisk().open(path, FAMILIES)  # with a cache that is empty
        engine.get("a", b"")
        before = read_calls()
        for n in range(0, 40_000, 40_000 // absent):
            assert (engine.get("a", (n + odd).to_bytes(8, "big")) is None) == bool(odd)
        made = read_calls() - before
        engine.close()
        return made

    assert reads(odd=0) > absent / 2, "blocks are read one by one"
    assert reads(odd=1) < absent / 10


def test_an_iterator_stands_still_and_ends_with_the_database(disk: RocksDisk, tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    engine = disk.open(path, FAMILIES, create=True)
    engine.write([("a", b"1", b"x"), ("a", b"2", b"x"), ("a", b"3", b"x")])
    pairs = engine.iterate("a")
    assert next(pairs) == (b"1", b"x")
    engine.write([("a", b"2", None), ("a", b"25", b"new"), ("a", b"3", b"changed")])
    assert next(pairs) == (b"2", b"x")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(pairs)
    for use in (lambda: engine.get("a", b"1"), engine.flush, lambda: engine.write([]), lambda: engine.iterate("a")):
        with pytest.raises((RuntimeError, KeyError)):
            use()
    disk.open(path, FAMILIES).close()


def test_errors_in_our_words() -> None:
    for text, kind in [
        ("Corruption: block checksum mismatch", DataCorrupted),
        ("IO error: No space left on device: While appending to file", NoSpace),
        ("IO error: While lock file: /x/LOCK: Resource temporarily unavailable", Unavailable),
        ("IO error: No such file or directory: While open a file: /x/1.sst", DataCorrupted),
        ("IO error: Input/output error", OSError),
        (
            "IO error: lock hold by current process, acquire time 17 acquiring thread 1: /x/LOCK: No locks",
            Unavailable,
        ),
        ("IO error: While open a file for lock: /x/LOCK: Input/output error", OSError),
    ]:
        assert type(translate(Exception(text), "/x")) is kind, text


@pytest.mark.parametrize("path", ["/mnt/BLOCK1/m1/state-1", "/LOCK/lock hold by current process", "/SpaceLimit/m1"])
def test_what_the_path_is_called_says_nothing_of_the_error(path: str) -> None:
    for text, kind in [
        (f"Corruption: block checksum mismatch in {path}/000009.sst", DataCorrupted),
        (f"Corruption: Can't access /000009.sst: IO error: No such file: while stat a file: {path}", DataCorrupted),
        (f"IO error: While pread offset 0 len 9: {path}/000009.sst: Input/output error", OSError),
        (f"IO error: While open a file for lock: {path}/LOCK: Input/output error", OSError),
        (f"IO error: While lock file: {path}/LOCK: Resource temporarily unavailable", Unavailable),
    ]:
        assert type(translate(Exception(text), path)) is kind, text


def test_a_database_that_the_disk_refuses_to_show_is_not_a_missing_one(tmp_path: Path) -> None:
    """A damaged state is replaced by an empty one. A symbolic link to itself is refused like a sector that is bad."""
    disk, path = RocksDisk(), str(tmp_path / "db")
    disk.open(path, FAMILIES, create=True).close()
    current = tmp_path / "db" / "CURRENT"
    current.rename(tmp_path / "db" / "CURRENT.kept")
    current.symlink_to("CURRENT")
    with pytest.raises(OSError, match="symbolic links"):
        disk.open(path, FAMILIES)
    with pytest.raises(OSError, match="symbolic links"):
        disk.exists(str(current))
    current.unlink()
    assert not disk.exists(str(current))
    with pytest.raises(DataCorrupted, match="no database"):
        disk.open(path, FAMILIES)


NO_ROOM = """
import os, resource, sys
from raykeeper.store.engine.rocks import RocksDisk
engine = RocksDisk().open(sys.argv[1], ("a", "b"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def attempt(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "done"
for n in range(10):
    engine.write([("a", b"%02d" % n, os.urandom(30_000)), ("b", b"%02d" % n, b"")])
print(attempt(engine.flush), attempt(engine.flush), attempt(lambda: engine.write([("a", b"k", b"")])))
print(attempt(engine.close))
"""


def test_a_flush_that_finds_no_room_fails(tmp_path: Path) -> None:
    """rocksdict reports nothing. The log was trimmed on the word of this flush."""
    path = str(tmp_path / "db")
    engine = RocksDisk().open(path, FAMILIES, create=True)
    engine.write([("a", b"old", b"1"), ("b", b"old", b"2")])
    engine.flush()
    engine.close()
    said = subprocess.run(
        [sys.executable, "-c", NO_ROOM, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert said.stdout.split() == ["NoSpace", "NoSpace", "NoSpace", "done"]
    engine = RocksDisk().open(path, FAMILIES)
    assert list(engine.iterate("a")) == [(b"old", b"1")]
    assert list(engine.iterate("b")) == [(b"old", b"2")]
    engine.close()


def test_flushes_from_several_threads_leave_one_mark(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    engine = RocksDisk().open(path, FAMILIES, create=True)
    failed: list[BaseException] = []

    def flush() -> None:
        try:
            for _ in range(20):
                engine.flush()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(200):
        engine.write([("a", n.to_bytes(8, "big"), os.urandom(1000))])
    for thread in threads:
        thread.join()
    assert not failed
    assert engine._database is not None
    assert len(list(engine._database.keys())) == 1
    engine.close()


WRITER = """
import os, signal, sys
from raykeeper.store.engine.rocks import RocksDisk
root, journal = sys.argv[1:]
disk = RocksDisk(sync_journal=journal)
engine = disk.open(root + "/db", ("a", "b"), create=True)
for n in range(20):
    engine.write([("a", b"%02d" % n, b"x" * 1000), ("b", b"%02d" % n, b"")])
    if n == 14:
        engine.flush()
disk.make_folder(root + "/files")
disk.append(root + "/files/f", b"synced")
disk.sync_file(root + "/files/f")
disk.append(root + "/files/f", b" and not")
disk.append(root + "/files/g", b"never synced")
disk.rename(root + "/files", root + "/renamed")
disk.replace(root + "/renamed/h", b"replaced")
other = disk.open(root + "/never-synced", ("a",), create=True)
other.write([("a", b"k", b"v")])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("zero_fill", [False, True])
def test_the_journal_of_syncs_knows_what_a_loss_of_power_leaves(tmp_path: Path, zero_fill: bool) -> None:
    root, journal = str(tmp_path / "root"), str(tmp_path / "journal")
    subprocess.run(
        [sys.executable, "-c", WRITER, root, journal],
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    cut = cut_back(root, [journal], zero_fill=zero_fill)
    assert {str(Path(path).relative_to(root).parent) for path in cut} == {"renamed"}
    disk = RocksDisk()
    engine = disk.open(f"{root}/db", FAMILIES)
    assert [key for key, _ in engine.iterate("a")] == [b"%02d" % n for n in range(15)]
    assert [key for key, _ in engine.iterate("b")] == [b"%02d" % n for n in range(15)]
    engine.close()
    other = disk.open(f"{root}/never-synced", ("a",))
    assert other.get("a", b"k") is None
    other.close()
    fill = bytes(8) if zero_fill else b""
    assert disk.read(f"{root}/renamed/f") == b"synced" + fill
    assert disk.read(f"{root}/renamed/g").strip(b"\0") == b""
    assert disk.read(f"{root}/renamed/h") == b"replaced"


# --- the batch over a database ---------------------------------------------------------------------------------------

KEYS = st.sampled_from([b"", b"a", b"ab", b"b", b"\xff"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.none() | st.just(b"1") | st.just(b"2")),
        st.tuples(st.just("iterate"), KEYS, st.none() | KEYS, st.booleans()),
        st.tuples(st.sampled_from(["begin", "keep", "rollback", "flush", "discard"])),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=500)
@given(STEPS)
def test_a_batch_reads_as_if_it_were_written(steps: list[tuple[object, ...]]) -> None:
    engine = SimDisk().open("db", ("a",), create=True)
    batch = WriteBatch(engine, ("a",))
    stored: dict[bytes, bytes] = {}
    now: dict[bytes, bytes] = {}
    saved: dict[bytes, bytes] | None = None
    for step, *arguments in steps:
        if step == "set":
            key, value = arguments
            batch.set("a", key, value)  # type: ignore[arg-type]
            if value is None:
                now.pop(key, None)  # type: ignore[arg-type]
            else:
                now[key] = value  # type: ignore[assignment,index]
            assert batch.get("a", key) == value  # type: ignore[arg-type]
        elif step == "iterate":
            start, end, reverse = arguments
            expected = [(k, now[k]) for k in sorted(now) if k >= start and (end is None or k < end)]  # type: ignore[operator]
            found = list(batch.iterate("a", start, end, reverse=reverse))  # type: ignore[arg-type]
            assert found == (expected[::-1] if reverse else expected)
        elif step == "begin":
            batch.set_savepoint()
            saved = dict(now)
        elif step == "keep":
            batch.release_savepoint()
            saved = None
        elif step == "rollback":
            for _ in batch.rollback_to_savepoint():
                pass
            now, saved = (now if saved is None else saved), None
        elif step == "flush":
            batch.release_savepoint()  # a batch is only written between two operations
            batch.flush()
            stored, saved = dict(now), None
        else:
            batch.discard()
            now, saved = dict(stored), None
        assert {key: batch.get("a", key) for key in now} == now
    assert dict(engine.iterate("a")) == stored
