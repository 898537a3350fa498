"""Which Ray runs on this machine: a note that Ray leaves, and what is to be made of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.patience import PATIENCE
from raykeeper.actors import ray_local, ray_session
from raykeeper.actors.deadline import covering
from raykeeper.errors import ClusterNotFound, Unavailable


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses of Rays whose processes can be seen."""
    from ray._private import services

    seen: set[str] = set()
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: seen)
    return seen


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


GONE = "127.0.0.1:1"


def test_a_note_counts_if_somebody_listens_there(processes: set[str], listening: str, note: Path) -> None:
    note.write_text(listening)
    assert ray_local.running_here() == listening


@pytest.mark.parametrize("left", [GONE, "", "auto", "no address", "é:1", "127.0.0.1:99999999"])
def test_a_note_that_was_left_behind_hides_nobody(left: str, processes: set[str], listening: str, note: Path) -> None:
    note.write_text(left)
    assert ray_local.running_here() == ""
    processes.add(listening)
    assert ray_local.running_here() == listening
    processes.add(GONE)
    assert ray_local.running_here() == listening


def test_of_several_none_is_meant(processes: set[str], listening: str, note: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        processes.update((listening, f"127.0.0.1:{server.getsockname()[1]}"))
        assert ray_local.running_here() == ""
        note.write_text(listening)
        assert ray_local.running_here() == listening


def test_the_folder_is_the_one_that_ray_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_ray_address_file

    for names in ({}, {"TMPDIR": "/a"}, {"RAY_TMPDIR": "/b"}, {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}):
        for name in ("TMPDIR", "RAY_TMPDIR"):
            monkeypatch.delenv(name, raising=False)
        for name, folder in names.items():
            monkeypatch.setenv(name, folder)
        assert str(ray_local.ray_note()) == get_ray_address_file(None)


def test_what_means_something_to_ray_is_let_pass_and_a_silent_address_is_not() -> None:
    for address in ("auto", "anyscale://x"):
        ray_local.check_reachable(address)
    with pytest.raises(ClusterNotFound, match="no Ray cluster can be reached at"):
        ray_local.check_reachable(GONE)


def test_a_ray_that_lets_nobody_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(ray_session, "_attach", lambda address: done.wait(PATIENCE))
    monkeypatch.setattr(ray_session, "check_reachable", lambda address: None)
    try:
        with covering(0.05), pytest.raises(Unavailable, match=r"the Ray at 10\.0\.0\.1:7 did not accept"):
            ray_session.join_ray("10.0.0.1:7")
    finally:
        done.set()


@pytest.mark.parametrize("address", [None, "", "auto"])
def test_auto_means_the_same_as_no_address(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Ray's own way would be to believe a note, though it may be of a Ray that is gone."""
    joined: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session, "running_here", lambda: "10.0.0.1:7")
    monkeypatch.setattr(ray_session, "check_reachable", lambda address: None)
    monkeypatch.setattr(ray_session, "_attach", joined.append)
    ray_session.join_ray(address)
    monkeypatch.setenv("RAY_ADDRESS", address or "")
    ray_session.join_ray()
    assert joined == ["10.0.0.1:7"] * 2


@pytest.mark.parametrize(
    "address",
    ["ray://", "ray://host", "://", ":", "::", "host", "host:", "host:\u0661", " ", "-x", "\udcff", "a\nb", "/"],
)
def test_what_is_no_address_does_not_come_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_attach", lambda address: pytest.fail(f"Ray was given {address!r}"))
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterNotFound, match=r"such as 10\.0\.0\.1:6379"):
        ray_session.join_ray(address)


def test_the_look_up_of_a_name_is_inside_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver knows no timeout."""
    end = threading.Event()
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_local.socket, "create_connection", lambda place, patience: end.wait(PATIENCE))
    try:
        with covering(0.05), pytest.raises(Unavailable, match="in time"):
            ray_session.join_ray("name.invalid:6379")
        assert not end.is_set()
    finally:
        end.set()


@pytest.mark.parametrize(
    ("names", "may"), [(["init", "bash"], False), (["init", "raylet"], True), (["gcs_server"], True), ([], True)]
)
def test_a_look_at_the_names_of_processes_rules_most_machines_out(
    names: list[str], may: bool, note: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(names, 1):
        (tmp_path / "proc" / str(number)).mkdir(parents=True)
        (tmp_path / "proc" / str(number) / "comm").write_text(f"{name}\n")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "4711").mkdir()  # one that has just ended
    assert ray_local.may_run_here(str(tmp_path / "proc")) is may
    assert ray_local.may_run_here(str(tmp_path / "nowhere"))


def test_a_ray_that_was_noted_and_listens_may_run(listening: str, note: Path, tmp_path: Path) -> None:
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "proc" / "1" / "comm").write_text("init\n")
    note.write_text(listening)
    assert ray_local.may_run_here(str(tmp_path / "proc"))
