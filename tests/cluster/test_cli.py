"""The command `raykeeper` as a process of its own, against a real cluster; and the Ray head that it can start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.tools import wait_until
from raykeeper.cli import ray_head
from raykeeper.cli.ray_head import RayHead


def run(*arguments: str, stdin: bytes = b"", status: int = 0, **environment: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "raykeeper.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def test_a_cluster_from_up_to_down(clusters: Any, local_ray: Path, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    (tmp_path / "c.yaml").write_text(f"name: {clusters.name}\ndata_dir: {clusters.data_dir}\n")
    place = {"RAY_ADDRESS": address, "RAYKEEPER_CLUSTER": clusters.name, "XDG_STATE_HOME": str(tmp_path)}

    up = json.loads(run("up", str(tmp_path / "c.yaml"), "-o", "json", **place))
    assert up["leader"] in {member["id"] for member in up["members"]}
    assert len(up["members"]) == 3

    assert run("put", "k", "-", stdin=b"\x00\xffv", **place) == b"OK\n"
    assert run("get", "k", "--value-only", **place) == b"\x00\xffv"
    transaction = b'version("k") = 1\n\nput k w\nget k\n\ndel k\n'
    assert run("txn", stdin=transaction, **place) == b"SUCCESS\n\nOK\n\nk\nw\n"
    assert run("txn", stdin=transaction, **place) == b"FAILURE\n\n1\n"
    status = json.loads(run("status", "-o", "json", **place))
    assert (status["revision"], status["alarms"]) == (4, [])

    assert run("put", "k", "x", "--timeout", "1e-6", status=1, **place).count(b"\n") == 1
    run("down", **place)
    gone = run("get", "k", "--timeout", "20", status=1, **place)
    assert clusters.name.encode() in gone

    run("up", str(tmp_path / "c.yaml"), **place)
    assert json.loads(run("get", "k", "-o", "json", **place))["revision"] == 4
    run("down", "--destroy", "--yes", **place)
    assert not list(clusters.data_dir.glob(f"{clusters.name}/*"))


def test_the_head_lives_until_it_is_stopped(local_ray: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head, "_ray_runs", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the tests' own Ray goes on
    options = ("--port=0", f"--temp-dir={scratch / 'head'}", "--num-cpus=1", "--object-store-memory=100000000")
    head = RayHead(scratch / "state", options)
    assert not head.runs()
    assert head.start_if_none_runs()
    try:
        again = RayHead(scratch / "state")
        assert again.runs()
        assert not again.start_if_none_runs()
        address = again.address()
        assert address
        joined = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(len(ray.nodes()))"
        said = subprocess.run(
            [sys.executable, "-c", joined, address], capture_output=True, check=True, timeout=60, text=True
        )
        assert said.stdout == "1\n"
    finally:
        head.stop()
    assert not head.runs()
    assert head.address() is None
    left = ["pgrep", "-f", str(scratch / "head")]
    wait_until(lambda: subprocess.run(left, check=False, capture_output=True).returncode == 1, what="all of it gone")
    head.stop()  # nothing to do


def test_a_head_that_cannot_start_says_why(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head, "_ray_runs", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    head = RayHead(scratch / "bad", ("--num-cpus=many",))
    with pytest.raises(ray_head.ClusterNotFound, match=r"Ray did not start: .*many"):
        head.start_if_none_runs()
    assert not head.runs()


def test_a_newcomer_whose_home_has_a_token_is_let_in(
    local_ray: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any local Ray leaves a token at home; a head that starts then demands it, also of who comes by its address."""
    home = scratch / "newcomer"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("a" * 64)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    (scratch / "newcomer-t").mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch / "newcomer-t"))
    monkeypatch.setattr(ray_head, "_ray_runs", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the tests' own Ray goes on
    options = ("--port=0", "--num-cpus=1", "--object-store-memory=100000000")
    head = RayHead(scratch / "newcomer", options)
    assert head.start_if_none_runs()
    note = scratch / "newcomer-t" / "ray" / "ray_current_cluster"
    try:
        place = {"RAY_ADDRESS": str(head.address()), "XDG_STATE_HOME": str(scratch / "none")}
        spec = scratch / "newcomer.yaml"
        spec.write_text(f"name: new\nmembers: 1\ndata_dir: {scratch / 'newcomers'}\n")
        run("up", str(spec), **place)
        run("put", os.fsdecode(b"k\xff"), os.fsdecode(b"\xfe"), "--cluster", "new", **place)
        assert run("get", os.fsdecode(b"k\xff"), "--value-only", "--cluster", "new", **place) == b"\xfe"
        assert b"RAY_AUTH_MODE is 'disabled'" in run("status", status=1, RAY_AUTH_MODE="disabled", **place)
        token.write_text("b" * 64)
        assert b"auth_token is another one" in run("status", status=1, **place)
        token.unlink()
        assert b"copy it from the user or host" in run("status", status=1, **place)
        token.write_text("a" * 64)
        assert note.exists()
        monkeypatch.setenv("TMPDIR", str(scratch / "elsewhere"))  # the one that stops it may see other folders
        run("down", "--cluster", "new", **place)
    finally:
        head.stop()
    assert not note.exists()
