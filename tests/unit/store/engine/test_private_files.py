"""What is written is for its owner alone, whatever the umask; what is wider is narrowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from raykeeper.store.data_copies import note_served
from raykeeper.store.data_lock import locked
from raykeeper.store.engine.private_files import narrow
from raykeeper.store.engine.rocks import RocksDisk


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in sorted(folder.rglob("*"))}


def test_whatever_a_disk_makes_is_its_owners(tmp_path: Path, umask: int) -> None:
    disk = RocksDisk(sync_journal=str(tmp_path / "journal"))
    folder = str(tmp_path / "a" / "b")
    disk.make_folder(folder)
    disk.append(f"{folder}/appended", b"1")
    disk.replace(f"{folder}/replaced", b"1")
    disk.open_file(f"{folder}/block", 4096).close()
    disk.rename(f"{folder}/appended", f"{folder}/renamed")
    note_served(folder)
    with locked(folder, "m1"):
        pass
    found = modes(tmp_path)
    made = ("renamed", "replaced", "block", "served.json", "m1.lock")
    assert set(found) == {"journal", "a", "a/b", *(f"a/b/{name}" for name in made)}
    assert {name: mode for name, mode in found.items() if mode not in (0o600, 0o700)} == {}
    assert found["a"] == found["a/b"] == 0o700


def test_a_folder_that_is_wider_is_narrowed_with_all_in_it(tmp_path: Path) -> None:
    folder, outside = tmp_path / "m1", tmp_path / "outside"
    (folder / "state-1").mkdir(parents=True)
    outside.write_text("not ours")
    outside.chmod(0o644)
    (folder / "state-1" / "000001.sst").write_bytes(b"data")
    (folder / "link").symlink_to(outside)
    for path, mode in ((folder / "state-1" / "000001.sst", 0o666), (folder / "state-1", 0o755), (folder, 0o750)):
        path.chmod(mode)
    assert narrow(str(folder), deep=True)
    assert {name: mode for name, mode in modes(folder).items() if name != "link"} == {
        "state-1": 0o700,
        "state-1/000001.sst": 0o600,
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644, "a link leads nowhere"
    assert not narrow(str(folder), deep=True), "once is enough"


def test_only_the_folder_itself_when_asked(tmp_path: Path) -> None:
    inner = tmp_path / "base" / "other"
    inner.mkdir(parents=True)
    inner.chmod(0o755)
    inner.parent.chmod(0o755)
    assert narrow(str(inner.parent), deep=False)
    assert modes(tmp_path) == {"base": 0o700, "base/other": 0o755}
