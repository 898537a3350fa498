"""`endpoint`, `alarm`, `defrag` and `compact --physical` at one endpoint, with etcdctl beside them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lab.http2.etcd_port import EtcdPort, etcd_port
from raykeeper.cli import main
from raykeeper.cli.json_forms import FORMS, misfit

needs_etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy waits as long as its client does, however busy the machine is."""
    for file in ("member_calls", "etcd_backend"):
        monkeypatch.setattr(f"raykeeper.actors.proxy.{file}.PROXY_TIMEOUT_S", 120.0)


def run(port: EtcdPort, *words: str) -> Result:
    return CliRunner().invoke(main.cli, [*words, "--endpoint", port.endpoint, "--timeout", "120"])


def said(port: EtcdPort, *words: str) -> Any:
    result = run(port, *words, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    command = next(name for n in (2, 1) if (name := " ".join(words[:n])) in FORMS)
    assert misfit(FORMS[command], found) == "", (words, found)
    return found


def etcdctl(port: EtcdPort, *words: str) -> Any:
    done = subprocess.run(
        ["etcdctl", "--endpoints", port.endpoint, "-w", "json", *words],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    return json.loads(done.stdout)


@needs_etcdctl
def test_status_and_hashes_are_those_of_etcdctl(port: EtcdPort) -> None:
    port.proxy.kv.put("k", "v")
    (row,) = said(port, "endpoint", "status")["endpoints"]
    (other,) = etcdctl(port, "endpoint", "status")
    status = other["Status"]
    assert (row["member"], row["term"], row["errors"]) == (status["header"]["member_id"], status["raftTerm"], [])
    assert (row["leader"], row["learner"]) == (status["leader"] == row["member"], False)
    assert row["revision"] == status["header"]["revision"]
    (mine,) = said(port, "endpoint", "hashkv")["endpoints"]
    (theirs,) = etcdctl(port, "endpoint", "hashkv")
    assert mine["hash"] == theirs["HashKV"]["hash"]
    assert mine["compact_revision"] == theirs["HashKV"].get("compact_revision", 0)


def test_health_is_said_and_its_absence_is_an_error(port: EtcdPort) -> None:
    (row,) = said(port, "endpoint", "health")["endpoints"]
    assert (row["healthy"], row["error"]) == (True, "")
    assert "is healthy: successfully committed proposal: took = " in run(port, "endpoint", "health").stdout
    gone = CliRunner().invoke(main.cli, ["endpoint", "health", "--endpoint", "127.0.0.1:1"])
    assert gone.exit_code == 1
    assert "127.0.0.1:1 is unhealthy" in gone.stdout


def test_alarms_are_listed_and_ended(port: EtcdPort) -> None:
    assert said(port, "alarm", "list") == {"alarms": []}
    (status,) = said(port, "endpoint", "status")["endpoints"]
    gateway_alarm(port, "ACTIVATE", status["member"])
    alarms = [{"member": status["member"], "alarm": "CORRUPT", "message": ""}]
    assert said(port, "alarm", "list") == {"alarms": alarms}
    assert run(port, "alarm", "list").stdout == f"memberID:{status['member']} alarm:CORRUPT\n"
    assert said(port, "alarm", "disarm") == {"alarms": alarms}
    assert said(port, "alarm", "list") == {"alarms": []}


def gateway_alarm(port: EtcdPort, action: str, member: int) -> None:
    from raykeeper.cli.etcd_gateway import Endpoint, EtcdGateway

    asked = {"action": action, "memberID": str(member), "alarm": "CORRUPT"}
    EtcdGateway(Endpoint(f"http://{port.endpoint}"), 60).call("maintenance/alarm", asked, writes=True)


def test_space_is_returned_and_history_forgotten(port: EtcdPort) -> None:
    revision = port.proxy.kv.put("c", "1").revision
    port.proxy.kv.put("c", "2")
    assert said(port, "compact", str(revision + 1), "--physical") == {"compacted": revision + 1}
    (row,) = said(port, "defrag")["defragmented"]
    assert row["error"] == ""
    assert run(port, "defrag", "m1").exit_code == 2
    past = run(port, "get", "c", "--rev", str(revision))
    assert past.exit_code == 1
    assert str(revision + 1) in past.stderr, "where history begins"
