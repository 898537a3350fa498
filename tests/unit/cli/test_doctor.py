"""`doctor`: what it makes of what it finds, and that it finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raykeeper import ClusterNotFound
from raykeeper.actors.cluster.node_probe import LaneProbe, NodeFacts, file_system_of, probe
from raykeeper.cli import doctor, main
from raykeeper.cli.json_forms import FORMS, misfit
from raykeeper.limits import DOCTOR_FREE_BYTES, DOCTOR_MAX_SYNC_S, DOCTOR_MIN_FILES, DOCTOR_SLOW_SYNC_S

HERE = ("3.11", "2.60", "1")
SOUND = NodeFacts("h", 100.0, HERE, 1 << 20, -1, "/d", "ext4", DOCTOR_FREE_BYTES, 0.001, 0.002, "")


def verdicts(facts: NodeFacts) -> dict[str, str]:
    return {each.check: each.verdict for each in doctor.judge_node("n", facts, HERE, 99.0, 101.0)}


def test_a_sound_node_has_nothing_to_mend() -> None:
    findings = list(doctor.judge_node("n", SOUND, HERE, 99.0, 101.0))
    assert {each.verdict for each in findings} == {"ok"}
    assert not any(each.remedy for each in findings)
    assert {each.check for each in findings} == {"versions", "disk", "space", "sync", "clock", "limits"}


@pytest.mark.parametrize(
    ("changed", "check", "verdict"),
    [
        ({"versions": ("3.11", "2.61", "1")}, "versions", "failed"),
        ({"file_system": "tmpfs"}, "disk", "failed"),
        ({"file_system": "nfs4"}, "disk", "warning"),
        ({"disk_error": "/d: Permission denied"}, "disk", "failed"),
        ({"free_bytes": DOCTOR_FREE_BYTES - 1}, "space", "warning"),
        ({"sync_median_s": DOCTOR_SLOW_SYNC_S * 2}, "sync", "warning"),
        ({"sync_median_s": DOCTOR_MAX_SYNC_S * 2}, "sync", "failed"),
        ({"clock": 97.0}, "clock", "warning"),
        ({"clock": 103.0}, "clock", "warning"),
        ({"open_files": DOCTOR_MIN_FILES - 1}, "limits", "warning"),
        ({"processes": 100}, "limits", "warning"),
    ],
    ids=str,
)
def test_each_fault_has_its_verdict_and_a_remedy(changed: dict[str, Any], check: str, verdict: str) -> None:
    facts = SOUND._replace(**changed)
    assert verdicts(facts)[check] == verdict
    assert all(each.remedy for each in doctor.judge_node("n", facts, HERE, 99.0, 101.0) if each.verdict != "ok")


def test_authentication_is_by_a_token_or_by_being_alone(tmp_path: Path) -> None:
    none = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    judge = doctor.judge_authentication
    assert judge({"RAY_AUTH_MODE": "token"}, ["10.0.0.1"]).verdict == "ok"
    assert judge({"RAY_AUTH_TOKEN": "x"}, ["10.0.0.1"]).verdict == "ok"
    assert judge({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, ["10.0.0.1"]).verdict == "warning"
    assert judge(none, ["127.0.0.1"]).verdict == "ok"
    assert judge(none, ["127.0.0.1", "10.0.0.2"]).verdict == "warning"


def test_without_ray_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(address: object) -> None:
        raise ClusterNotFound("no Ray runs on this machine")

    monkeypatch.setattr(doctor, "join", nobody)
    result = CliRunner().invoke(main.cli, ["doctor", "-o", "json"])
    assert result.exit_code == 1
    assert misfit(FORMS["doctor"], json.loads(result.stdout)) == ""
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["check"], finding["verdict"]) == ("ray", "failed")
    assert finding["remedy"]


def test_the_disk_of_a_node_is_tried_where_the_data_is_to_be(tmp_path: Path) -> None:
    facts = probe(str(tmp_path / "not" / "yet"))
    assert (facts.folder, facts.disk_error) == (str(tmp_path), "")
    assert 0 < facts.sync_median_s <= facts.sync_worst_s
    assert facts.free_bytes > 0
    assert os.listdir(tmp_path) == []


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nx {tmp_path} tmpfs rw 0 0\ny {tmp_path}/a\\040b nfs4 rw 0 0\n")
    (tmp_path / "a b").mkdir()
    assert file_system_of("/", str(mounts)) == "ext4"
    assert file_system_of(str(tmp_path), str(mounts)) == "tmpfs"
    assert file_system_of(str(tmp_path / "a b" / "c"), str(mounts)) == "nfs4"
    assert file_system_of("/", str(tmp_path / "none")) == ""


def test_a_port_is_opened_and_reached() -> None:
    one, two = LaneProbe(), LaneProbe()
    place = one.listen("", "127.0.0.1", (0, 0))
    assert isinstance(place, tuple)
    said = two.dial({"there": place, "nobody": ("127.0.0.1", 1)})
    assert (said["there"], bool(said["nobody"])) == ("", True)
    taken = two.listen("", "127.0.0.1", (place[1], place[1]))
    assert isinstance(taken, str)
    assert str(place[1]) in taken
    assert isinstance(two.listen("no-such-interface", "127.0.0.1", (0, 0)), str)
