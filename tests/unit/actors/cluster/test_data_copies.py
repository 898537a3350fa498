"""Telling a member's data from a copy of it, on a real disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raykeeper.actors.cluster import node_storage
from raykeeper.store.data_copies import Served, note_served, read_served
from raykeeper.store.data_dir import Identity


def folder(tmp_path: Path, name: str = "m1") -> str:
    path = tmp_path / name
    path.mkdir()
    return str(path)


def test_it_counts_how_often_a_member_has_served(tmp_path: Path) -> None:
    data = folder(tmp_path)
    assert read_served(data) == Served()
    for times in (1, 2, 3):
        note_served(data)
        served = read_served(data)
        assert (served.times, served.copied) == (times, False)
    assert os.listdir(data) == ["served.json"]


def test_a_copy_is_known_and_what_was_moved_is_none(tmp_path: Path) -> None:
    data = folder(tmp_path)
    note_served(data)
    shutil.copytree(data, tmp_path / "copy")
    assert read_served(str(tmp_path / "copy")).copied
    assert not read_served(data).copied
    os.rename(data, tmp_path / "moved")
    assert not read_served(str(tmp_path / "moved")).copied


def test_a_copy_that_was_started_is_the_data_from_then_on(tmp_path: Path) -> None:
    data = folder(tmp_path)
    note_served(data)
    copy = str(tmp_path / "copy")
    shutil.copytree(data, copy)
    note_served(copy)
    assert (read_served(copy).times, read_served(copy).copied) == (2, False)
    assert read_served(data).times == 1


def test_what_cannot_be_read_or_written_is_no_note(tmp_path: Path) -> None:
    data = folder(tmp_path)
    Path(data, "served.json").write_bytes(b"{")
    assert read_served(data) == Served()
    note_served(data)
    assert read_served(data).times == 1
    note_served(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_survey_tells_of_it(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, Identity(cluster_name="x", cluster=7, member=4, name="m4"))
    note_served(f"{base}/m4")
    shutil.copytree(tmp_path / "x", tmp_path / "other" / "x")
    [found] = node_storage.survey(str(tmp_path), "x").found
    [copy] = node_storage.survey(str(tmp_path / "other"), "x").found
    assert (found.served.times, found.served.copied) == (1, False)
    assert (copy.served.times, copy.served.copied) == (1, True)


def test_a_note_that_the_disk_refuses_to_read_is_not_written_anew(tmp_path: Path) -> None:
    """Else the folder would have served once, and the oldest copy would be newer. A symbolic link to itself is refused
    like a sector that is bad."""
    data = folder(tmp_path)
    note = Path(data, "served.json")
    note_served(data)
    note_served(data)
    note.rename(Path(data, "kept"))
    note.symlink_to(note.name)
    with pytest.raises(OSError, match="symbolic links"):
        read_served(data)
    with pytest.raises(OSError, match="symbolic links"):
        note_served(data)
    assert os.readlink(note) == note.name, "nothing was written"
    Path(data, "kept").rename(note)
    note_served(data)
    assert (read_served(data).times, read_served(data).copied) == (3, False)
