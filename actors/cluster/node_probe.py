"""What a Ray node offers a member: its disk, its limits, its clock, its versions, and who reaches it by TCP.

All of it is measured on the node itself, by tasks and short-lived actors that need no cluster. The disk is tried with
a file of its own, next to where a member's data would be, which is deleted again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...limits import PROBE_DIAL_S, PROBE_SYNCS
from ..deadline import at_most
from ..discovery import collect
from ..logs import MemberLog
from ..ray_calls import in_time
from ..ray_view import RayNode
from ..transport.lane_address import lane_host

_BLOCK = b"\0" * 4096


class NodeFacts(NamedTuple):
    """What was found on a node.

    Attributes:
        host: its name.
        clock: its time, in seconds since 1970.
        versions: of Python, Ray and RayKeeper.
        open_files: how many files a process of its Ray may have open: the hard limit; -1 for any number.
        processes: how many processes and threads its user may have; -1 for any number.
        folder: where its disk was tried: the data directory, or the nearest folder above that exists.
        file_system: the type of that disk, such as ext4.
        free_bytes: of that disk, for this user.
        sync_median_s, sync_worst_s: how long a write of 4 KiB takes until it is on the disk, in seconds.
        disk_error: why the disk could not be tried; empty if it could.
    """

    host: str
    clock: float
    versions: tuple[str, str, str]
    open_files: int
    processes: int
    folder: str
    file_system: str
    free_bytes: int
    sync_median_s: float
    sync_worst_s: float
    disk_error: str


def probe(data_dir: str) -> NodeFacts:
    """The facts of the node that this process is on."""
    from ... import __version__

    folder = _existing(os.path.expanduser(data_dir))
    median = worst = 0.0
    problem = ""
    try:
        times = sorted(_sync_times(folder))
        median, worst = times[len(times) // 2], times[-1]
    except OSError as error:
        problem = f"{folder}: {error.strerror or error}"
    free = 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
    return NodeFacts(
        socket.gethostname(),
        time.time(),
        (platform.python_version(), str(ray.__version__), __version__),
        resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        resource.getrlimit(resource.RLIMIT_NPROC)[1],
        folder,
        file_system_of(folder),
        free,
        median,
        worst,
        problem,
    )


def file_system_of(folder: str, mounts: str = "/proc/self/mounts") -> str:
    """The type of the file system that a folder is on; empty if the system does not say."""
    real = os.path.realpath(folder)
    found = ("", "")
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                words = line.split(" ")
                place = words[1].encode(errors="surrogateescape").decode("unicode_escape", errors="replace")
                inside = place == "/" or real == place or real.startswith(f"{place}/")
                if inside and len(place) >= len(found[0]):
                    found = (place, words[2])
    except (OSError, IndexError):
        return ""
    return found[1]


def _existing(folder: str) -> str:
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _sync_times(folder: str) -> list[float]:
    """The seconds of each write and sync of a block, as a member's log makes them."""
    number, path = tempfile.mkstemp(prefix=".raykeeper-doctor-", dir=folder)
    times = []
    try:
        for _ in range(PROBE_SYNCS):
            began = time.monotonic()
            os.write(number, _BLOCK)
            os.fdatasync(number)
            times.append(time.monotonic() - began)
    finally:
        os.close(number)
        os.unlink(path)
    return times


# --- lanes -----------------------------------------------------------------------------------------------------------


class LaneProbe:
    """On one node: listens where a member would listen for lanes, and tries those of other nodes."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def listen(self, interface: str, node_address: str, ports: tuple[int, int]) -> tuple[str, int] | str:
        """Open a port; returns its address, or why there is none.

        Args:
            ports: first and last of those that are allowed; 0 and 0 for any.
        """
        host = lane_host(interface, node_address, MemberLog("doctor", "", ""))
        if not host:
            return f"there is no address of interface {interface}"
        problem = ""
        for port in range(ports[0], ports[1] + 1):
            try:
                self._socket = socket.create_server((host, port))
                return host, int(self._socket.getsockname()[1])
            except OSError as error:
                problem = error.strerror or str(error)
        return f"none of the ports {ports[0]}-{ports[1]} can be had on {host}: {problem}"

    def dial(self, places: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Try to connect to each place; returns why not, empty for those that it reached."""
        said = {}
        for name, place in places.items():
            try:
                socket.create_connection(place, PROBE_DIAL_S).close()
                said[name] = ""
            except OSError as error:
                said[name] = error.strerror or str(error) or type(error).__name__
        return said


def probe_lanes(
    nodes: Sequence[RayNode], interface: str, ports: tuple[int, int], timeout: float
) -> dict[tuple[str, str], str]:
    """Which nodes cannot open a lane to which, and why; by the ids of the two, the one that tries first.

    Args:
        interface, ports: as ``lane_interface`` and ``lane_ports`` of the spec.
        timeout: seconds, for each of the two rounds.
    """
    remote: Any = ray.remote(num_cpus=0, max_restarts=0)(LaneProbe)
    actors = {
        node.id: in_time(remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote)
        for node in nodes
    }
    try:
        asked = {node.id: actors[node.id].listen.remote(interface, node.address, ports) for node in nodes}
        heard: dict[str, Any] = collect(asked, at_most(timeout))
        failed = {
            (other.id, node.id): heard.get(node.id, "it does not answer")
            for node in nodes
            for other in nodes
            if other.id != node.id and not isinstance(heard.get(node.id), tuple)
        }
        places = {id: place for id, place in heard.items() if isinstance(place, tuple)}
        dialed: dict[str, dict[str, str]] = collect(
            {
                id: actor.dial.remote({to: place for to, place in places.items() if to != id})
                for id, actor in actors.items()
            },
            at_most(timeout),
        )
        for id, said in dialed.items():
            failed |= {(id, to): why for to, why in said.items() if why}
        return failed
    finally:
        for actor in actors.values():
            with contextlib.suppress(Exception):  # it is gone
                ray.kill(actor)
