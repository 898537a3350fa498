"""What all commands share: their exit status, and what they say on standard error."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lab.commands import FakeClient, good, run
from raykeeper import ClusterNotFound, errors
from raykeeper.actors.client.results import PutResult
from raykeeper.actors.deadline import time_left
from raykeeper.cli import keys


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.RequestTimeout, errors.InvalidArgument, ClusterNotFound])
def test_a_keeper_error_is_one_line_and_status_one(kv: FakeClient, kind: type[errors.KeeperError]) -> None:
    kv.answer = kind("it went\nwrong")
    result = run("get", "a")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "raykeeper: it went wrong\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["get", "a", "b", "--prefix"],
        ["put"],
        ["fly"],
        ["get", "a", "-o", "xml"],
        ["get", "a", "--limit", "-1"],
    ],
)
def test_bad_usage_is_status_two(kv: FakeClient, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert kv.asked == []


@pytest.mark.parametrize("arguments", ["get --timeout 5", "get --timeout 5 k --limit x", "lock --timeout 5"])
def test_bad_usage_leaves_no_deadline(kv: FakeClient, arguments: str) -> None:
    """The process may go on: Click closes no context whose arguments are wrong."""
    result = run(*arguments.split())
    assert (result.exit_code, time_left()) == (2, float("inf"))


def test_the_timeout_covers_the_whole_command(kv: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float] = []
    monkeypatch.setattr(keys, "open_keys", lambda *_: left.append(time_left()) or kv)
    good("get", "k", "--timeout", "1000")
    assert 0 < left[0] <= 1000


def test_control_c_is_status_130(kv: FakeClient) -> None:
    kv.answer = KeyboardInterrupt()
    assert run("get", "a").exit_code == 130


def test_a_wrong_spec_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "c.yaml").write_text("member: 3\n")
    result = run("up", str(tmp_path / "c.yaml"))
    assert result.exit_code == 1
    assert result.stderr.endswith("c.yaml: member: expected a known field; did you mean members?\n")


def test_every_command_says_on_stderr_in_one_line_what_the_package_logs(
    kv: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(*_: object) -> None:
        try:
            raise LookupError("x")
        except LookupError:
            logging.getLogger("raykeeper.client").exception("the callback of a request failed")

    monkeypatch.setattr(FakeClient, "__exit__", close)
    kv.answer = PutResult(7, None)
    result = run("put", "a", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == "raykeeper: error: the callback of a request failed\n"


def test_a_bug_is_one_line_and_its_traceback_a_file_that_is_named(
    kv: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kv.answer = LookupError("a\nb")
    result = run("put", "a", "1")
    assert result.exit_code == 1
    (file,) = tmp_path.iterdir()
    assert result.stderr == f"raykeeper: a bug: LookupError: a b; {file} has the traceback, for a report\n"
    text = file.read_text()
    assert text.startswith("Traceback")
    assert text.endswith("LookupError: a\nb\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    result = run("put", "a", "1")
    assert (result.exit_code, result.stderr) == (1, "raykeeper: a bug: LookupError: a b\n")
