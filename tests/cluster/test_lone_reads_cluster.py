"""A lone read asks the leader and one voter at once: what a deposed leader has is not believed."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import ray

from lab.patience import PATIENCE
from lab.ray.tools import Made, leader, serving, wait_until
from raykeeper import connect

pytestmark = pytest.mark.survival

ROUNDS = 3


@ray.remote(num_cpus=0)
def write(name: str, value: str) -> int:
    """By another process, whose hub finds the new leader."""
    return connect(name).put("x", value, timeout=PATIENCE).revision


def hub_of(kv: Any) -> Any:
    return kv._known_hub()


def confirmed_by_a_voter(kv: Any) -> bool:
    """Read once, and tell whether this process has confirmed a read in this way so far."""
    kv.get("x", timeout=PATIENCE)
    return bool(hub_of(kv)._dispatch_core.confirmed_reads.confirmed)


def test_a_paused_leader_that_is_asked_in_a_later_term_is_not_believed(clusters: Made) -> None:
    """It is paused, another one is elected and acknowledges a write, and a client that still takes it for the leader
    reads: it goes on with that read in its socket. Mostly it finds its successor's frames there, too, and does not
    answer at once; whether it does is chance here. The simulator's profile `lone reads` has leaders that do."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("x", "0")
    wait_until(lambda: confirmed_by_a_voter(kv), PATIENCE, "a read that a voter has confirmed")
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
