"""Patroni at two proxies of a cluster in which the leader and proxies die: PostgreSQL keeps its primary, and gets
another one only when that dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lab.patroni import PatroniNode, rows, two_patroni_nodes, wait_for
from lab.ray.proxies import Proxies
from lab.ray.tools import kill, leader, serving, wait_until

pytestmark = pytest.mark.survival


def timeline(node: PatroniNode) -> int:
    """PostgreSQL's; each new primary begins another one."""
    [(number,)] = node.query("select timeline_id from pg_control_checkpoint()")
    return int(number)


def heard_again(nodes: Sequence[PatroniNode]) -> None:
    """Both have reached the store since now."""
    now = time.time() + 1.0  # Patroni says whole seconds
    wait_for(lambda: all(node.last_heard() > now for node in nodes), nodes)


def test_a_primary_outlives_leaders_and_proxies(clusters: Any) -> None:
    cluster = clusters.launch()
    proxies = Proxies(cluster)
    try:
        endpoints = [proxies.start(), proxies.start()]
        with two_patroni_nodes(endpoints) as nodes:
            first, second = nodes
            first.start()
            wait_for(lambda: first.has_role("primary"), nodes)
            second.start()
            wait_for(lambda: second.has_role("replica"), nodes)
            first.query("create table t (n int)")
            before, done = timeline(first), 0

            def survives(fault: Callable[[], object]) -> None:
                nonlocal done
                fault()
                heard_again(nodes)
                done += 1
                first.query(f"insert into t values ({done})")
                wait_for(lambda: len(rows(second)) == done, nodes)
                assert timeline(first) == before

            survives(lambda: kill(leader(cluster).pid))
            wait_until(lambda: serving(cluster), what="three members")
            for endpoint, number in zip(endpoints, (signal.SIGKILL, signal.SIGTERM), strict=True):
                survives(lambda: proxies.kill(endpoint, number))  # noqa: B023
                survives(lambda: proxies.start(endpoint))  # noqa: B023
            proxies.kill(endpoints[0])
            kill(leader(cluster).pid)
            first.kill()
            wait_for(lambda: second.has_role("primary"), nodes)
            wait_for(lambda: second.query("select pg_is_in_recovery()") == [(False,)], nodes)
            second.query("insert into t values (0)")
            assert proxies.start(endpoints[0]) == endpoints[0]
            first.start()
            wait_for(lambda: first.has_role("replica"), nodes)
            wait_for(lambda: rows(first) == [(n,) for n in range(done + 1)], nodes)
    finally:
        proxies.end()
