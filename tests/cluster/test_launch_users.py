"""Launching a cluster in which users are needed: the spec names the user that launches it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from raykeeper import AuthFailed, PermissionDenied, SessionExpired


def test_a_spec_names_the_user_that_a_launch_needs(
    clusters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's\n")
    by_file = {"user": "root", "password_file": str(secret)}
    cluster = clusters.launch(members=1, **by_file)  # users are not needed yet
    users = cluster.client().users
    for name in ("root", "ann"):
        users.add(name, f"{name}'s")
    users.grant_role("root", "root")
    users.enable()
    with contextlib.suppress(SessionExpired):  # of the session from before
        cluster.client().put("a", "0")
    cluster.client().put("a", "1")  # of the user who launched
    cluster.configure(compaction={"keep": 60})

    for _ in range(2):  # it runs; then it is started from its data
        with pytest.raises(AuthFailed) as refused:
            clusters.launch()
        assert "`user`" in str(refused.value)
        assert "`password_file`" in str(refused.value)
        monkeypatch.setenv("KEEPER_PASSWORD", "wrong")
        by_variable = {"user": "root", "password_env": "KEEPER_PASSWORD"}
        with pytest.raises(AuthFailed):
            clusters.launch(**by_variable)
        monkeypatch.setenv("KEEPER_PASSWORD", "ann's")
        anns = clusters.launch(**{**by_variable, "user": "ann"})
        with pytest.raises(PermissionDenied):
            anns.configure(compaction={"keep": 61})
        with pytest.raises(PermissionDenied):
            clusters.launch(proxy="one", proxy_listen="127.0.0.1:0", **{**by_variable, "user": "ann"})
        monkeypatch.setenv("KEEPER_PASSWORD", "root's")
        again = clusters.launch(**by_variable)
        assert again.client().get("a").raw == b"1"
        assert again.configure(compaction={"keep": 62}).compaction.keep == 62
        again.shutdown()

    spec = tmp_path / "cluster.yaml"
    spec.write_text(f"name: {clusters.name}\ndata_dir: {clusters.data_dir}\nsupervised: false\n")
    place = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "XDG_STATE_HOME": str(tmp_path)}

    def up(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raykeeper", "up", str(spec)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**place, **environment},
        )

    refusal = up()
    assert refusal.returncode == 1
    assert "password_file" in refusal.stderr
    assert up(RAYKEEPER_USER="root", RAYKEEPER_PASSWORD_FILE=str(secret)).returncode == 0
    with spec.open("a") as file:
        file.write(f"user: root\npassword_file: {secret}\n")
    assert up().returncode == 0
