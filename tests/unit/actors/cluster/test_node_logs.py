"""Logs of a member on a node: its own lines over all files, and what its dead processes wrote."""

from __future__ import annotations

from pathlib import Path

from raykeeper.actors.cluster.node_logs import read_logs_in


def line(pid: int, text: str) -> str:
    return f"2026-11-30 05:00:00,000 INFO {pid} raykeeper.member c/m1: {text}\n"


def test_lines_of_all_files_in_order_and_crashes_by_their_process(tmp_path: Path) -> None:
    (tmp_path / "raykeeper-c-m1.log.2").write_text(line(11, "oldest"))
    (tmp_path / "raykeeper-c-m1.log.1").write_text(line(11, "older"))
    (tmp_path / "raykeeper-c-m1.log").write_text(line(12, "new") + line(12, "newest"))
    (tmp_path / "raykeeper-c-m2.log").write_text(line(13, "another member"))
    (tmp_path / "worker-a-b-11.err").write_text(":actor_name:Member\nFatal Python error: Segmentation fault\n\n")
    (tmp_path / "worker-a-b-12.err").write_text(":job_id:01000000\n:actor_name:Member\n")
    (tmp_path / "worker-a-b-13.err").write_text("not of m1\n")
    own, crash = read_logs_in(str(tmp_path), "c", "m1", 3)
    assert [each.rpartition(": ")[2] for each in own.lines] == ["older", "new", "newest"]
    assert own.file.endswith("raykeeper-c-m1.log")
    assert crash.file.endswith("worker-a-b-11.err")
    assert crash.lines == ["Fatal Python error: Segmentation fault"]


def test_a_node_without_the_member_has_nothing(tmp_path: Path) -> None:
    assert read_logs_in(str(tmp_path), "c", "m1", 3) == []
    assert read_logs_in(str(tmp_path / "none"), "c", "m1", 3) == []
