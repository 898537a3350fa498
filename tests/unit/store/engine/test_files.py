"""Files that are written in place: what their errors mean, and that a failed sync ends the process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raykeeper.errors import NoSpace
from raykeeper.store.engine.files import FATAL_EXIT, OsFile, exists, is_folder
from raykeeper.store.engine.rocks import RocksDisk

FAILING_SYNC = """
import sys
from raykeeper.store.engine.files import OsFile
file = OsFile(sys.argv[1], 4096, None)
file.write(0, b"x")
file._descriptor = 1_000_000
try:
    file.sync(512)
finally:
    print("still here")
"""


def test_a_failed_fdatasync_ends_the_process(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FAILING_SYNC, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == FATAL_EXIT
    assert "fsync" in result.stderr
    assert "still here" not in result.stdout


def test_a_full_disk_is_found_when_the_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoSpace):
        OsFile(str(tmp_path / "file"), 4096, None)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data[:100]), offset))
    file = OsFile(str(tmp_path / "file"), 4096, None)
    data = bytes(range(256)) * 8
    file.write(1000, data)
    assert file.read(1000, len(data)) == data
    file.close()


def test_what_the_background_raises_is_raised_to_the_one_who_waits() -> None:
    def fail() -> None:
        raise NoSpace("full")

    wait = RocksDisk().in_background(fail)
    with pytest.raises(NoSpace):
        wait()
    RocksDisk().in_background(lambda: None)()


def test_what_the_disk_refuses_to_tell_of_is_neither_there_nor_missing(tmp_path: Path) -> None:
    """A symbolic link to itself is refused like a sector that is bad; ``os.path`` says that there is nothing."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name, there, folder in [
        ("", True, True),
        ("file", True, False),
        ("file/x", False, False),
        ("nothing", False, False),
        ("nothing/x", False, False),
        ("dangling", False, False),
    ]:
        path = str(tmp_path / name)
        assert (exists(path), is_folder(path)) == (there, folder), name
    for name in ("loop", "loop/x"):
        for ask in (exists, is_folder):
            with pytest.raises(OSError, match="symbolic links"):
                ask(str(tmp_path / name))
