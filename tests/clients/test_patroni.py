"""Patroni keeps its cluster of PostgreSQL in our store, by etcd's API: the primary is killed, and the replica takes
over."""

from __future__ import annotations

import pytest

from lab.http2.etcd_port import EtcdPort
from lab.patroni import rows, two_patroni_nodes, wait_for

pytestmark = pytest.mark.survival


def test_the_replica_takes_over_and_the_old_primary_follows(port: EtcdPort) -> None:
    with two_patroni_nodes([port.endpoint]) as nodes:
        first, second = nodes
        first.start()
        wait_for(lambda: first.has_role("primary"), nodes)
        second.start()
        wait_for(lambda: second.has_role("replica"), nodes)
        first.query("create table t (n int)")
        first.query("insert into t values (1)")
        wait_for(lambda: rows(second) == [(1,)], nodes)
        with port.proxy.member.client() as kv:
            assert kv.get("/service/demo/leader").text == "one"
        first.kill()
        wait_for(lambda: second.has_role("primary"), nodes)
        wait_for(lambda: second.query("select pg_is_in_recovery()") == [(False,)], nodes)  # it is promoted
        second.query("insert into t values (2)")
        first.start()
        wait_for(lambda: first.has_role("replica"), nodes)
        wait_for(lambda: rows(first) == [(1,), (2,)], nodes)
        assert not first.has_role("primary")
