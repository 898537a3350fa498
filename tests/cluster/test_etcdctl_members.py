"""etcdctl's commands for members and leaders, at the proxies of a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.etcd_clients import Command, api3, etcdctl_program
from lab.ray.proxies import Proxies
from lab.ray.tools import wait_until

pytestmark = pytest.mark.survival


@pytest.fixture
def etcdctl(clusters: Any) -> Iterator[tuple[Any, Command]]:
    """A cluster with a proxy for each member, and etcdctl for all of them, with time enough to start a member."""
    program = etcdctl_program("3.5")
    cluster = clusters.launch()
    proxies = Proxies(cluster)
    try:
        endpoints = [proxies.start() for _ in range(3)]
        command = [program, f"--endpoints={','.join(endpoints)}", "--command-timeout=60s"]
        yield cluster, Command(command, endpoints[0], api3())
    finally:
        proxies.end()


def read(etcdctl: Command, *arguments: str) -> Any:
    return json.loads(etcdctl.said(*arguments, "-w", "json"))


def members(etcdctl: Command) -> dict[int, dict[str, Any]]:
    return {each["ID"]: each for each in read(etcdctl, "member", "list")["members"]}


def leaders(etcdctl: Command) -> set[int]:
    """Whom the endpoints take for the leader."""
    return {each["Status"]["leader"] for each in read(etcdctl, "endpoint", "status")}


def promoted(etcdctl: Command, member: int) -> bool:
    """Ask for it once; not yet, while it has not caught up."""
    ran = etcdctl.run("member", "promote", f"{member:x}", timeout=120)
    assert ran.code == 0 or "can only promote a learner member which is in sync with leader" in ran.err, ran.err
    return ran.code == 0


def test_members_come_and_go_and_hand_over(etcdctl: tuple[Any, Command], clusters: Any) -> None:
    cluster, ctl = etcdctl
    kv = cluster.client()
    for number in range(50):
        kv.put(f"k/{number}", b"x")
    there = members(ctl)
    assert sorted(each["name"] for each in there.values()) == ["m1", "m2", "m3"]
    wait_until(lambda: all(each.get("clientURLs") for each in members(ctl).values()), what="a proxy for each member")
    assert ctl.said("endpoint", "health", "--cluster").count("is healthy") == 3
    hashes = {each["HashKV"]["hash"] for each in read(ctl, "endpoint", "hashkv", f"--rev={kv.revision()}")}
    assert len(hashes) == 1
    for each in read(ctl, "endpoint", "status"):
        assert 0 < each["Status"]["dbSizeInUse"] <= each["Status"]["dbSize"]

    (before,) = leaders(ctl)
    after = next(id for id in there if id != before)
    assert "Leadership transferred" in ctl.said("move-leader", f"{after:x}")
    wait_until(lambda: leaders(ctl) == {after}, what="the leader that was asked for")
    assert "bad leader transferee" in ctl.run("move-leader", "77").err

    ctl.said("member", "add", "another", "--learner", "--peer-urls=http://127.0.0.1:1", timeout=120)
    added = next(each for id, each in members(ctl).items() if id not in there)
    assert added["isLearner"]
    wait_until(lambda: promoted(ctl, added["ID"]), what="it has caught up, and is promoted")
    assert not members(ctl)[added["ID"]].get("isLearner")
    ctl.said("member", "remove", f"{added['ID']:x}", timeout=120)
    assert members(ctl).keys() == there.keys()

    ctl.said("member", "add", "a-voter", "--peer-urls=http://127.0.0.1:1", timeout=120)
    (voter,) = members(ctl).keys() - there.keys()
    wait_until(lambda: not members(ctl)[voter].get("isLearner"), what="it has caught up, and is a voter by itself")
    assert clusters.folder(voter).exists()
    ctl.said("member", "remove", f"{voter:x}", timeout=120)
    assert members(ctl).keys() == there.keys()
    wait_until(lambda: not clusters.folder(voter).exists(), what="its data is deleted after the answer")
    assert "member not found" in ctl.run("member", "promote", f"{voter:x}").err
    assert ctl.said("get", "k/", "--prefix", "--count-only", "-w", "fields").count('"Count" : 50') == 1
