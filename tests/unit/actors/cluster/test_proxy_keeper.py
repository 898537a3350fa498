"""Which nodes get a proxy, over a pool that only notes what is done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.cluster.proxy_keeper import ProxyKeeper
from raykeeper.actors.proxy.proxy_actor import ProxySpec, ProxyStatus
from raykeeper.actors.ray_view import RayNode
from raykeeper.limits import PROXY_SILENT_S, PROXY_START_RETRY_S, Settings, encode_settings
from raykeeper.schema.operator_frames import MemberStatus

ALL = Settings(proxy="all")


def observation(settings: Settings | None, *nodes: str, role: str = "leader") -> Observation:
    """What a member says, if any does, and the nodes that are alive."""
    plain: dict[str, Any] = {
        "cluster_name": "x",
        "cluster": 10,
        "member": 1,
        "name": "m1",
        "role": role,
        **dict.fromkeys(("term", "leader", "commit_index", "applied_index", "last_log_index", "first_log_index"), 1),
        **dict.fromkeys(("revision", "compact_revision", "db_size", "pid"), 0),
        "voters": (1, 2, 3),
        "learners": (),
        "node": "n1",
    }
    statuses = {} if settings is None else {1: MemberStatus(**plain, settings=encode_settings(settings))}
    alive = tuple(RayNode(node, f"10.0.0.{node[1:]}", frozenset()) for node in nodes)
    return Observation(alive, {}, statuses, frozenset())


class Pool:
    """The proxies by node: serving at once, unless their node is in ``broken``."""

    def __init__(self) -> None:
        self.proxies: dict[str, ProxyStatus | None] = {}
        self.broken: set[str] = set()
        self.did: list[str] = []

    def statuses(self) -> Mapping[str, ProxyStatus | None]:
        return dict(self.proxies)

    def start(self, spec: ProxySpec, node: str) -> None:
        assert node not in self.proxies
        self.did.append(f"start {node}")
        if node not in self.broken:
            self.proxies[node] = ProxyStatus(spec, node, 1, f"http://{node}")

    def stop(self, node: str, graceful: bool) -> None:
        self.did.append(f"{'stop' if graceful else 'kill'} {node}")
        del self.proxies[node]

    def silence(self, node: str) -> None:
        self.proxies[node] = None

    def taken(self) -> list[str]:
        did, self.did = self.did, []
        return did


class Lab:
    def __init__(self) -> None:
        self.pool = Pool()
        self.keeper = ProxyKeeper("x", 10, self.pool)
        self.now = 100.0

    def keep(self, settings: Settings | None, *nodes: str, role: str = "leader", later: float = 1.0) -> list[str]:
        """One observation and one look; what was done."""
        self.keeper.set_observation(observation(settings, *nodes, role=role))
        return self.look(later)

    def look(self, later: float = 1.0) -> list[str]:
        self.now += later
        self.lines = self.keeper.keep(self.now)
        return self.pool.taken()


def test_every_node_gets_one_and_a_new_node_too() -> None:
    lab = Lab()
    assert lab.look() == [], "nothing is known yet"
    assert lab.keep(ALL, "n1", "n2") == ["start n1", "start n2"]
    assert not lab.keeper.settled
    assert lab.keep(ALL, "n1", "n2") == []
    assert lab.keeper.settled
    assert lab.keep(ALL, "n1", "n2", "n3") == ["start n3"]


def test_one_stays_where_it_is_and_moves_when_its_node_is_lost() -> None:
    lab = Lab()
    one = Settings(proxy="one")
    assert lab.keep(one, "n2", "n3") == ["start n2"]
    assert lab.keep(one, "n1", "n2", "n3") == [], "though another comes first now"
    del lab.pool.proxies["n2"]  # with its node
    assert lab.keep(one, "n1", "n3") == ["start n1"]
    lab.pool.broken = {"n1"}
    del lab.pool.proxies["n1"]
    assert lab.keep(one, "n1", "n3") == ["start n3"], "n1 had its chance a moment ago"


def test_a_proxy_that_cannot_be_started_is_tried_again_after_a_pause() -> None:
    lab = Lab()
    lab.pool.broken = {"n1"}
    assert lab.keep(ALL, "n1") == ["start n1"]
    assert lab.keep(ALL, "n1") == []
    assert lab.keep(ALL, "n1", later=PROXY_START_RETRY_S) == ["start n1"]
    lab.pool.broken.clear()
    assert lab.keep(ALL, later=1) == []
    assert lab.keep(ALL, "n1") == ["start n1"], "a node that comes back counts as new"


def test_proxies_that_are_not_wanted_any_more_are_stopped() -> None:
    lab = Lab()
    lab.keep(ALL, "n1", "n2")
    assert lab.keep(Settings(), "n1", "n2") == [], "not by one observation"
    assert lab.look() == []
    assert lab.keep(Settings(), "n1", "n2") == ["stop n1", "stop n2"]
    assert lab.keeper.settled is False
    assert lab.keep(Settings(), "n1", "n2") == []
    assert lab.keeper.settled


def test_an_observation_that_is_older_than_a_proxy_does_not_stop_it() -> None:
    lab = Lab()
    lab.keep(Settings(), "n1")
    launch = Lab()
    launch.pool = launch.keeper._pool = lab.pool  # type: ignore[assignment]
    launch.keep(ALL, "n1")
    assert lab.pool.proxies.keys() == {"n1"}
    assert lab.look() == []
    assert lab.keep(ALL, "n1") == []
    assert lab.keep(ALL, "n1") == []


def test_changed_ones_are_restarted_one_at_a_time() -> None:
    lab = Lab()
    nodes = ("n1", "n2", "n3")
    lab.keep(ALL, *nodes)
    changed = msgspec.structs.replace(ALL, proxy_listen="127.0.0.1:0")
    lab.keep(changed, *nodes)
    did = []
    for _ in range(8):
        did += lab.keep(changed, *nodes)
        assert len(lab.pool.proxies) >= 2
    assert did == ["stop n1", "start n1", "stop n2", "start n2", "stop n3", "start n3"]
    assert {status.spec.listen for status in lab.pool.proxies.values() if status} == {"127.0.0.1:0"}


def test_a_changed_one_waits_while_another_does_not_answer_unless_it_serves_nobody() -> None:
    lab = Lab()
    lab.keep(ALL, "n1", "n2", "n3")
    lab.pool.silence("n1")
    broken = lab.pool.proxies["n2"]
    assert broken is not None
    lab.pool.proxies["n2"] = msgspec.structs.replace(broken, url="", why_not_serving="the port is taken", failed=True)
    changed = msgspec.structs.replace(ALL, proxy_listen="127.0.0.1:0")
    lab.keep(changed, "n1", "n2", "n3")
    assert lab.lines == ["the proxy on Ray node 10.0.0.2 does not serve: the port is taken"]
    assert lab.keep(changed, "n1", "n2", "n3") == ["stop n2"]
    assert lab.keep(changed, "n1", "n2", "n3") == ["start n2"]
    assert lab.keep(changed, "n1", "n2", "n3") == []
    assert lab.pool.proxies["n3"] is not None
    assert lab.pool.proxies["n3"].spec.listen == ALL.proxy_listen


def test_one_that_does_not_answer_for_long_is_replaced() -> None:
    lab = Lab()
    lab.keep(ALL, "n1")
    lab.pool.silence("n1")
    assert lab.look() == []
    assert lab.look(PROXY_SILENT_S - 1) == []
    assert lab.look() == ["kill n1"]
    assert lab.look() == ["start n1"]


def test_without_a_leader_the_settings_stay_and_nodes_are_followed() -> None:
    lab = Lab()
    assert lab.keep(None, "n1") == []
    assert lab.keep(ALL, "n1", role="follower") == ["start n1"], "the only one that says anything"
    assert lab.keep(Settings(), "n1", "n2", role="follower") == ["start n2"], "it may lag"
    assert lab.keep(None, "n1", "n2", "n3") == ["start n3"]


def test_settings_of_a_newer_version_change_nothing() -> None:
    lab = Lab()
    lab.keep(ALL, "n1")
    unreadable = observation(ALL, "n1", "n2")
    status = msgspec.structs.replace(unreadable.statuses[1], settings=b'{"new": 1}')
    lab.keeper.set_observation(Observation(unreadable.nodes, {}, {1: status}, frozenset()))
    assert lab.look() == ["start n2"]


def test_after_its_end_it_starts_none() -> None:
    lab = Lab()
    assert lab.keeper.stop(1.0)
    assert lab.keep(ALL, "n1") == []
