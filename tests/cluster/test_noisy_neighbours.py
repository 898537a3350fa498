"""What a client that floods a cluster, and a process that floods a member's port, cost those who do not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque

import msgspec
import pytest
import ray

from lab.ray.crowd import Crowd
from lab.ray.tools import Made, leader, wait_until
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.hub import Hub
from raykeeper.actors.client.hub_pool import HubShare
from raykeeper.actors.discovery import member_actors
from raykeeper.actors.handles import Client
from raykeeper.actors.transport.client_actor import ActorTransport
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.limits import MAX_UNAUTHENTICATED_LANES, Settings

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the crowd's processes know nothing of the tests

pytestmark = [pytest.mark.survival, pytest.mark.core]

QUIET = 9
IN_FLIGHT = 20_000
SECONDS = 6.0


def own_session(cluster: str, **limits: int) -> Client:
    """A handle with a hub of its own: a session and lanes that it shares with no other, as if in its own process."""
    first = hub_pool.open_hub(cluster, 60).hub
    settings = Settings(limits=msgspec.structs.replace(first.limits, **limits), timings=first.timings)
    hub = Hub(cluster, first.cluster, LaneTransport(ActorTransport(cluster)), settings=settings)
    return Client(cluster, first.cluster, share=HubShare(hub), timeout=120)


def flood(cluster: str, seconds: float) -> tuple[int, float, str]:
    """In a process of its own: puts by a client that keeps to no window. How many, their median latency, and the first
    failure."""
    kv = own_session(cluster, max_calls_in_flight=200)
    kv.put("noisy", b"")
    kv.put("noisy", b"")
    until, times, failures = time.monotonic() + seconds, [], [""]

    async def write(n: int) -> None:
        while (began := time.monotonic()) < until:
            try:
                await kv.aio.put(f"noisy/{n}", b"some value")
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
                return
            times.append(time.monotonic() - began)

    async def all_of_them() -> None:
        await asyncio.gather(*[write(n) for n in range(IN_FLIGHT)])

    asyncio.run(all_of_them())
    kv.close()
    return len(times), statistics.median(times), failures[-1]


def test_nine_quiet_clients_beside_one_that_floods(clusters: Made, crowd: Crowd) -> None:
    """Most of a flood waits in its own client's socket, so a quiet client's put does not wait for it: it takes a small
    part of the time that the flood's own puts take."""
    # Members and clients share the machine's few cores here: an election must not be lost to the client's hunger.
    cluster = clusters.launch(timings={"election_timeout": 3.0})
    handles = [own_session(cluster.name) for _ in range(QUIET)]
    over = threading.Event()
    times: list[list[float]] = [[] for _ in handles]
    failures: list[Exception] = []

    def quietly(number: int) -> None:
        try:
            while not over.is_set():
                began = time.monotonic()
                handles[number].put(f"quiet/{number}", b"1")
                handles[number].get(f"quiet/{number}")
                times[number].append((time.monotonic() - began) / 2)
                over.wait(0.05)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=quietly, args=(number,)) for number in range(QUIET)]
    (noisy,) = crowd.take(1)
    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(each) > 3 for each in times), 60)
    for each in times:
        each.clear()
    done, median, failure = noisy.run(flood, cluster.name, SECONDS, seconds=200)
    over.set()
    for thread in threads:
        thread.join()
    slowest = max(statistics.median(each) for each in times if each)
    print(f"the flood: {done} puts, {median:.2f} s each; the slowest of the quiet: {slowest:.3f} s")
    assert not failures
    assert not failure
    assert done >= IN_FLIGHT
    assert all(times)
    assert slowest < median / 5
    for handle in handles:
        handle.close()


def test_connections_without_a_token_stop_nobody(clusters: Made) -> None:
    """However many come, a member holds a bounded number of them, and puts go on."""
    cluster = clusters.launch()
    kv = cluster.client()
    lead = leader(cluster)
    actor = member_actors(cluster.name)[lead.id]
    offer = ray.get(actor.lane.remote("elsewhere"), timeout=60)
    for _ in range(5):
        kv.put("a", b"1")
    over, begun, most = threading.Event(), [0], [0]

    def connect() -> None:
        kept: deque[socket.socket] = deque()
        while not over.wait(0.001):
            sock = socket.socket()
            sock.setblocking(False)
            kept.append(sock)
            begun[0] += 1
            sock.connect_ex((offer.host, offer.port))
            with contextlib.suppress(OSError):
                kept[len(kept) // 2].send(b"x" * 64)
            if len(kept) > 600:
                kept.popleft().close()
        for sock in kept:
            sock.close()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{lead.pid}/fd"))

    before = descriptors()
    thread = threading.Thread(target=connect)
    thread.start()
    try:
        wait_until(lambda: begun[0] > 200 and descriptors() > before + 20, 60, "the flood has come")
        flooded = begun[0]
        for number in range(200):
            kv.put("a", str(number))
            most[0] = max(most[0], descriptors())
        wait_until(lambda: begun[0] > flooded + 200, 60)
    finally:
        over.set()
        thread.join()
    assert most[0] <= before + MAX_UNAUTHENTICATED_LANES + 50
    assert kv.get("a").text == "199"
    assert leader(cluster).pid == lead.pid
