"""What one Ray node's disk holds of a cluster, and what launch does there: functions that run on the node as tasks.

A cluster's data on a node is in ``<data_dir>/<cluster>/<member>/``, with two small files beside each of these folders:
``<member>.lock``, which a process that works on the folder holds locked, and ``<member>.reserved`` from the first phase
of a bootstrap. A reservation says that this place belongs to a bootstrap of that cluster id which has not written here
yet, and which other places that bootstrap has. Only a folder with an identity has ever been a member's. The markers of
``markers.py`` are beside them, on every node.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress

import msgspec

from ...errors import ClusterMismatch, DataCorrupted, KeeperError, Unavailable
from ...limits import LOCK_PAUSE_S
from ...store.data_copies import Served, read_served
from ...store.data_dir import DataDir, Identity
from ...store.data_lock import lock_path, locked, member_disk
from ...store.engine.files import is_folder
from ...store.engine.rocks import RocksDisk
from ...store.membership_note import MembershipNote, read_note
from ..ray_env import FAST_DEATH
from .markers import MarkedMember, Marker, base_of, forget_oldest_destroyed, read_markers, remove_marker, write_marker


class UnusableFolder(KeeperError):
    """A data directory that cannot be read or written."""


class FoundData(msgspec.Struct, frozen=True):
    """One member's place on a node."""

    name: str
    """The folder's name, which is the member's."""
    folder: str
    device: tuple[int, int]
    """Device and inode: the same folder may be seen from several Ray nodes on one machine. Zeros if the disk does not
    even tell these."""
    identity: Identity | None = None
    reserved: int = 0
    """Cluster id of a bootstrap that has reserved this place and not written to it yet; 0 for none."""
    damage: str = ""
    """Why there is no identity although there should be one, or what cannot be read; empty if all is well."""
    note: MembershipNote | None = None
    """Who took part, as this member knew it."""
    listed: tuple[MarkedMember, ...] = ()
    """All members of the bootstrap that has reserved this place."""
    served: Served = Served()
    """How often a member has started to serve from here, and whether this is a copy."""
    refused: bool = False
    """The disk has refused to be read: there may be more here than this says."""

    def seen_as(self, machine: str, address: str) -> tuple[object, ...]:
        """Equal for the same folder seen from another node. If the disk does not tell its inode, the path counts, and
        only on one address: containers of one machine may each have a folder of that path."""
        return (machine, self.device) if self.device != (0, 0) else (machine, self.folder, address)


class NodeInventory(msgspec.Struct, frozen=True):
    """What a node holds of a cluster."""

    base: str
    """The folder of the cluster on this node, with ``~`` resolved."""
    machine: str
    """Identifies the machine until it boots again."""
    found: tuple[FoundData, ...] = ()
    problem: str = ""
    """Why the folder cannot be read."""
    silent: bool = False
    """The node did not answer at all."""
    lacks_package: bool = False
    """It did not because it cannot load RayKeeper: no member lives there."""
    fast_death: bool = False
    """Whether processes on this node have ``FAST_DEATH`` set to 0 already."""
    markers: tuple[Marker, ...] = ()
    """Clusters of that name of which this node has markers."""

    @property
    def says_nothing(self) -> bool:
        """Whether there may be more than what was found. Where the package cannot be loaded no member has lived."""
        return bool(self.problem) and not self.lacks_package

    def ids(self) -> set[int]:
        """Ids of all clusters of which anything was found."""
        found = {marker.cluster for marker in self.markers}
        for place in self.found:
            found |= {place.reserved, place.identity.cluster if place.identity is not None else 0}
        return found - {0}


def no_answer(why: str, lacks_package: bool) -> NodeInventory:
    """What is known of a node that did not answer."""
    return NodeInventory("", "", problem=why, silent=True, lacks_package=lacks_package)


def survey(data_dir: str, cluster: str) -> NodeInventory:
    """List what there is of a cluster. Only reads, and only small files."""
    base = base_of(data_dir, cluster)
    problem = ""
    found: list[FoundData] = []
    names: list[str] = []
    markers: tuple[Marker, ...] = ()
    try:
        names = sorted(os.listdir(base))
        markers = read_markers(base, cluster)
    except FileNotFoundError:
        pass
    except OSError as error:
        problem = f"{base}: {error.strerror}"
    members = {name.removesuffix(".reserved") for name in names if name.endswith(".reserved")}
    members |= {name for name in names if _may_be_folder(os.path.join(base, name))}
    for name in sorted(members):
        found.append(inspect_place(base, name))
    fast_death = os.environ.get(FAST_DEATH) == "0"
    return NodeInventory(base, _machine(), tuple(found), problem, fast_death=fast_death, markers=markers)


def leave_marker(data_dir: str, marker: Marker) -> NodeInventory:
    """Write a marker on this node, unless there is one that knows more; returns what there is of that cluster name.

    Raises:
        UnusableFolder: it cannot be written, or the disk refuses to tell what else there is.
    """
    base = base_of(data_dir, marker.cluster_name)
    try:
        write_marker(base, marker)
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None
    return _readable(survey(data_dir, marker.cluster_name))


def reserve_place(base: str, member: str, marker: Marker) -> None:
    """First phase of a bootstrap: check that the place can be written and holds no data, and reserve it.

    Args:
        marker: names the new cluster, and all its places.

    Raises:
        UnusableFolder: it cannot be written.
        ClusterMismatch: it already holds data.
    """
    try:
        RocksDisk().make_folder(base)
        with locked(base, member):
            found = _readable_place(base, member)
            if found.identity is not None or found.damage:
                raise ClusterMismatch(f"{found.folder} already holds data")
            RocksDisk().replace(_reservation(base, member), msgspec.json.encode(marker))
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None


def create_member(base: str, identity: Identity) -> None:
    """Second phase: write log and state and, last, the identity into a reserved place.

    Raises:
        ClusterMismatch: the place is not reserved for this cluster id.
    """
    member = identity.name
    try:
        with locked(base, member):
            found = _readable_place(base, member)
            if found.reserved != identity.cluster or found.identity is not None:
                raise ClusterMismatch(f"{found.folder} is not reserved for cluster id {identity.cluster:x}")
            DataDir.create(member_disk(), found.folder, identity).close()
            os.remove(_reservation(base, member))
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None


def create_joining_member(base: str, identity: Identity) -> bool:
    """Create the data of a member that is about to join; nothing happens if it exists already.

    It is created only once: data that was there and is gone has taken the member's promises with it.

    Returns:
        False if another process works there: the member itself, or another process that creates its data.

    Raises:
        UnusableFolder: the place cannot be written.
        ClusterMismatch: there is data of another member, or this member's data was there and is gone.
        DataCorrupted: there is data that cannot be read.
    """
    try:
        RocksDisk().make_folder(base)
        with locked(base, identity.name):
            found = _readable_place(base, identity.name)
            if found.damage:
                raise DataCorrupted(f"{found.folder}: {found.damage}")
            if found.identity is not None:
                if (found.identity.cluster, found.identity.member) != (identity.cluster, identity.member):
                    raise ClusterMismatch(f"{found.folder} already holds data of another member")
            else:
                if _marked(_enrolled(base, identity.name)) == identity.cluster:
                    raise ClusterMismatch(f"{found.folder} held the data of {identity.name}, and it is gone")
                DataDir.create(member_disk(), found.folder, identity).close()
            RocksDisk().replace(_enrolled(base, identity.name), f"{identity.cluster:x}\n".encode())
    except Unavailable:
        return False
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None
    return True


def is_unused(base: str, member: str, cluster: int) -> bool:
    """Whether the place was reserved for this cluster id and never written, or written, and its
    member has never voted or appended anything."""
    with locked(base, member):
        found = inspect_place(base, member)
        if found.identity is None:
            return not found.damage and found.reserved == cluster
        if found.identity.cluster != cluster:
            return False
        folder = DataDir.open(member_disk(), found.folder)
        try:
            return folder.log.empty
        finally:
            folder.close()


def delete_member(base: str, member: str, cluster: int) -> None:
    """Delete a member's data, if it belongs to that cluster; its lock must be free, so its process is gone."""
    try:
        _delete_member(base, member, cluster)
    except FileNotFoundError:
        if is_folder(base):
            raise
        return  # another process has just deleted it: nodes may share a disk
    with suppress(OSError):  # other members' data may be beside it
        os.rmdir(base)


def _delete_member(base: str, member: str, cluster: int) -> None:
    """Delete the folder's content, the identity last, then the files beside it: a crash in between must leave a place
    that still says whose it is, or none."""
    with locked(base, member):
        found = inspect_place(base, member)
        if found.refused and found.identity is None:
            raise UnusableFolder(f"{found.folder}: {found.damage}")  # it may be another cluster's
        if found.identity is not None and found.identity.cluster != cluster:
            return
        # The identity goes last: half deleted data must not look like a place that never had any.
        if is_folder(found.folder):
            for name in os.listdir(found.folder):
                path = os.path.join(found.folder, name)
                if is_folder(path):
                    shutil.rmtree(path)
            shutil.rmtree(found.folder)
        for mark in (_reservation(base, member), _enrolled(base, member)):
            with suppress(FileNotFoundError):
                os.remove(mark)
        with suppress(FileNotFoundError):
            os.remove(lock_path(base, member))


def delete_cluster(
    data_dir: str, cluster_name: str, cluster: int, patience: float, remains: Marker | None = None
) -> None:
    """Delete all that a node holds of a cluster, once no process holds it, and nothing of another cluster id.

    Args:
        patience: seconds to wait for a process that holds data.
        remains: the marker of a destroyed cluster to leave, if there may be more of the cluster elsewhere.

    Raises:
        Unavailable: a process still holds data.
        UnusableFolder: it cannot be deleted, or the disk refuses to tell what there is.
    """
    deadline = time.monotonic() + patience
    inventory = _readable(survey(data_dir, cluster_name))
    others = bool(inventory.ids() - {cluster} - {marker.cluster for marker in inventory.markers if marker.destroyed})
    try:
        for found in inventory.found:
            while _is_of(found, cluster, others):
                try:
                    delete_member(inventory.base, found.name, cluster)
                    break
                except Unavailable:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(LOCK_PAUSE_S)
        if remains is None:
            remove_marker(inventory.base, cluster)
            with suppress(OSError):  # other clusters' data may be there
                os.rmdir(inventory.base)
        else:
            write_marker(inventory.base, remains)
            forget_oldest_destroyed(inventory.base, cluster_name)
    except OSError as error:
        raise UnusableFolder(f"{error.filename or inventory.base}: {error.strerror}") from None


def _is_of(found: FoundData, cluster: int, others: bool) -> bool:
    """Whether a place belongs to a cluster; one that does not say so does, unless there is something of ``others``."""
    if found.identity is not None:
        return found.identity.cluster == cluster
    return found.reserved == cluster if found.reserved else not others


def inspect_place(base: str, member: str) -> FoundData:
    """What one member's place holds, as far as the disk lets itself be read."""
    folder = os.path.join(base, member)
    reserved, listed, device = 0, tuple[MarkedMember, ...](), (0, 0)
    identity, note, damage, served, refused = None, None, "", Served(), False
    try:
        reserved, listed = _reserved(_reservation(base, member))
        status = os.stat(folder)
        device = status.st_dev, status.st_ino
        identity = DataDir.read_identity(RocksDisk(), folder)
        if identity is None and not reserved and os.listdir(folder):
            damage = "it holds data, but no identity"
        served = read_served(folder)
        note = read_note(RocksDisk(), folder)
    except FileNotFoundError:  # there is none, or it was deleted just now
        return FoundData(member, folder, (0, 0), reserved=reserved, listed=listed)
    except (DataCorrupted, NotADirectoryError) as error:
        damage = str(error)
    except OSError as error:
        damage, refused = f"it cannot be read: {error.strerror or error}", True
    return FoundData(member, folder, device, identity, reserved, damage, note, listed, served, refused)


def _readable(inventory: NodeInventory) -> NodeInventory:
    """What a node holds, for who concludes from what is not there.

    Raises:
        UnusableFolder: the disk refuses to say.
    """
    if inventory.problem:
        raise UnusableFolder(inventory.problem)
    return inventory


def _readable_place(base: str, member: str) -> FoundData:
    """What one member's place holds, for who is about to change it.

    Raises:
        UnusableFolder: the disk refuses to say.
    """
    found = inspect_place(base, member)
    if found.refused:
        raise UnusableFolder(f"{found.folder}: {found.damage}")
    return found


def _may_be_folder(path: str) -> bool:
    """Whether there is a folder, or something that the disk refuses to tell of."""
    try:
        return is_folder(path)
    except OSError:
        return True


def _reserved(path: str) -> tuple[int, tuple[MarkedMember, ...]]:
    """The cluster id that a place is reserved for, 0 for none, and all places of that bootstrap."""
    with suppress(FileNotFoundError, msgspec.MsgspecError), open(path, "rb") as file:
        marker = msgspec.json.decode(file.read(), type=Marker)
        return marker.cluster, marker.members
    return 0, ()


def _marked(path: str) -> int:
    """The cluster id that a small file holds, 0 if there is none."""
    with suppress(FileNotFoundError, ValueError), open(path, encoding="ascii") as file:
        return int(file.read(), 16)
    return 0


def _reservation(base: str, member: str) -> str:
    return os.path.join(base, f"{member}.reserved")


def _enrolled(base: str, member: str) -> str:
    """A file beside the folder of a member that joined later: it says that its data was created."""
    return os.path.join(base, f"{member}.enrolled")


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename
