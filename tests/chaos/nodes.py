"""The same campaign on a Ray of several nodes, which are lost, too: ``python -m chaos.nodes --minutes 3 --seed 1``;
``make chaos-nodes``.

Each member has a node of its own, and there is one to spare. A node that is lost comes back with its disk, soon or only
after the member that lived there has a successor elsewhere.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster

from raylab.tools import wait_until

from .campaign import Campaign, main
from .field import Fault, Field, NotNow

PLACES = ("place-a", "place-b", "place-c", "place-d")
SMALL: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Ray misses a node that is lost within seconds."""


class NodeCampaign(Campaign):
    """One run; see the module."""

    def _spec(self) -> dict[str, Any]:
        return {**super()._spec(), "placement": list(PLACES)}

    def _init_ray(self) -> None:
        head = {**SMALL, "num_cpus": 4, "include_dashboard": False, "temp_dir": str(self._scratch / "ray")}
        self._ray = RayCluster(initialize_head=True, connect=False, head_node_args={**head, "_system_config": NOTICE})
        self._places: dict[str, Any] = {}
        for place in PLACES:
            self._add(place)
        ray.init(address=self._ray.address, log_to_driver=False, logging_level=logging.ERROR)

    def _launch(self) -> Any:
        self._kinds[self.lose_node] = (4, 6)
        return super()._launch()

    def _end(self) -> None:
        super()._end()
        self._ray.shutdown()

    def _add(self, place: str) -> None:
        self._places[place] = self._ray.add_node(resources={place: 1}, **SMALL)

    def _place_of(self, member: Any) -> str:
        for node in ray.nodes():
            for place in self._places:
                if node["NodeID"] == member.node and place in node["Resources"]:
                    return place
        raise NotNow(f"{member.name} is on no node that is known")

    def lose_node(self, field: Field) -> Fault:
        """A node is lost with all that runs on it, and comes back."""
        member = field.leader() if field.rng.random() < 0.5 else field.follower()
        place = self._place_of(member)
        soon = field.rng.random() < 0.5
        self._ray.remove_node(self._places.pop(place), allow_graceful=False)
        yield f"the node of {member.name} is lost" + (", and comes back soon" if soon else "")
        if soon:
            self._add(place)
            return True

        def replaced() -> bool:
            self._add(place)
            wait_until(lambda: place in {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]})
            return field.again(member) is None

        return replaced


if __name__ == "__main__":
    sys.exit(main(NodeCampaign, "chaos-nodes"))
