"""A new cluster from a backup: its file goes to every node that shall hold a member, is checked and unpacked there.

As with a bootstrap, every place is reserved before any is written, and each folder's identity is written last; so what
is interrupted leaves nothing that could be taken for a cluster. Whatever fails is cleared away again, and what a killed
process has left is recognised, and cleared by the next restore: places of one cluster id, all of them there, none of
which has promised anything since.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec
import ray

from ..errors import ClusterMismatch, DataCorrupted, SpecError
from ..limits import (
    BACKUP_CHUNK_BYTES,
    BACKUP_CHUNK_TIMEOUT,
    RESTORE_UNPACK_TIMEOUT,
    STOP_TIMEOUT,
    SURVEY_TIMEOUT,
)
from ..spec import ClusterSpec
from ..store import backup
from ..store.backup import Header
from ..store.folder import FirstMember, Identity, MemberFolder
from ..store.rocks import RocksDisk
from . import sites
from .evidence import Evidence, refusal, way_out
from .launcher import finish_destroying, first_marker, warn_if_crowded
from .placement import Node, alive_nodes, choose, may_hold, run_on, run_where_possible
from .roster import listed_actors
from .seat import member_name
from .sites import Site

_STREAM = "incoming"


def place_backup(spec: ClusterSpec, path: str) -> int:
    """Write the first data of a new cluster, with an id of its own, on the nodes; its members are not started.

    Args:
        path: a file of this machine.

    Raises:
        ClusterMismatch: a cluster of that name runs, or there is data of one.
        DataCorrupted: the backup is damaged; nothing of it is left on any node.
        SpecError: the spec's ``data_dir`` or ``placement`` cannot be used on the nodes.
        Unavailable: a node did not answer.
    """
    header = backup.verify(RocksDisk(), path)
    listed = listed_actors(spec.name)
    if listed:
        raise ClusterMismatch(
            f"a cluster {spec.name} runs, or waits for its nodes (Ray lists {', '.join(sorted(listed))}); restore "
            f"under another name, or give it up first: `{way_out(spec.name, 0, spec.data_dir)}`"
        )
    nodes = {node.id: node for node in alive_nodes()}
    _clear_the_way(spec, nodes)
    surveyed = _survey(spec, nodes)
    cluster = secrets.randbelow((1 << 63) - 1) + 1
    usable = [node for id, node in nodes.items() if id in surveyed]
    chosen = dict(enumerate(choose(spec.members, spec.placement, usable), start=1))
    warn_if_crowded(spec.name, [node for node, _ in chosen.values()])
    members = {member: node for member, (node, _) in chosen.items()}
    bases = {member: surveyed[node.id].base for member, node in members.items()}
    first = tuple(FirstMember(member, member_name(member), pin) for member, (_, pin) in chosen.items())
    names = {member: (bases[member], member_name(member), cluster) for member in members}
    marker = first_marker(spec.name, cluster, chosen, bases)
    reservations = {member: (bases[member], member_name(member), marker) for member in members}
    try:
        run_on(members, sites.reserve, reservations, SURVEY_TIMEOUT)
        _send(path, members, names)
        identities = {
            member: (
                bases[member],
                Identity(
                    cluster_name=spec.name,
                    cluster=cluster,
                    member=member,
                    name=member_name(member),
                    members=first,
                    settings=spec.settings,
                    restored=header.index,
                ),
            )
            for member in members
        }
        run_on(members, unpack, identities, RESTORE_UNPACK_TIMEOUT)
    except BaseException as error:
        run_where_possible(members, discard, names, SURVEY_TIMEOUT)
        if isinstance(error, sites.UnusableFolder):
            raise SpecError("spec", "data_dir", f"a folder that can be written on every node; {error}") from None
        raise
    return cluster


def _survey(spec: ClusterSpec, nodes: Mapping[str, Node]) -> dict[str, Site]:
    """What the nodes hold; one that ``placement`` excludes need not say it."""
    placement = () if isinstance(spec.placement, str) else spec.placement
    arguments = dict.fromkeys(nodes, (spec.data_dir, spec.name))
    found: dict[str, Site] = {}
    for id, site in run_where_possible(nodes, sites.survey, arguments, SURVEY_TIMEOUT).items():
        if isinstance(site, Site) and not site.problem:
            found[id] = site
        elif may_hold(nodes[id], placement):
            if isinstance(site, Exception):
                raise site
            problem = f"{nodes[id].address}: {site.problem}"
            raise SpecError("spec", "data_dir", f"a folder that can be read on every node; {problem}")
    return found


def _clear_the_way(spec: ClusterSpec, nodes: Mapping[str, Node]) -> None:
    """Clear what a restore has left that was killed, and what is left of clusters that were destroyed; refuse to go on
    over anything else that tells of a cluster of that name."""
    finish_destroying(spec.name, spec.data_dir, [(nodes[id], site) for id, site in _survey(spec, nodes).items()])
    surveyed = _survey(spec, nodes)
    places: dict[str, tuple[Node, Site, sites.Found]] = {}
    for id, site in surveyed.items():
        for found in site.found:
            if found.identity is not None or found.damage or found.reserved:
                places[f"{site.machine}:{found.folder}"] = (nodes[id], site, found)
    data = [found for _, _, found in places.values() if found.identity is not None or found.damage]
    gone = {marker.cluster for site in surveyed.values() for marker in site.markers if marker.destroyed}
    marked = {marker.cluster for site in surveyed.values() for marker in site.markers} - gone
    if not data:
        known = [
            (nodes[id], msgspec.structs.replace(site, markers=tuple(m for m in site.markers if m.cluster not in gone)))
            for id, site in surveyed.items()
        ]
        refused = refusal(spec.name, spec.data_dir, known, Evidence())
        if refused is not None:
            raise ClusterMismatch(f"{refused}. Or restore under another name")
        return
    clusters = {found.identity.cluster if found.identity is not None else 0 for found in data}
    listed = {first.name for found in data if found.identity is not None for first in found.identity.members}
    there = {found.name for _, _, found in places.values()}
    there_too = {key: (site.base, found.name, next(iter(clusters))) for key, (_, site, found) in places.items()}
    on = {key: node for key, (node, _, _) in places.items()}
    one = len(clusters) == 1 and 0 not in clusters and listed <= there and marked <= clusters
    if one and all(run_on(on, is_left_over, there_too, SURVEY_TIMEOUT).values()):
        run_on(on, sites.clear, there_too, SURVEY_TIMEOUT)
        everywhere = {id: nodes[id] for id in surveyed}
        arguments = (spec.data_dir, spec.name, next(iter(clusters)), STOP_TIMEOUT)
        run_on(everywhere, sites.clear_all, dict.fromkeys(everywhere, arguments), SURVEY_TIMEOUT)
        return
    where = ", ".join(sorted(found.folder for found in data))
    ways = " or ".join(f"`{way_out(spec.name, id, spec.data_dir)}`" for id in sorted(clusters | marked))
    raise ClusterMismatch(
        f"there is data of a cluster {spec.name} already: {where}; restore under another name or into another "
        f"data_dir, or give that cluster up first: {ways}"
    )


def _send(path: str, members: Mapping[int, Node], names: Mapping[int, tuple[str, str, int]]) -> None:
    """Bring the file to all places, in chunks."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        for offset in range(0, size, BACKUP_CHUNK_BYTES):
            data = ray.put(file.read(BACKUP_CHUNK_BYTES))
            arguments = {member: (*names[member], offset, data) for member in members}
            run_on(members, receive, arguments, BACKUP_CHUNK_TIMEOUT)


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
    """Make the data of a member from the backup that has arrived; its identity is written last."""
    with _reserved(base, identity.name, identity.cluster) as folder:
        backup.create_member(sites.member_disk(), folder, identity, _stream(folder))
        os.remove(os.path.join(base, f"{identity.name}.reserved"))


def discard(base: str, member: str, cluster: int) -> None:
    """Clear a place, if it is reserved for this cluster id or holds data of it."""
    found = sites.look(base, member)
    if cluster in (found.reserved, found.identity.cluster if found.identity else 0):
        sites.clear(base, member, cluster)


def is_left_over(base: str, member: str, cluster: int) -> bool:
    """Whether the place was reserved for this cluster id by a restore, or written by one and never served since."""
    with sites.locked(base, member):
        found = sites.look(base, member)
        if found.damage:
            return False
        if found.identity is None:
            return found.reserved == cluster
        if found.identity.cluster != cluster or not found.identity.restored:
            return False
        folder = MemberFolder.open(sites.member_disk(), found.folder)
        try:
            return folder.never_served
        finally:
            folder.close()


@contextmanager
def _reserved(base: str, member: str, cluster: int) -> Iterator[str]:
    """Hold the lock on a place that is reserved for this cluster id; its folder."""
    try:
        with sites.locked(base, member):
            found = sites.look(base, member)
            if found.reserved != cluster or found.identity is not None:
                raise ClusterMismatch(f"{base}/{member} is not reserved for cluster id {cluster:x}")
            yield found.folder
    except OSError as error:
        raise sites.UnusableFolder(f"{error.filename or base}: {error.strerror or error}") from None


def _stream(folder: str) -> str:
    return os.path.join(folder, _STREAM, "backup")


# --- of what a survivor holds ----------------------------------------------------------------------------------------


@contextmanager
def backup_of(data_dir: str) -> Iterator[tuple[str, Header, int]]:
    """A backup of the data of one member that no process works on, for as long as the context lasts.

    The data itself is not touched: a copy of it is opened.

    Args:
        data_dir: the member's own folder, on this machine: the one with ``identity.json``.

    Yields:
        its path, its header, and how many entries were taken that the member did not know to be committed.

    Raises:
        DataCorrupted: there is no data, or it is damaged.
        Unavailable: a process has it open.
        SpecError: it cannot be read, or there is no room for a copy.
    """
    folder = os.path.abspath(os.path.expanduser(data_dir))
    disk = RocksDisk()
    if MemberFolder.read_identity(disk, folder) is None:
        raise DataCorrupted(f"{folder} holds no member's data (a member's folder has a file identity.json)")
    scratch = tempfile.mkdtemp(prefix="raykeeper-restore-")
    try:
        copy, file = os.path.join(scratch, "copy"), os.path.join(scratch, "backup")
        try:
            with sites.locked(*os.path.split(folder)):
                shutil.copytree(folder, copy)
            header, taken = backup.back_up_folder(disk, copy, file, time.time(), os.path.join(scratch, "image"))
            shutil.rmtree(copy)
        except (OSError, shutil.Error) as error:
            raise SpecError(data_dir, "", f"a folder that can be read and copied; {error}") from None
        yield file, header, taken
    finally:
        with suppress(OSError):
            shutil.rmtree(scratch)
