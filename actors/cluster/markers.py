"""Markers: small files by which every node knows of a cluster, even a node that holds no data of it.

A launch can ask only the nodes that are alive. It must never take a cluster whose members are away for one that never
existed. So each node carries a marker: a bootstrap (or a restore) leaves one on all nodes that are alive before it
starts the first member, and the supervisor brings it to nodes that join, and updates it as members join and leave. It
names the members and where each one's data was last.

A marker is ``<data_dir>/<cluster>/cluster-<id>.json``: one file for each cluster id, so that a node may carry several
and none hides another. It is only a hint; who takes part is decided by the data.

When a cluster is given up on purpose, its markers go too. If a node is away then, the others keep the marker as one of
a ``destroyed`` cluster: whatever turns up of that id later counts for nothing.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress

import msgspec

from ...limits import MAX_DESTROYED_MARKERS
from ...schema.portable import Portable
from ...store.engine.files import exists
from ...store.engine.rocks import RocksDisk

_FILE = re.compile(r"cluster-([1-9a-f][0-9a-f]{0,15})\.json")
"""Each id has exactly one file name, so that a marker that is read can also be removed."""


class MarkedMember(Portable, frozen=True):
    """A member, and where its data was last."""

    id: int
    name: str
    pin: str = ""
    """The resource that its actor was pinned with."""
    base: str = ""
    """The cluster's folder on its node."""
    address: str = ""
    """Of its node, if that is known."""

    def __str__(self) -> str:
        where = self.pin or "an unknown place"
        if self.address and self.address not in self.pin:
            where += f" on {self.address}"
        if self.base:
            where += f", in {os.path.join(self.base, self.name)}"
        return f"{self.name} (last at {where})"


class Marker(Portable, frozen=True):
    """The evidence that a cluster of this name exists, and who took part."""

    cluster_name: str
    cluster: int
    """Cluster id."""
    members: tuple[MarkedMember, ...] = ()
    version: int = 0
    """Index of the configuration that it describes: of two markers of one cluster, the higher one knows more."""
    destroyed: bool = False
    """Whether it was given up on purpose."""


def base_of(data_dir: str, cluster_name: str) -> str:
    """The folder of a cluster on this node."""
    return os.path.join(os.path.abspath(os.path.expanduser(data_dir)), cluster_name)


def read_markers(base: str, cluster_name: str) -> tuple[Marker, ...]:
    """All markers in a folder. One that cannot be read still names its cluster id, by its file name.

    Raises:
        OSError: the disk refuses to list the folder, which says nothing of what is there.
    """
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(base)):
            match = _FILE.fullmatch(name)
            if match is not None and (cluster := int(match[1], 16)) < 1 << 63:
                try:
                    found.append(_read(base, cluster_name, cluster))
                except OSError:
                    found.append(Marker(cluster_name, cluster))
    return tuple(found)


def _read(base: str, cluster_name: str, cluster: int) -> Marker:
    """A marker; one that only names the cluster id if it is gone by now, or cannot be decoded.

    Raises:
        OSError: the disk refuses to be read.
    """
    try:
        marker = msgspec.json.decode(RocksDisk().read(_path(base, cluster)), type=Marker)
    except (FileNotFoundError, msgspec.MsgspecError):
        return Marker(cluster_name, cluster)
    # A file that was copied from elsewhere says nothing about this cluster's members.
    ours = (marker.cluster_name, marker.cluster) == (cluster_name, cluster)
    return marker if ours else Marker(cluster_name, cluster)


def write_marker(base: str, marker: Marker) -> None:
    """Write a marker, unless there is one of the same cluster that knows more.

    Nodes may share the folder and write at the same time: each writes a temporary file of its own first.
    """
    assert 0 < marker.cluster < 1 << 63, marker.cluster  # others would not be read: see ``read_markers``
    path = _path(base, marker.cluster)
    disk = RocksDisk()
    disk.make_folder(base)
    if exists(path):
        old = _read(base, marker.cluster_name, marker.cluster)
        if old == marker or (old.destroyed, old.version) > (marker.destroyed, marker.version):
            return
    new = f"{path}.{secrets.token_hex(4)}"
    disk.replace(new, msgspec.json.encode(marker))
    disk.rename(new, path)


def remove_marker(base: str, cluster: int) -> None:
    """Remove the marker of a cluster, if it is there."""
    name = os.path.basename(_path(base, cluster))
    with suppress(FileNotFoundError):
        for found in os.listdir(base):
            if found == name or found.startswith(f"{name}."):  # a crash may leave a temporary file
                with suppress(FileNotFoundError):
                    os.remove(os.path.join(base, found))


def forget_oldest_destroyed(base: str, cluster_name: str) -> None:
    """Keep the newest ``MAX_DESTROYED_MARKERS`` of clusters that were given up."""
    dated = []
    for marker in read_markers(base, cluster_name):
        if marker.destroyed:
            with suppress(FileNotFoundError):
                dated.append((os.stat(_path(base, marker.cluster)).st_mtime_ns, marker.cluster))
    for _, cluster in sorted(dated)[:-MAX_DESTROYED_MARKERS]:
        remove_marker(base, cluster)


def _path(base: str, cluster: int) -> str:
    return os.path.join(base, f"cluster-{cluster:x}.json")
