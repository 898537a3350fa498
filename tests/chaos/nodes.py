"""The same campaign on a Ray of several nodes, which are lost, too: ``python -m chaos.nodes --minutes 3 --seed 1``;
``make chaos-nodes``.

Each member has a node of its own with a disk of its own (a home), and there is one to spare. A node that is lost comes
back with its disk: soon, soon but in another place, as a host does that has got another address, or only after the
member that lived there has a successor elsewhere.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster

from lab.ray.tools import wait_until

from .campaign import NAME, Campaign, main
from .field import Fault, Field, NotNow

PLACES = ("place-a", "place-b", "place-c", "place-d", "place-e", "place-f")
"""Four of them are there at any time."""
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
        return {**super()._spec(), "placement": list(PLACES), "data_dir": "~/data"}

    def _folder_of(self, member: int) -> Path:
        folders = sorted((self.folder / "homes").glob(f"*/data/{NAME}/m{member}"))
        return folders[0] if folders else self.folder / "homes" / "none" / f"m{member}"

    def _init_ray(self) -> None:
        os.environ["HOME"] = str(self.folder / "homes" / "head")
        os.makedirs(os.environ["HOME"])
        head = {**SMALL, "num_cpus": 4, "include_dashboard": False, "temp_dir": str(self._scratch / "ray")}
        self._ray = RayCluster(initialize_head=True, connect=False, head_node_args={**head, "_system_config": NOTICE})
        self._places: dict[str, Any] = {}
        self._homes: dict[str, Path] = {}
        for place in PLACES[:4]:
            self._add(place)
        ray.init(address=self._ray.address, log_to_driver=False, logging_level=logging.ERROR)

    def _launch(self) -> Any:
        self._kinds[self.lose_node] = (4, 6)
        return super()._launch()

    def _end(self) -> None:
        super()._end()
        self._ray.shutdown()

    def _add(self, place: str, disk: Path | None = None) -> None:
        """A node in that place, with this disk, or a new one."""
        self._homes[place] = home = self.folder / "homes" / place
        if disk is not None:
            disk.rename(home)
        home.mkdir(parents=True, exist_ok=True)
        self._places[place] = self._ray.add_node(resources={place: 1}, env_vars={"HOME": str(home)}, **SMALL)

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
        away = len(self._places) < 4  # with two of them there is no majority that could replace anybody
        back = field.rng.choice(("back soon", "back soon, in another place", "back late")[: 2 if away else 3])
        self._ray.remove_node(self._places.pop(place), allow_graceful=False)
        home = self._homes.pop(place)
        disk = home.with_name(f"{place}-out")
        home.rename(disk)  # it is to be seen no more
        yield f"the node of {member.name} is lost, and comes {back}"
        if back != "back late":
            free = [each for each in PLACES if each not in self._places and each != place]
            self._add(place if back == "back soon" else field.rng.choice(free), disk)
            return True

        def replaced() -> bool:
            self._add(place, disk)
            wait_until(lambda: place in {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]})
            return field.again(member) is None

        return replaced


if __name__ == "__main__":
    sys.exit(main(NodeCampaign, "chaos-nodes"))
