"""Service registration and discovery: services register with heartbeats, one of them is killed, callers go elsewhere.

A caller keeps a list of the services by a watch, and calls the next one each time. When a service's process is killed,
its registration runs out and the caller is told; a new service is called as soon as it has registered. The cluster's
leader is killed as well. Exit status 1 if a caller was left without a service, or called one that was long dead.

    python examples/service_discovery.py [--ttl SECONDS]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import ray
from stage import check, kill, kill_leader, say, stage, until

import raykeeper


@ray.remote(num_cpus=0, max_concurrency=4)
class Service:
    """Squares numbers, and can be found as "square" on the topic "math" while it lives."""

    def __init__(self, kv: raykeeper.Client, address: str, ttl: float) -> None:
        self.registration = kv.registry("math").register("square", address, ttl=ttl, metadata={"pid": os.getpid()})

    def square(self, number: int) -> int:
        """What it does."""
        return number * number


class Caller:
    """Knows which services there are."""

    def __init__(self, kv: raykeeper.Client, services: dict[str, Any]) -> None:
        self.handles = services  # in the real world: connections, made from the address
        self.addresses: list[str] = []
        self.turn = 0
        threading.Thread(target=self.follow, args=(kv,), daemon=True).start()

    def follow(self, kv: raykeeper.Client) -> None:
        """Keep the list as it is in the directory."""
        for change in kv.registry("math").watch():
            others = [address for address in self.addresses if address != change.service.address]
            self.addresses = others if change.type == "down" else [*others, change.service.address]
            say(f"{change.service.address} is {change.type}; now {self.addresses}")

    def call(self, number: int) -> str:
        """Ask one of them, the next one if it fails; which one answered."""
        for _ in range(100):
            addresses = self.addresses
            if addresses:
                self.turn += 1
                address = addresses[self.turn % len(addresses)]
                try:
                    assert ray.get(self.handles[address].square.remote(number), timeout=5) == number * number
                    return address
                except (ray.exceptions.RayError, TimeoutError):
                    pass
            time.sleep(0.05)
        return ""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ttl", type=float, default=3.0, help="seconds until a dead service is gone")
    arguments = parser.parse_args()
    with stage() as cluster:
        kv = cluster.client()
        services = {f"host-{name}:80": Service.remote(kv, f"host-{name}:80", arguments.ttl) for name in "abc"}
        caller = Caller(kv, services)
        until(lambda: len(caller.addresses) == 3, "three services")
        check({caller.call(number) for number in range(6)} == set(services), "calls are spread over all three")

        registry = kv.registry("math")
        victim = registry.lookup("square")[0]
        kill(victim.metadata["pid"], f"the service {victim.address}")
        died = time.monotonic()
        kill_leader(cluster)
        until(lambda: victim.address not in caller.addresses, "the dead one is gone")
        say(f"gone after {time.monotonic() - died:.1f} s")
        check(all(caller.call(number) for number in range(10)), "every call was answered all the while")

        services["host-d:80"] = Service.remote(kv, "host-d:80", arguments.ttl)
        until(lambda: "host-d:80" in caller.addresses, "the new one is known")
        check("host-d:80" in {caller.call(number) for number in range(6)}, "the new one is called")
        check(victim.address not in {service.address for service in registry.lookup()}, "the dead one is not")


if __name__ == "__main__":
    main()
