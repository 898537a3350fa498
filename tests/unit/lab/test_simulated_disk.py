"""The simulated disk does what a real one does, and forgets what a real one may forget."""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykeeper.errors import DataCorrupted, NoSpace
from raykeeper.store.engine.rocks import RocksDisk
from simulation.disk import SimDisk
from simulation.disk_content import SECTOR, SimCrash
from simulation.disk_engine import SimEngine

FAMILIES = ("one", "other")

KEYS = st.binary(max_size=3)
WRITES = st.lists(st.tuples(st.sampled_from(FAMILIES), KEYS, st.none() | st.binary(max_size=4)), min_size=1, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("write"), WRITES),
    st.tuples(st.just("get"), st.tuples(st.sampled_from(FAMILIES), KEYS)),
    st.tuples(st.just("iterate"), st.tuples(st.sampled_from(FAMILIES), KEYS, st.none() | KEYS, st.booleans())),
    st.tuples(st.just("begin"), st.tuples(st.sampled_from(FAMILIES), st.booleans())),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("sync"), st.none()),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("checkpoint"), st.none()),
)


class Side:
    """One of the two disks, with one database open."""

    def __init__(self, disk: Any, root: str) -> None:
        self.disk = disk
        self.root = root
        disk.make_folder(root)
        self.engine = disk.open(f"{root}/db", FAMILIES, create=True)
        self.begun: Any = None
        self.checkpoints = 0

    def do(self, step: str, argument: Any) -> Any:
        engine = self.engine
        if step == "write":
            engine.write(argument)
        elif step == "get":
            return engine.get(*argument)
        elif step == "iterate":
            family, start, end, reverse = argument
            return list(engine.iterate(family, start, end, reverse=reverse))
        elif step == "begin":
            self.begun = engine.iterate(argument[0], reverse=argument[1])
            return next(self.begun, None)
        elif step == "finish":
            begun, self.begun = self.begun, None
            return None if begun is None else list(begun)
        elif step == "sync":
            engine.flush()
        elif step == "reopen":
            self.begun = None
            engine.close()
            self.engine = self.disk.open(f"{self.root}/db", FAMILIES)
        elif step == "checkpoint":
            self.checkpoints += 1
            path = f"{self.root}/copy{self.checkpoints}"
            engine.checkpoint(path)
            copy = self.disk.open(path, FAMILIES)
            content = [list(copy.iterate(family)) for family in FAMILIES]
            copy.close()
            return content
        return None


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=25))
def test_the_simulated_engine_agrees_with_rocksdb(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        real, simulated = Side(RocksDisk(), f"{folder}/root"), Side(SimDisk(), "root")
        for step, argument in steps:
            assert simulated.do(step, argument) == real.do(step, argument), step
        real.begun = None
        real.engine.close()


FILES = st.sampled_from(["a", "b", "sub/a", "sub/b"])
FILE_STEPS = st.one_of(
    st.tuples(st.just("append"), FILES, st.binary(max_size=5)),
    st.tuples(st.just("replace"), FILES, st.binary(max_size=5)),
    st.tuples(st.just("sync_file"), FILES),
    st.tuples(st.just("remove"), FILES | st.just("sub")),
    st.tuples(st.just("make_folder"), st.sampled_from(["sub", "sub/deep"])),
    st.tuples(st.just("rename"), FILES, FILES),
    st.tuples(st.just("read"), FILES, st.integers(0, 3), st.integers(-1, 4)),
    st.tuples(st.just("size"), FILES),
    st.tuples(st.just("exists"), FILES),
    st.tuples(st.just("list"), st.sampled_from(["", "sub", "nowhere"])),
)


def _outcome(disk: Any, root: str, step: tuple[Any, ...]) -> Any:
    name, *arguments = step
    paths = [f"{root}/{a}" if isinstance(a, str) else a for a in arguments]
    try:
        return getattr(disk, name)(*paths)
    except OSError:
        return "an error"


@settings(max_examples=200, deadline=None)
@given(st.lists(FILE_STEPS, max_size=30))
def test_the_simulated_files_agree_with_real_ones(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        real, simulated = RocksDisk(), SimDisk()
        real.make_folder(f"{folder}/root")
        simulated.make_folder("root")
        for step in steps:
            assert _outcome(simulated, "root", step) == _outcome(real, f"{folder}/root", step), step


BLOCK_STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["x", "y"]), st.none() | st.sampled_from([1024, 4096])),
    st.tuples(st.just("write"), st.integers(0, 900), st.binary(max_size=100)),
    st.tuples(st.just("write_zeros"), st.integers(0, 500), st.integers(500, 1024)),
    st.tuples(st.just("read"), st.integers(0, 2000), st.integers(0, 2000)),
    st.tuples(st.just("sync")),
    st.tuples(st.just("rename")),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(BLOCK_STEPS, max_size=20))
def test_the_simulated_files_that_are_written_in_place_agree_with_real_ones(steps: list[tuple[Any, ...]]) -> None:
    def do(disk: Any, root: str, files: list[Any], step: tuple[Any, ...]) -> Any:
        name, *arguments = step
        if name == "open":
            try:
                files.append(disk.open_file(f"{root}/{arguments[0]}", arguments[1]))
            except FileNotFoundError:
                return "no such file"
            return files[-1].size
        if name == "rename":
            try:
                disk.rename(f"{root}/x", f"{root}/y")
            except FileNotFoundError:
                return "no such file"
            return disk.size(f"{root}/y"), disk.read(f"{root}/y")
        if not files:
            return None
        return files[-1].sync(0) if name == "sync" else getattr(files[-1], name)(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        real: tuple[Any, ...] = (RocksDisk(), f"{folder}/root", [])
        simulated: tuple[Any, ...] = (SimDisk(), "root", [])
        for disk, root, _ in (real, simulated):
            disk.make_folder(root)
        for step in steps:
            assert do(*simulated, step) == do(*real, step), step
        for file in real[2]:
            file.close()


def test_opening_demands_what_it_says(tmp_path: Path) -> None:
    for disk, root in ((RocksDisk(), str(tmp_path)), (SimDisk(), "root")):
        with pytest.raises(DataCorrupted):
            disk.open(f"{root}/db", FAMILIES)
        disk.open(f"{root}/db", FAMILIES, create=True).close()
        with pytest.raises(DataCorrupted):
            disk.open(f"{root}/db", FAMILIES, create=True)
        with pytest.raises(DataCorrupted):
            disk.open(f"{root}/db", ("one", "another"))


# --- forgetting ------------------------------------------------------------------------------------------------------


def _content(engine: SimEngine) -> dict[tuple[str, bytes], bytes]:
    return {(family, key): value for family in FAMILIES for key, value in engine.iterate(family)}


@settings(max_examples=200, deadline=None)
@given(st.lists(WRITES, max_size=8), st.lists(WRITES, max_size=8), st.integers(0, 1 << 32))
def test_a_loss_of_power_keeps_the_synced_and_a_prefix_of_the_rest(
    before: list[Any], after: list[Any], seed: int
) -> None:
    disk = SimDisk()
    engine = disk.open("db", FAMILIES, create=True)
    possible: list[dict[tuple[str, bytes], bytes]] = []
    for n, batch in enumerate(before + after):
        if n == len(before):
            engine.flush()
            possible.clear()
            possible.append(_content(engine))
        engine.write(batch)
        if n >= len(before):
            possible.append(_content(engine))
    if not after:
        engine.flush()
        possible = [_content(engine)]
    synced = dict(possible[0])
    for family in FAMILIES:
        for key in {key for _, key in {**synced, **_content(engine)}}:
            assert engine.get_synced(family, key) == synced.get((family, key))
    disk.lose_power(random.Random(seed))
    disk.restart()
    assert _content(disk.open("db", FAMILIES)) in possible


def test_a_crash_of_the_process_keeps_what_was_flushed_and_all_files() -> None:
    disk = SimDisk()
    engine = disk.open("db", FAMILIES, create=True)
    engine.write([("one", b"k", b"v")])
    engine.flush()
    disk.make_folder("files")
    disk.append("files/a", b"data")
    disk.crash()
    with pytest.raises(SimCrash):
        engine.get("one", b"k")
    disk.restart()
    assert disk.open("db", FAMILIES).get("one", b"k") == b"v"
    assert disk.read("files/a") == b"data"


def test_a_fuse_ends_the_process_between_two_operations() -> None:
    disk = SimDisk()
    engine = disk.open("db", FAMILIES, create=True)
    disk.fuse = 3
    engine.write([("one", b"1", b"")])
    engine.flush()
    with pytest.raises(SimCrash):
        engine.write([("one", b"2", b"")])
    with pytest.raises(SimCrash):
        engine.flush()
    disk.restart()
    assert [key for key, _ in disk.open("db", FAMILIES).iterate("one")] == [b"1"]


def _survivors(prepare: Any) -> set[Any]:
    """What ``prepare(disk)`` may have left behind after a loss of power, over many tries."""
    left = set()
    for seed in range(60):
        disk = SimDisk()
        disk.make_folder("f")
        prepare(disk)
        disk.lose_power(random.Random(seed))
        disk.restart()
        left.add(tuple((name, disk.read(f"f/{name}") if name != "d" else b"") for name in disk.list("f")))
    return left


def test_a_file_keeps_its_synced_bytes_and_maybe_more() -> None:
    def prepare(disk: SimDisk) -> None:
        disk.append("f/a", b"syn")
        disk.sync_file("f/a")
        disk.append("f/a", b"c")

    assert _survivors(prepare) == {(("a", b"syn"),), (("a", b"sync"),)}


def test_a_file_that_is_written_in_place_keeps_any_sectors_of_what_is_not_synced() -> None:
    def prepare(disk: SimDisk) -> None:
        file = disk.open_file("f/a", 9 * SECTOR)
        file.write(0, b"1" * 9 * SECTOR)
        file.sync(9 * SECTOR)
        disk.rename("f/a", "f/b")
        file.write(SECTOR, b"2" * 8 * SECTOR)

    left = {data[::SECTOR] for ((_, data),) in _survivors(prepare)}
    assert {b"111111111", b"122222222"} < left
    assert all(sectors[0:1] == b"1" for sectors in left), "what is synced"
    assert any(b"12" in sectors[1:] and b"21" in sectors[1:] for sectors in left), "in no order"


def test_a_file_that_was_never_synced_may_be_missing() -> None:
    assert _survivors(lambda disk: disk.append("f/a", b"x")) == {(), (("a", b""),), (("a", b"x"),)}


def test_a_removal_may_be_undone_until_its_folder_is_synced() -> None:
    def prepare(disk: SimDisk) -> None:
        disk.replace("f/a", b"x")
        disk.remove("f/a")

    def prepare_synced(disk: SimDisk) -> None:
        prepare(disk)
        disk.replace("f/b", b"y")

    assert _survivors(prepare) == {(), (("a", b"x"),)}
    assert _survivors(prepare_synced) == {(("b", b"y"),)}


def test_replace_and_rename_are_durable_at_once() -> None:
    def prepare(disk: SimDisk) -> None:
        disk.replace("f/a", b"old")
        disk.replace("f/a", b"new")
        disk.rename("f/a", "f/b")

    assert _survivors(prepare) == {(("b", b"new"),)}


def test_a_database_made_of_unsynced_files_does_not_survive() -> None:
    disk = SimDisk()
    engine = disk.open("db", FAMILIES, create=True)
    engine.write([("one", b"k", b"v")])
    engine.checkpoint("copy")
    disk.make_folder("f")
    disk.rename("copy", "f/copy")
    copy = disk.open("f/copy", FAMILIES)
    copy.flush()
    disk.lose_power(random.Random(1))
    disk.restart()
    with pytest.raises(DataCorrupted):
        disk.open("f/copy", FAMILIES)


def test_rot_is_met_by_whoever_reads_it_until_it_is_overwritten() -> None:
    disk = SimDisk()
    engine = disk.open("db", ("a",), create=True)
    engine.write([("a", b"%d" % n, b"x") for n in range(10)])
    assert disk.rot("db", random.Random(1), 1.0) == 10
    assert not disk.is_whole("db")
    with pytest.raises(DataCorrupted):
        engine.get("a", b"3")
    with pytest.raises(DataCorrupted):
        list(engine.iterate("a"))
    assert isinstance(engine.damage, DataCorrupted)
    engine.write([("a", b"%d" % n, b"y") for n in range(10)])
    assert engine.get("a", b"3") == b"y"
    assert disk.is_whole("db")


def test_a_failing_sync_ends_the_process_and_nothing_new_is_durable() -> None:
    disk = SimDisk()
    engine = disk.open("db", ("a",), create=True)
    engine.write([("a", b"1", b"x")])
    engine.flush()
    engine.write([("a", b"2", b"x")])
    disk.sync_fails = True
    with pytest.raises(SimCrash):
        engine.flush()
    assert disk.synced_reader("db")("a", b"2") is None
    disk.restart()
    assert disk.open("db", ("a",)).get("a", b"1") == b"x"


@pytest.mark.parametrize("seed", range(6))
def test_damage_shows_when_the_database_is_opened(seed: int) -> None:
    disk = SimDisk()
    disk.open("db", ("a",), create=True).close()
    disk.damage("db", random.Random(seed))
    assert not disk.is_whole("db")
    with pytest.raises(DataCorrupted):
        disk.open("db", ("a",))


def test_a_full_disk_takes_files_no_more_and_a_database_is_as_it_was_flushed() -> None:
    disk = SimDisk()
    engine = disk.open("db", FAMILIES, create=True)
    engine.write([("one", b"k", b"old")])
    engine.flush()
    file = disk.open_file("file", SECTOR)
    disk.room = 0
    engine.write([("one", b"k", b"new")])
    for act in (
        engine.flush,
        lambda: engine.write([("one", b"k", b"newer")]),
        lambda: engine.checkpoint("copy"),
        lambda: disk.append("other", b"data"),
        lambda: disk.replace("other", b"data"),
        lambda: disk.make_folder("folder"),
        lambda: disk.open_file("file", 2 * SECTOR),
    ):
        with pytest.raises(NoSpace):
            act()
    file.write(0, b"there is room for it")
    engine.close()
    with pytest.raises(NoSpace):
        disk.open("db", FAMILIES)
    disk.room = None
    assert disk.open("db", FAMILIES).get("one", b"k") == b"old"


def test_a_thread_sees_all_of_a_write_or_nothing() -> None:
    """As RocksDB's readers do. Members of unit tests have readers that are threads."""
    engine = SimDisk().open("db", ("a", "b"), create=True)
    torn: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            newer, older = engine.get("b", b"1"), engine.get("a", b"1")
            if int(newer or 0) > int(older or 0):
                torn.append((newer, older))
            values = {value for _, value in engine.iterate("a")}
            if len(values) > 1:
                torn.append(values)

    reader = threading.Thread(target=read)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reader.start()
        for number in range(1, 1500):
            value = b"%d" % number
            engine.write([("b", b"1", value), *[("a", b"%d" % key, value) for key in range(5)]])
    finally:
        sys.setswitchinterval(before)
        stop.set()
        reader.join()
    assert not torn
