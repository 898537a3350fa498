"""The layer that says what a loss of power leaves: what was synced, and nothing else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lab.durable import SECTOR, DurableDisk
from raykeeper.store.data_dir import DataDir
from raykeeper.store.engine.rocks import RocksDisk
from rooms import ROOT

pytestmark = pytest.mark.skipif(not DurableDisk.available(), reason="there is no C compiler")


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk" / "m1"
        self.folder.mkdir(parents=True)
        self.layer = DurableDisk(folder / "disk", folder / "durable")

    def run(self, code: str) -> None:
        """Do this in a process on that disk."""
        path = f"{ROOT.parent}{os.pathsep}{ROOT / 'tests'}"
        environment = {**os.environ, **self.layer.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", path)}
        code = f"import os, shutil, sys\nos.chdir({str(self.folder)!r})\n{SYNC}\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def cut(self, torn: random.Random | None = None) -> int:
        return self.layer.cut(self.folder, torn=torn)

    def holds(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }


SYNC = """
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

def put(path, data, synced=True):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_synced_with_its_folder_stays(machine: Machine) -> None:
    machine.run("put('a', b'1'); os.mkdir('d'); put('d/b', b'2'); sync('d'); sync('.')")
    assert machine.cut() == 0
    assert machine.holds() == {"a": b"1", "d/b": b"2"}
    machine.run("put('d/c', b'3'); sync('d')")
    machine.cut()
    assert machine.holds() == {"a": b"1", "d/b": b"2", "d/c": b"3"}, "so it is after a cut"


@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("put('b', b'2')", {"a": b"111"}),
        ("put('b', b'2', synced=False); sync('.')", {"a": b"111", "b": b""}),
        ("os.rename('a', 'b')", {"a": b"111"}),
        ("os.rename('a', 'b'); sync('.')", {"b": b"111"}),
        ("os.remove('a')", {"a": b"111"}),
        ("os.remove('a'); put('b', b'2'); sync('b')", {"a": b"111"}),
        ("put('new', b'2'); os.replace('new', 'a')", {"a": b"111"}),
        ("put('new', b'2'); os.replace('new', 'a'); sync('.')", {"a": b"2"}),
        ("open('a', 'ab').write(b'222')", {"a": b"111"}),
        ("fd = os.open('a', os.O_WRONLY); os.pwrite(fd, b'2', 1)", {"a": b"111"}),
        ("fd = os.open('a', os.O_WRONLY); os.pwrite(fd, b'2', 1); os.fdatasync(fd)", {"a": b"121"}),
        ("fd = os.open('a', os.O_WRONLY); os.pwritev(fd, [b'2', b'3'], 1); os.fsync(fd)", {"a": b"123"}),
        ("fd = os.open('a', os.O_WRONLY); os.ftruncate(fd, 1)", {"a": b"111"}),
        ("fd = os.open('a', os.O_WRONLY); os.ftruncate(fd, 1); os.fsync(fd)", {"a": b"1"}),
        ("fd = os.open('a', os.O_WRONLY); os.ftruncate(fd, 1); os.ftruncate(fd, 3); os.fsync(fd)", {"a": b"1\0\0"}),
        ("shutil.copyfile('a', 'b'); sync('b'); sync('.')", {"a": b"111", "b": b"111"}),
        ("os.link('a', 'b'); sync('.')", {"a": b"111", "b": b"111"}),
    ],
)  # fmt: skip
def test_only_what_is_synced_stays(code: str, left: dict[str, bytes], machine: Machine) -> None:
    machine.run("put('a', b'111'); sync('.')")
    machine.run(code)
    machine.cut()
    assert machine.holds() == left


def test_a_sync_makes_durable_what_a_process_before_has_written(machine: Machine) -> None:
    machine.run("put('a', b'111'); sync('.')")
    machine.run("fd = os.open('a', os.O_WRONLY); os.pwrite(fd, b'2', 1)")
    machine.run("fd = os.open('a', os.O_WRONLY); os.pwrite(fd, b'3', 2); os.fsync(fd)")
    machine.cut()
    assert machine.holds() == {"a": b"123"}


def test_many_ranges_are_copied(machine: Machine) -> None:
    machine.run("put('a', bytes(100_000)); sync('.')")
    machine.run("fd = os.open('a', os.O_WRONLY)\nfor n in range(90): os.pwrite(fd, b'x', 1000 * n)\nos.fsync(fd)")
    machine.cut()
    assert machine.holds()["a"].count(b"x") == 90


def test_torn_sectors_are_old_or_new(machine: Machine) -> None:
    machine.run(f"put('a', b'1' * {20 * SECTOR}); sync('.')")
    machine.run(f"fd = os.open('a', os.O_WRONLY); os.pwrite(fd, b'2' * {40 * SECTOR}, 0)")
    lost = machine.cut(random.Random(3))
    data = machine.holds()["a"]
    sectors = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
    assert {bytes(set(sector)) for sector in sectors} <= {b"1", b"2", b"\0"}
    assert all(set(sector) <= {ord("1"), ord("2")} for sector in sectors[:20])
    assert b"2" in data
    assert lost > 0


def test_files_that_nobody_can_see_any_more_are_let_go(machine: Machine) -> None:
    machine.run("put('a', b'1'); sync('.'); os.remove('a'); put('b', b'2')")
    machine.layer.forget()
    machine.cut()
    assert machine.holds() == {"a": b"1"}
    machine.run("os.remove('a'); sync('.')")
    machine.layer.forget()
    kept = list((machine.folder.parents[1] / "durable" / "keep").iterdir())
    assert not kept


CREATE = """
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.rocks import RocksDisk
identity = Identity(cluster_name="c", cluster=7, member=1, name="m1", members=(FirstMember(1, "m1", "a"),))
DataDir.create(RocksDisk(), "data", identity).close()
sync(".")
"""


@pytest.mark.parametrize(("lie", "there"), [("", True), ("os.fsync = os.fdatasync = lambda fd: None\n", False)])
def test_a_product_that_does_not_sync_is_found(lie: str, there: bool, machine: Machine) -> None:
    """A member's new data is there after a loss of power, unless its syncs do nothing."""
    machine.run(
        CREATE.replace("identity =", f"real = os.fsync\n{lie}identity =", 1).replace(
            'sync(".")', "real(os.open('.', 0))"
        )
    )
    machine.cut()
    folder = str(machine.folder / "data")
    identity = DataDir.read_identity(RocksDisk(), folder) if os.path.isdir(folder) else None
    assert (identity is not None) == there
    if there:
        DataDir.open(RocksDisk(), folder).close()


READ = """
import ctypes
from raykeeper.store.engine.files import OsFile
from raykeeper.store.engine.rocks import RocksDisk
disk, whole = RocksDisk(), bytes(range(256)) * 40
put("a", whole)

def fread(path):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fopen.restype, libc.fread_unlocked.restype = ctypes.c_void_p, ctypes.c_size_t
    file = ctypes.c_void_p(libc.fopen(path.encode(), b"r"))
    into = ctypes.create_string_buffer(len(whole))
    got = libc.fread_unlocked(into, ctypes.c_size_t(1), ctypes.c_size_t(len(whole)), file)
    ended, number = libc.feof(file), ctypes.get_errno()
    libc.fclose(file)
    if got < len(whole) and not ended:
        raise OSError(number or 5, "what RocksDB makes of it")
    return into.raw[:got]

file = OsFile(os.path.abspath("a"), None, None)
ways = {
    "all": lambda: disk.read("a"),
    "some": lambda: disk.read("a", 0, len(whole)),
    "in place": lambda: file.read(0, len(whole)),
    "preadv": lambda: (lambda into: into[: os.preadv(file._descriptor, [into], 0)])(bytearray(len(whole))),
    "fread": lambda: fread("a"),
}
for name, read in ways.items():
    found = set()
    for _ in range(300):
        try:
            assert read() == whole, f"{name}: half of it, taken for the whole"
            found.add("whole")
        except OSError as error:
            assert error.errno == 5, error
            found.add("EIO")
    assert found == set(EXPECTED), (name, found)
"""


def test_a_read_that_is_refused_is_an_error_and_never_half_of_it(machine: Machine) -> None:
    machine.run(f"EXPECTED = ['whole']\n{READ}")
    assert machine.layer.refused_reads() == (0, 0)
    machine.layer.refuse_reads(machine.folder, 0.3)
    machine.run(f"EXPECTED = ['whole', 'EIO']\n{READ}")
    refused, halves = machine.layer.refused_reads()
    assert refused > halves > 0
    machine.layer.refuse_reads(machine.folder.parent / "m2", 0.3)
    machine.run(f"EXPECTED = ['whole']\n{READ}")
    machine.layer.refuse_reads(machine.folder, 0)
    machine.run(f"EXPECTED = ['whole']\n{READ}")
    assert machine.layer.refused_reads() == (refused, halves)


DATABASE = """
from raykeeper.errors import DataCorrupted
from raykeeper.store.engine.rocks import RocksDisk
pairs = [(b"%06d" % n, os.urandom(100)) for n in range(3000)]
if not os.path.exists("db"):
    engine = RocksDisk().open("db", ("f",), create=True)
    for at in range(0, 3000, 1000):
        engine.write([("f", key, b"x" * 100) for key, _ in pairs[at : at + 1000]])
        engine.flush()
    engine.close()
else:
    opened, read, refused = 0, 0, 0
    while not (opened and read and refused):
        try:
            engine = RocksDisk().open("db", ("f",))
        except OSError:
            refused += 1
            continue
        opened += 1
        try:
            assert list(engine.iterate("f")) == [(key, b"x" * 100) for key, _ in pairs]
            assert engine.get("f", b"000500") == b"x" * 100
            read += 1
        except OSError:
            refused += 1
        assert engine.damage is None
        engine.close()
"""


def test_a_database_of_which_reads_are_refused_is_not_taken_for_damaged_nor_for_shorter(machine: Machine) -> None:
    machine.run(DATABASE)
    machine.layer.refuse_reads(machine.folder, 0.03)
    machine.run(DATABASE)
    assert machine.layer.refused_reads()[0] > 0
