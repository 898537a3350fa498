"""A disk that loses, with its power, all that was not synced: judged by a layer between the processes and the kernel.

``durable.c`` is loaded into them (LD_PRELOAD) and notes what each fsync has made durable, of files and of directories;
the product's own journal of its syncs (``power_loss.py``) is not asked, so a sync that it forgets is found, and so is a
directory that it does not sync: a new file's entry and a rename are as lost as data.

``DurableDisk.cut`` makes of a folder what there is after the power was lost. With ``torn``, any of the sectors that
were written and not synced may have arrived all the same.

``DurableDisk.refuse_reads`` has reads of a folder's files answer EIO now and then, or after half of what was asked for.
Files that a process has mapped are left out (RocksDB maps none): there an error is a signal.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("durable.c")
SECTOR = 512
_READS = struct.Struct("=II QQ 4000s")
"""``struct reads``: the chance of 2**32 that a read is refused; how many were, at once and by halves; the folder."""


def _compile(library: Path) -> subprocess.CompletedProcess[str]:
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class DurableDisk:
    """The layer for one folder.

    Args:
        disk: the folder; processes reach its files by this path.
        durable: for what is durable; on the same file system, and outside of the folder.
    """

    def __init__(self, disk: Path, durable: Path) -> None:
        self._disk = disk
        self._durable = durable
        for name in ("inodes", "dirs", "keep"):
            (durable / name).mkdir(parents=True, exist_ok=True)
        self._library = durable / "durable.so"
        done = _compile(self._library)
        if done.returncode:
            raise OSError(f"the layer cannot be compiled: {done.stderr}")
        self._reads = durable / "reads"
        self._reads.write_bytes(bytes(_READS.size))

    @staticmethod
    @functools.cache
    def available() -> bool:
        """Whether there is a compiler, and what it needs."""
        if shutil.which("cc") is None:
            return False
        with tempfile.TemporaryDirectory() as folder:
            return not _compile(Path(folder) / "durable.so").returncode

    def environment(self) -> dict[str, str]:
        """For the processes that are to have the layer."""
        return {
            "LD_PRELOAD": str(self._library),
            "RAYKEEPER_TEST_DISK": str(self._disk),
            "RAYKEEPER_TEST_DURABLE": str(self._durable),
            "RAYKEEPER_TEST_READS": str(self._reads),
        }

    def refuse_reads(self, folder: Path, share: float) -> None:
        """From now on this share of all reads of files in a folder fails, of whatever process; 0 for none.

        Args:
            folder: in the disk. It takes the place of another one.
        """
        with self._reads.open("r+b", buffering=0) as file:  # no write of the chance is seen before that of the folder
            file.write(bytes(4))
            file.seek(_READS.size - 4000)
            file.write(os.fsencode(folder).ljust(4000, b"\0"))
            file.seek(0)
            file.write(struct.pack("=I", min(int(share * 2**32), 2**32 - 1)))

    def refused_reads(self) -> tuple[int, int]:
        """How many reads were refused since the layer was made, and how many brought only half before."""
        _, _, refused, halves, _ = _READS.unpack(self._reads.read_bytes())
        return refused, halves

    def cut(self, folder: Path, *, torn: random.Random | None = None) -> int:
        """The power is lost: what a folder holds from then on is what was durable.

        Args:
            folder: in the disk; its own entry counts as durable. Processes that have its files open stand still, and
                are killed afterwards.
            torn: draws which sectors that were not synced are there nevertheless; ``None`` for none.

        Returns:
            The bytes that were lost.
        """
        fresh = folder.with_name(f"{folder.name}.cut")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        lost = self._build(folder.stat().st_ino, fresh, torn)
        for old in folder.iterdir():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()
        for new in fresh.iterdir():
            new.rename(folder / new.name)
        fresh.rmdir()
        self._seed(folder)
        return lost

    def _entries(self, inode: int) -> list[tuple[int, str, str]]:
        """Of a directory, as of its last sync: inode, "d" or "f", and name."""
        listed = self._durable / "dirs" / str(inode)
        if not listed.exists():
            return []
        lines = [line.split(" ", 2) for line in listed.read_text().splitlines()]
        return [(int(number), kind, name) for number, kind, name in lines]

    def _build(self, inode: int, into: Path, torn: random.Random | None) -> int:
        lost = 0
        for number, kind, name in self._entries(inode):
            kept = self._durable / "keep" / str(number)
            synced = self._durable / "inodes" / str(number)
            if kind == "d":
                (into / name).mkdir(mode=0o700)
                lost += self._build(number, into / name, torn)
                continue
            before = synced.read_bytes() if synced.exists() else b""
            now = kept.read_bytes() if kept.exists() else before
            after = _torn(before, now, torn) if torn is not None else before
            lost += sum(len(now[at : at + SECTOR]) for at in _differing(after, now))
            (into / name).write_bytes(after)
            (into / name).chmod(0o600)
        return lost

    def _seed(self, folder: Path) -> None:
        """All that there is now is durable."""
        for path, names, files in os.walk(folder):
            entries = []
            for name in [*names, *files]:
                number = os.stat(os.path.join(path, name)).st_ino
                entries.append(f"{number} {'f' if name in files else 'd'} {name}\n")
                if name in files:
                    shutil.copyfile(os.path.join(path, name), self._durable / "inodes" / str(number))
                    kept = self._durable / "keep" / str(number)
                    kept.unlink(missing_ok=True)
                    os.link(os.path.join(path, name), kept)
            (self._durable / "dirs" / str(os.stat(path).st_ino)).write_text("".join(entries))

    def forget(self) -> None:
        """Let go of files that no list names, and that have no other name: they take room."""
        lists = [int(path.name) for path in (self._durable / "dirs").iterdir() if path.name.isdigit()]
        named = {number for listed in lists for number, _, _ in self._entries(listed)}
        for kept in (self._durable / "keep").iterdir():
            if kept.stat().st_nlink == 1 and int(kept.name) not in named:
                (self._durable / "inodes" / kept.name).unlink(missing_ok=True)
                kept.unlink()


def _differing(before: bytes, now: bytes) -> list[int]:
    """Where the sectors begin that are not the same."""
    if before == now:
        return []
    return [at for at in range(0, len(now), SECTOR) if before[at : at + SECTOR] != now[at : at + SECTOR]]


def _torn(before: bytes, now: bytes, rng: random.Random) -> bytes:
    """What was durable, with some of the sectors that were written since."""
    found = bytearray(before)
    share = rng.random()
    for at in _differing(before, now):
        if rng.random() < share:
            if len(found) < at:
                found.extend(bytes(at - len(found)))
            found[at : at + SECTOR] = now[at : at + SECTOR]
    return bytes(found)
