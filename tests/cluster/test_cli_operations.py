"""What an operator asks of a real cluster by the shell: members one by one, settings, logs of a crash, the doctor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import ray

from lab.ray.tools import wait_until
from raykeeper.cli.json_forms import FORMS, misfit


def run(cluster: Any, *words: str, status: int | None = 0) -> str:
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": cluster.name,
    }
    done = subprocess.run(
        [sys.executable, "-m", "raykeeper", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=environment,
    )
    assert status is None or done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def said(cluster: Any, *words: str) -> Any:
    value = json.loads(run(cluster, *words, "-o", "json"))
    command = next(name for n in (2, 1) if (name := " ".join(words[:n])) in FORMS)
    assert misfit(FORMS[command], value) == ""
    return value


def run_error(cluster: Any, *words: str) -> str:
    return run(cluster, *words, status=1)


def test_members_settings_logs_and_the_doctor(clusters: Any) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    first = kv.put("k", "1").revision
    last = kv.put("k", "2").revision
    names = ["m1", "m2", "m3"]

    health = said(cluster, "endpoint", "health", "--timeout", "60")["endpoints"]
    assert [(row["endpoint"], row["healthy"]) for row in health] == [(name, True) for name in names]
    statuses = said(cluster, "endpoint", "status")["endpoints"]
    assert [row["endpoint"] for row in statuses] == names
    assert sum(row["leader"] for row in statuses) == 1
    hashes = said(cluster, "endpoint", "hashkv", "--rev", str(last))["endpoints"]
    assert len({(row["hash"], row["revision"]) for row in hashes}) == 1
    assert hashes[0]["revision"] == last
    assert said(cluster, "alarm", "list") == {"alarms": []}
    assert said(cluster, "alarm", "disarm") == {"alarms": []}

    def put_and_look() -> bool:
        kv.put("top/1", "v")
        return any(each.prefix == b"top/" and each.puts > 0 for each in cluster.top().prefixes)

    wait_until(put_and_look, what="the puts of the last seconds")
    assert list(said(cluster, "top", "-n", "1")) == ["clients", "prefixes", "slow", "silent"]
    assert said(cluster, "compact", str(last), "--physical", "--timeout", "60") == {"compacted": last}
    compacted = said(cluster, "endpoint", "hashkv")["endpoints"]
    assert {row["compact_revision"] for row in compacted} == {last}
    assert str(last) in run_error(cluster, "get", "k", "--rev", str(first), "--endpoint", "ray")
    defragmented = said(cluster, "defrag")["defragmented"]
    assert [(row["endpoint"], row["error"]) for row in defragmented] == [(name, "") for name in names]

    assert said(cluster, "config", "set", "timings.check_interval=77", "lane_ports=20000-29999") == {
        "timings.check_interval": 77.0,
        "lane_ports": "20000-29999",
    }
    assert said(cluster, "config", "get", "lane_ports") == {"lane_ports": "20000-29999"}

    victim = cluster.members()[0]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: cluster.members()[0].pid not in (0, victim.pid), what="the member is back")
    logs = said(cluster, "logs", "m1", "--timeout", "60")["logs"]
    lines = "\n".join(line for text in logs for line in text["lines"])
    assert f" {victim.pid} " in lines, "also what the process that was killed has said"
    assert "has a log of m9" in run_error(cluster, "logs", "m9", "--timeout", "60")

    # The disk of a machine that is busy with tests may be slow, which the doctor may well call a failure.
    findings = json.loads(run(cluster, "doctor", "--timeout", "120", "-o", "json", status=None))["findings"]
    checks = {finding["check"] for finding in findings}
    assert {"ray", "authentication", "versions", "disk", "space", "sync", "clock", "limits", "lanes"} <= checks
    assert {each["verdict"] for each in findings if each["check"] in ("ray", "versions", "clock", "lanes")} == {"ok"}
