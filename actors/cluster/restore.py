"""A new cluster from a backup: the file is sent to every node that gets a member, checked and unpacked there.

As in a bootstrap, every place is reserved before any is written, and each folder's identity is written last. So an
interrupted restore leaves nothing that could be taken for a cluster. A restore that fails deletes what it wrote; what a
killed process has left is recognized and deleted by the next restore: places of one cluster id, all of them there, none
of which has promised anything since.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec
import ray

from ...errors import ClusterMismatch, DataCorrupted, SpecError
from ...limits import (
    BACKUP_CHUNK_BYTES,
    BACKUP_CHUNK_TIMEOUT_S,
    RESTORE_UNPACK_TIMEOUT_S,
    STOP_TIMEOUT_S,
    SURVEY_TIMEOUT_S,
)
from ...spec import ClusterSpec
from ...store import backup_file
from ...store.backup_file import Header
from ...store.data_dir import DataDir, Identity
from ...store.data_lock import locked, member_disk
from ...store.engine.rocks import RocksDisk
from ..discovery import alive_nodes, listed_actors
from ..naming import member_name
from ..ray_view import RayNode, may_hold
from ..steps import count, step
from . import node_storage
from .evidence import Evidence, destroy_command, refusal
from .launch import finish_destroying
from .new_cluster import plan_cluster
from .node_storage import NodeInventory
from .ray_nodes import run_on, run_where_possible

_STREAM = "incoming"


def place_backup(spec: ClusterSpec, path: str) -> int:
    """Write the first data of a new cluster, with a new id, on the nodes; its members are not started.

    Args:
        path: a file on this machine.

    Raises:
        ClusterMismatch: a cluster of that name runs, or there is data of one.
        DataCorrupted: the backup is damaged; nothing of it remains on any node.
        SpecError: the spec's ``data_dir`` or ``placement`` cannot be used on the nodes.
        Unavailable: a node did not answer.
    """
    header = backup_file.verify(RocksDisk(), path)
    listed = listed_actors(spec.name)
    if listed:
        raise ClusterMismatch(
            f"a cluster {spec.name} runs, or waits for its nodes (Ray lists {', '.join(sorted(listed))}); restore "
            f"under another name, or give it up first: `{destroy_command(spec.name, 0, spec.data_dir)}`"
        )
    nodes = {node.id: node for node in alive_nodes()}
    _clear_the_way(spec, nodes)
    surveyed = _survey(spec, nodes)
    usable = [node for id, node in nodes.items() if id in surveyed]
    new = plan_cluster(spec, usable, {id: inventory.base for id, inventory in surveyed.items()})
    places = {member: (base, member_name(member), new.id) for member, base in new.bases.items()}
    try:
        run_on(new.nodes, node_storage.reserve_place, new.reservations(), SURVEY_TIMEOUT_S)
        with step("sending the backup to the nodes"):
            _send(path, new.nodes, places)
        with step("unpacking it there"):
            run_on(new.nodes, unpack, new.identities(restored=header.index), RESTORE_UNPACK_TIMEOUT_S)
    except BaseException as error:
        run_where_possible(new.nodes, discard, places, SURVEY_TIMEOUT_S)
        if isinstance(error, node_storage.UnusableFolder):
            raise SpecError("spec", "data_dir", f"a folder that can be written on every node; {error}") from None
        raise
    return new.id


def _survey(spec: ClusterSpec, nodes: Mapping[str, RayNode]) -> dict[str, NodeInventory]:
    """What the nodes hold; a node that ``placement`` excludes need not answer."""
    placement = () if isinstance(spec.placement, str) else spec.placement
    arguments = dict.fromkeys(nodes, (spec.data_dir, spec.name))
    found: dict[str, NodeInventory] = {}
    for id, inventory in run_where_possible(nodes, node_storage.survey, arguments, SURVEY_TIMEOUT_S).items():
        if isinstance(inventory, NodeInventory) and not inventory.problem:
            found[id] = inventory
        elif may_hold(nodes[id], placement):
            if isinstance(inventory, Exception):
                raise inventory
            problem = f"{nodes[id].address}: {inventory.problem}"
            raise SpecError("spec", "data_dir", f"a folder that can be read on every node; {problem}")
    return found


def _clear_the_way(spec: ClusterSpec, nodes: Mapping[str, RayNode]) -> None:
    """Delete what a killed restore and destroyed clusters have left, and refuse to continue over anything else that is
    evidence of a cluster of that name: a restore must never replace a cluster whose nodes are only away."""
    finish_destroying(
        spec.name, spec.data_dir, [(nodes[id], inventory) for id, inventory in _survey(spec, nodes).items()]
    )
    surveyed = _survey(spec, nodes)
    places: dict[str, tuple[RayNode, NodeInventory, node_storage.FoundData]] = {}
    for id, inventory in surveyed.items():
        for found in inventory.found:
            if found.identity is not None or found.damage or found.reserved:
                places[f"{inventory.machine}:{found.folder}"] = (nodes[id], inventory, found)
    data = [found for _, _, found in places.values() if found.identity is not None or found.damage]
    gone = {marker.cluster for inventory in surveyed.values() for marker in inventory.markers if marker.destroyed}
    marked = {marker.cluster for inventory in surveyed.values() for marker in inventory.markers} - gone
    if not data:
        known = [
            (
                nodes[id],
                msgspec.structs.replace(
                    inventory, markers=tuple(m for m in inventory.markers if m.cluster not in gone)
                ),
            )
            for id, inventory in surveyed.items()
        ]
        refused = refusal(spec.name, spec.data_dir, known, Evidence())
        if refused is not None:
            raise ClusterMismatch(f"{refused}. Or restore under another name")
        return
    clusters = {found.identity.cluster if found.identity is not None else 0 for found in data}
    listed = {first.name for found in data if found.identity is not None for first in found.identity.members}
    there = {found.name for _, _, found in places.values()}
    there_too = {
        key: (inventory.base, found.name, next(iter(clusters))) for key, (_, inventory, found) in places.items()
    }
    on = {key: node for key, (node, _, _) in places.items()}
    one = len(clusters) == 1 and 0 not in clusters and listed <= there and marked <= clusters
    if one and all(run_on(on, is_left_over, there_too, SURVEY_TIMEOUT_S).values()):
        run_on(on, node_storage.delete_member, there_too, SURVEY_TIMEOUT_S)
        everywhere = {id: nodes[id] for id in surveyed}
        arguments = (spec.data_dir, spec.name, next(iter(clusters)), STOP_TIMEOUT_S)
        run_on(everywhere, node_storage.delete_cluster, dict.fromkeys(everywhere, arguments), SURVEY_TIMEOUT_S)
        return
    where = ", ".join(sorted(found.folder for found in data))
    ways = " or ".join(f"`{destroy_command(spec.name, id, spec.data_dir)}`" for id in sorted(clusters | marked))
    raise ClusterMismatch(
        f"there is data of a cluster {spec.name} already: {where}; restore under another name or into another "
        f"data_dir, or give that cluster up first: {ways}"
    )


def _send(path: str, members: Mapping[int, RayNode], places: Mapping[int, tuple[str, str, int]]) -> None:
    """Send the file to all places, in chunks."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        for offset in range(0, size, BACKUP_CHUNK_BYTES):
            data = file.read(BACKUP_CHUNK_BYTES)
            stored = ray.put(data)
            arguments = {member: (*places[member], offset, stored) for member in members}
            run_on(members, receive, arguments, BACKUP_CHUNK_TIMEOUT_S)
            count(offset + len(data), size)


# --- on the nodes ----------------------------------------------------------------------------------------------------


def receive(base: str, member: str, cluster: int, offset: int, data: bytes) -> None:
    """Store a chunk of a backup in a place that is reserved for this cluster id. Chunks come in order."""
    with _reserved(base, member, cluster) as folder:
        disk = RocksDisk()
        stream = _stream(folder)
        if offset == 0:
            disk.remove(folder)
            disk.make_folder(os.path.dirname(stream))
        elif disk.size(stream) != offset:
            raise DataCorrupted(f"{stream} has {disk.size(stream)} bytes, and the next chunk belongs at {offset}")
        disk.append(stream, data)


def unpack(base: str, identity: Identity) -> None:
    """Create the data of a member from the backup that has arrived; its identity is written last."""
    with _reserved(base, identity.name, identity.cluster) as folder:
        backup_file.create_member(member_disk(), folder, identity, _stream(folder))
        os.remove(os.path.join(base, f"{identity.name}.reserved"))


def discard(base: str, member: str, cluster: int) -> None:
    """Empty a place, if it is reserved for this cluster id or holds its data."""
    found = node_storage.inspect_place(base, member)
    if cluster in (found.reserved, found.identity.cluster if found.identity else 0):
        node_storage.delete_member(base, member, cluster)


def is_left_over(base: str, member: str, cluster: int) -> bool:
    """Whether the place was reserved for this cluster id by a restore, or written by one and never served since."""
    with locked(base, member):
        found = node_storage.inspect_place(base, member)
        if found.damage:
            return False
        if found.identity is None:
            return found.reserved == cluster
        if found.identity.cluster != cluster or not found.identity.restored:
            return False
        folder = DataDir.open(member_disk(), found.folder)
        try:
            return folder.never_served
        finally:
            folder.close()


@contextmanager
def _reserved(base: str, member: str, cluster: int) -> Iterator[str]:
    """Hold the lock on a place that is reserved for this cluster id; its folder."""
    try:
        with locked(base, member):
            found = node_storage.inspect_place(base, member)
            if found.reserved != cluster or found.identity is not None:
                raise ClusterMismatch(f"{base}/{member} is not reserved for cluster id {cluster:x}")
            yield found.folder
    except OSError as error:
        raise node_storage.UnusableFolder(f"{error.filename or base}: {error.strerror or error}") from None


def _stream(folder: str) -> str:
    return os.path.join(folder, _STREAM, "backup")


# --- from a surviving member -----------------------------------------------------------------------------------------


@contextmanager
def backup_of(data_dir: str) -> Iterator[tuple[str, Header, int]]:
    """A backup of the data of one member that no process has open, for as long as the context lasts.

    The data itself is not touched: a copy is opened.

    Args:
        data_dir: the member's own folder on this machine, the one with ``identity.json``.

    Yields:
        its path, its header, and how many entries it holds that the member did not know to be committed.

    Raises:
        DataCorrupted: there is no data, or it is damaged.
        Unavailable: a process has it open.
        SpecError: it cannot be read, or there is no room for a copy.
    """
    folder = os.path.abspath(os.path.expanduser(data_dir))
    disk = RocksDisk()
    if DataDir.read_identity(disk, folder) is None:
        raise DataCorrupted(f"{folder} holds no member's data (a member's folder has a file identity.json)")
    scratch = tempfile.mkdtemp(prefix="raykeeper-restore-")
    try:
        copy, file = os.path.join(scratch, "copy"), os.path.join(scratch, "backup")
        try:
            with locked(*os.path.split(folder)):
                shutil.copytree(folder, copy)
            header, taken = backup_file.back_up_folder(disk, copy, file, time.time(), os.path.join(scratch, "image"))
            shutil.rmtree(copy)
        except (OSError, shutil.Error) as error:
            raise SpecError(data_dir, "", f"a folder that can be read and copied; {error}") from None
        yield file, header, taken
    finally:
        with suppress(OSError):
            shutil.rmtree(scratch)
