"""A lone read asks the leader and one voter at once: what a deposed leader has is not believed."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import ray

from lab.patience import PATIENCE
from lab.ray.faults import Faults, cut
from lab.ray.tools import Made, leader, serving, wait_until
from raykeeper import connect

pytestmark = pytest.mark.survival

ROUNDS = 3
SLOW = -0.98
"""Of a clock that counts a fiftieth of the time: who goes by it leads for minutes without hearing of a quorum."""


@ray.remote(num_cpus=0)
def write(name: str, value: str) -> int:
    """By another process, whose hub finds the new leader."""
    return connect(name).put("x", value, timeout=PATIENCE).revision


def hub_of(kv: Any) -> Any:
    return kv._known_hub()


def lone_reads(kv: Any) -> Any:
    return hub_of(kv)._dispatch_core.confirmed_reads


def read_alone(kv: Any) -> None:
    """Read until a voter has confirmed one more read of this process: so the next one goes this way, too, and to the
    leader."""
    before = lone_reads(kv).confirmed

    def confirmed() -> bool:
        kv.get("x", timeout=PATIENCE)
        return bool(lone_reads(kv).confirmed > before)

    wait_until(confirmed, PATIENCE, "a read that a voter has confirmed")


def test_a_deposed_leader_answers_and_is_not_believed(clusters: Made, faults: Faults) -> None:
    """No frame of the other members reaches it, nor any of its own them, and its clock is slow: so it leads on in its
    old term, after another one was elected and has acknowledged a write. Clients reach it as before, and one that takes
    it for the leader reads."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("x", "0")
    for round_ in range(1, ROUNDS + 1):
        read_alone(kv)
        old = leader(cluster)
        others = [each for each in cluster.members() if each.id != old.id]
        reads, asked_before = lone_reads(kv), lone_reads(kv).unconfirmed
        faults.drift(old.pid, SLOW)
        faults.set(cut([old.id], [each.id for each in others]))
        try:
            ray.get(write.remote(cluster.name, str(round_)), timeout=PATIENCE)
            assert hub_of(kv)._router.leader == old.id, "nothing has told this client of another leader"
            assert kv.get("x", timeout=PATIENCE).value == str(round_).encode()
            assert reads.unconfirmed == asked_before + 1, "the deposed leader has answered, and a voter has not agreed"
            assert hub_of(kv)._router.leader != old.id
        finally:
            faults.drift(old.pid, 0.0)
            faults.heal()
        wait_until(lambda: serving(cluster, 3), PATIENCE, "whole again")
        assert leader(cluster).id != old.id
        assert kv.get("x", timeout=PATIENCE).value == str(round_).encode()
    assert faults.counts()["drop"]


def test_a_paused_leader_that_is_asked_in_a_later_term_is_not_believed(clusters: Made) -> None:
    """It is paused, another one is elected and acknowledges a write, and a client that still takes it for the leader
    reads: it goes on with that read in its socket. Mostly it finds its successor's frames there, too, and does not
    answer at once; whether it does is chance here."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("x", "0")
    read_alone(kv)
    for round_ in range(1, ROUNDS + 1):
        old = leader(cluster)
        hub = hub_of(kv)

        def lead_known(hub: Any = hub, old: Any = old) -> bool:
            kv.put("y", "to learn who leads", timeout=PATIENCE)
            return bool(hub._router.leader == old.id)

        wait_until(lead_known, PATIENCE, "the client knows the leader")
        outcomes: list[Any] = []
        os.kill(old.pid, signal.SIGSTOP)
        try:
            ray.get(write.remote(cluster.name, str(round_)), timeout=PATIENCE)
            reader = threading.Thread(
                target=lambda outcomes=outcomes: outcomes.append(kv.get("x", timeout=PATIENCE)), daemon=True
            )
            reader.start()
            wait_until(lambda hub=hub, outcomes=outcomes: hub.figures().in_flight or outcomes, PATIENCE, "a read")
        finally:
            os.kill(old.pid, signal.SIGCONT)
        reader.join(PATIENCE)
        assert [each.value for each in outcomes] == [str(round_).encode()]
        assert kv.get("x", timeout=PATIENCE).value == str(round_).encode()
        wait_until(lambda: serving(cluster, 3), PATIENCE, "whole again")
