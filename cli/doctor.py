"""`raykeeper doctor`: checks a set-up, with or without a running cluster, and says what to do about what it finds.

Each finding has a verdict: ``ok``, ``warning`` (it works, and will not under load or in a failure) or ``failed`` (it
does not work). The exit status is 1 if anything failed. Judging is apart from measuring: ``judge_...`` are functions of
what was found alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import ClusterNotFound, KeeperError, Unavailable
from ..limits import (
    DOCTOR_FREE_BYTES,
    DOCTOR_MAX_CLOCK_S,
    DOCTOR_MAX_SYNC_S,
    DOCTOR_MIN_FILES,
    DOCTOR_MIN_PROCESSES,
    DOCTOR_SLOW_SYNC_S,
    DOCTOR_TIMEOUT_S,
)
from ..proxy_address import port_range
from ..spec import ClusterSpec
from .options import common, join, open_cluster, options, timeout_of
from .render import CommandResult, show

if TYPE_CHECKING:
    from ..actors.cluster.node_probe import NodeFacts
    from ..actors.ray_view import RayNode

_MEMORY = ("tmpfs", "ramfs")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "lustre")
_MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}


class Finding(NamedTuple):
    """One check and its verdict.

    Attributes:
        check: what was checked, in one word.
        where: a node or a member; empty for the whole set-up.
        verdict: ``ok``, ``warning`` or ``failed``.
        message: what was found.
        remedy: what to do about it; empty if nothing.
    """

    check: str
    where: str
    verdict: str
    message: str
    remedy: str = ""


@click.command()
@click.argument("spec", required=False, type=click.Path())
@options(common, timeout_of(DOCTOR_TIMEOUT_S, "Seconds for all checks."))
def doctor(cluster: str, address: str | None, output: str, timeout: float, spec: str | None) -> None:
    """Check a set-up: Ray, its nodes, their disks, clocks, limits, versions and lanes, and the cluster if it runs.

    SPEC (./cluster.yaml if there is one) says where data and lanes are to be. Exit status 1 if a check failed.
    """
    if spec is None and os.path.exists("cluster.yaml"):
        spec = "cluster.yaml"
    loaded = ClusterSpec.load(spec)
    findings = list(_findings(cluster, address, loaded))
    rows = [finding._asdict() for finding in findings]
    show(CommandResult({"findings": rows}, list(_lines(findings))), output)
    failed = sum(finding.verdict == "failed" for finding in findings)
    if failed:
        raise Unavailable(f"{failed} of {len(findings)} checks failed")


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        where = f" {finding.where}" if finding.where else ""
        yield f"{_MARKS[finding.verdict]:7} {finding.check}{where}: {finding.message}"
        if finding.remedy:
            yield f"        -> {finding.remedy}"


def _findings(cluster: str, address: str | None, spec: ClusterSpec) -> Iterator[Finding]:
    try:
        join(address)
    except KeeperError as error:
        remedy = "start one with `raykeeper up` or `ray start --head`, or name it with --address or RAY_ADDRESS"
        yield Finding("ray", "", "failed", str(error), remedy)
        return
    from ..actors.cluster.node_probe import NodeFacts, probe, probe_lanes
    from ..actors.cluster.ray_nodes import run_where_possible
    from ..actors.discovery import alive_nodes

    nodes = alive_nodes()
    yield Finding("ray", "", "ok", f"it answers, and has {len(nodes)} nodes that are alive")
    yield judge_authentication(os.environ, [node.address for node in nodes])
    began = time.time()
    found = run_where_possible(
        {node.id: node for node in nodes}, probe, {node.id: (spec.data_dir,) for node in nodes}, DOCTOR_TIMEOUT_S / 3
    )
    ended = time.time()
    here = probe(spec.data_dir).versions
    for node in nodes:
        facts, where = found[node.id], _place(node)
        if isinstance(facts, NodeFacts):
            yield from judge_node(where, facts, here, began, ended)
        else:
            yield Finding("node", where, "failed", str(facts), "no member can live there until that is mended")
    yield from _lanes(nodes, spec, probe_lanes)
    yield from _cluster(cluster, address)


def _place(node: RayNode) -> str:
    return f"{node.address} ({node.id[:8]})"


def judge_authentication(environment: Mapping[str, str], addresses: Sequence[str]) -> Finding:
    """Whether anybody who reaches Ray may run code as its user."""
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode == "token" or (mode != "disabled" and _has_token(environment)):
        return Finding("authentication", "", "ok", "this user shows Ray a token")
    if all(address.startswith("127.") for address in addresses):
        return Finding("authentication", "", "ok", "Ray demands no token, and listens on this machine alone")
    remedy = "start Ray with RAY_AUTH_MODE=token on all nodes, or let only trusted hosts reach its ports"
    return Finding("authentication", "", "warning", "what reaches Ray's ports may run code as its user", remedy)


def _has_token(environment: Mapping[str, str]) -> bool:
    if environment.get("RAY_AUTH_TOKEN"):
        return True
    path = environment.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return os.path.exists(path)


def judge_node(
    where: str, facts: NodeFacts, here: tuple[str, str, str], began: float, ended: float
) -> Iterator[Finding]:
    """What a node's facts mean.

    Args:
        where: the node, for people.
        here: the versions of this process.
        began, ended: by this host's clock, between which the node's clock was read.
    """
    yield _judge_versions(where, facts.versions, here)
    yield from _judge_disk(where, facts)
    ahead = facts.clock - ended if facts.clock > ended else min(0.0, facts.clock - began)
    if abs(ahead) > DOCTOR_MAX_CLOCK_S:
        remedy = "run a time service (chrony, systemd-timesyncd) on all nodes"
        yield Finding("clock", where, "warning", f"it is {ahead:+.1f} s off this host's", remedy)
    else:
        yield Finding("clock", where, "ok", f"within {DOCTOR_MAX_CLOCK_S:g} s of this host's")
    few = []
    if 0 <= facts.open_files < DOCTOR_MIN_FILES:
        few.append(f"{facts.open_files} open files (ulimit -Hn)")
    if 0 <= facts.processes < DOCTOR_MIN_PROCESSES:
        few.append(f"{facts.processes} processes (ulimit -Hu)")
    if few:
        remedy = f"allow at least {DOCTOR_MIN_FILES} files and {DOCTOR_MIN_PROCESSES} processes before `ray start`"
        yield Finding("limits", where, "warning", f"at most {' and '.join(few)}", remedy)
    else:
        yield Finding("limits", where, "ok", "enough files and processes are allowed")


def _judge_versions(where: str, there: tuple[str, str, str], here: tuple[str, str, str]) -> Finding:
    names = ("Python", "Ray", "RayKeeper")
    other = [
        f"{name} {theirs}, not {ours}" for name, theirs, ours in zip(names, there, here, strict=True) if theirs != ours
    ]
    if other:
        return Finding(
            "versions", where, "failed", f"it has {', '.join(other)} as here", "install the same on all nodes"
        )
    said = ", ".join(f"{name} {version}" for name, version in zip(names, there, strict=True))
    return Finding("versions", where, "ok", said)


def _judge_disk(where: str, facts: NodeFacts) -> Iterator[Finding]:
    if facts.disk_error:
        remedy = "make data_dir a folder that Ray's user may write"
        yield Finding("disk", where, "failed", facts.disk_error, remedy)
        return
    place = f"{facts.folder} ({facts.file_system or 'a file system of unknown type'})"
    if facts.file_system in _MEMORY:
        yield Finding("disk", where, "failed", f"{place} is memory: a reboot loses it", "move data_dir to a disk")
    elif facts.file_system in _NETWORK:
        yield Finding("disk", where, "warning", f"{place} is on the network", "put data_dir on a local disk")
    else:
        yield Finding("disk", where, "ok", place)
    free = f"{facts.free_bytes / 1e9:.1f} GB free"
    if facts.free_bytes < DOCTOR_FREE_BYTES:
        remedy = "make room, or move data_dir: members refuse writes before the disk is full"
        yield Finding("space", where, "warning", free, remedy)
    else:
        yield Finding("space", where, "ok", free)
    said = f"a synced write takes {facts.sync_median_s * 1e3:.1f} ms, {facts.sync_worst_s * 1e3:.1f} ms at worst"
    if facts.sync_median_s > DOCTOR_MAX_SYNC_S:
        yield Finding("sync", where, "failed", said, "use an SSD, and one that nothing else keeps busy")
    elif facts.sync_median_s > DOCTOR_SLOW_SYNC_S:
        yield Finding("sync", where, "warning", said, "each write waits for it: use a faster disk")
    else:
        yield Finding("sync", where, "ok", said)


def _lanes(nodes: Sequence[RayNode], spec: ClusterSpec, probe_lanes: Any) -> Iterator[Finding]:
    if not spec.lanes:
        yield Finding("lanes", "", "ok", "the spec has none: everything goes by actor calls")
        return
    allowed = port_range(spec.lane_ports) or range(0, 1)
    failed = probe_lanes(nodes, spec.lane_interface, (allowed[0], allowed[-1]), DOCTOR_TIMEOUT_S / 6)
    names = {node.id: _place(node) for node in nodes}
    for (source, target), why in sorted(failed.items()):
        remedy = "open the firewall for lane_ports, or name another lane_interface; without lanes all is slower"
        yield Finding("lanes", names[source], "warning", f"no lane to {names[target]}: {why}", remedy)
    if not failed:
        said = "there is one node" if len(nodes) == 1 else f"all {len(nodes)} nodes reach each other"
        yield Finding("lanes", "", "ok", said)


def _cluster(cluster: str, address: str | None) -> Iterator[Finding]:
    """The running cluster: what its status warns of."""
    try:
        status = open_cluster(cluster, address).status()
    except ClusterNotFound as error:
        yield Finding("cluster", "", "ok", f"{error}: nothing more to check")
        return
    except KeeperError as error:
        yield Finding("cluster", "", "failed", str(error), "see `raykeeper status`")
        return
    if not status.alarms:
        yield Finding("cluster", "", "ok", f"{len(status.members)} members, and m{status.leader} leads")
    for alarm in status.alarms:
        verdict = "warning" if status.leader else "failed"
        yield Finding("cluster", "", verdict, alarm, "see `raykeeper status`, and docs/operations.md")
