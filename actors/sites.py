"""What one Ray node's disk holds for a cluster, and what launch does there: functions that run on it as tasks.

A cluster's data on a node lies in ``<data_dir>/<cluster>/<member>/``, with two small files beside each of these
folders: ``<member>.lock``, which whoever works on the folder holds locked, and ``<member>.reserved`` from the first
phase of a bootstrap. A reservation says that this place belongs to a bootstrap of that cluster id which has written
nothing here yet, and which other places that bootstrap has; only where a folder has an identity has anything happened.
Beside them lie the markers of ``markers.py``, on every node.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from ..errors import ClusterMismatch, DataCorrupted, KeeperError, Unavailable
from ..limits import LOCK_PAUSE
from ..store.folder import Identity, MemberFolder
from ..store.membership_note import MembershipNote, read_note
from ..store.rocks import RocksDisk
from .copies import Served, read_served
from .markers import MarkedMember, Marker, base_of, forget_oldest_destroyed, read_markers, remove_marker, write_marker

SYNC_JOURNAL = "RAYKEEPER_SYNC_JOURNAL"
"""Environment variable: a folder in which each process notes what its syncs made durable, for tests of durability."""
FAST_DEATH = "RAY_timeout_ms_task_wait_for_death_info"
"""Environment variable of Ray: with 0, a call to a dead actor fails in milliseconds instead of a second."""


class UnusableFolder(KeeperError):
    """A data directory that cannot be read or written."""


class Found(msgspec.Struct, frozen=True):
    """One member's place on a node."""

    name: str
    """The folder's name, which is the member's."""
    folder: str
    device: tuple[int, int]
    """Device and inode: the same folder may be seen from several Ray nodes on one machine."""
    identity: Identity | None = None
    reserved: int = 0
    """Cluster id of a bootstrap that has reserved this place and not yet written to it; 0 for none."""
    damage: str = ""
    """Why there is no identity, if there should be one."""
    note: MembershipNote | None = None
    """Who took part, as far as this member knew."""
    listed: tuple[MarkedMember, ...] = ()
    """All members of the bootstrap that has reserved this place."""
    served: Served = Served()
    """How often a member has begun to serve from here, and whether this is a copy."""


class Site(msgspec.Struct, frozen=True):
    """What a node holds for a cluster."""

    base: str
    """The folder of the cluster on this node, with ``~`` resolved."""
    machine: str
    """Names the machine, as long as it does not boot."""
    found: tuple[Found, ...] = ()
    problem: str = ""
    """Why the folder cannot be read."""
    silent: bool = False
    """The node did not answer at all."""
    fast_death: bool = False
    """Whether processes on this node have ``FAST_DEATH`` set to 0 already."""
    markers: tuple[Marker, ...] = ()
    """Clusters of the name that this node knows of."""

    def ids(self) -> set[int]:
        """Ids of all clusters that there is anything of."""
        found = {marker.cluster for marker in self.markers}
        for place in self.found:
            found |= {place.reserved, place.identity.cluster if place.identity is not None else 0}
        return found - {0}


def member_disk() -> RocksDisk:
    """The disk of this process."""
    journal = os.environ.get(SYNC_JOURNAL)
    return RocksDisk(sync_journal=os.path.join(journal, str(os.getpid())) if journal else None)


def survey(data_dir: str, cluster: str) -> Site:
    """Look what there is for a cluster. Reads only, and only small files."""
    base = base_of(data_dir, cluster)
    problem = ""
    found: list[Found] = []
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        names = []
    except OSError as error:
        names, problem = [], f"{base}: {error.strerror}"
    members = {name.removesuffix(".reserved") for name in names if name.endswith(".reserved")}
    members |= {name for name in names if os.path.isdir(os.path.join(base, name))}
    for name in sorted(members):
        found.append(look(base, name))
    fast_death = os.environ.get(FAST_DEATH) == "0"
    markers = read_markers(base, cluster)
    return Site(base, _machine(), tuple(found), problem, fast_death=fast_death, markers=markers)


def mark(data_dir: str, marker: Marker) -> Site:
    """Leave a marker on this node, unless one is there that knows more; what there is for a cluster of that name.

    Raises:
        UnusableFolder: it cannot be written.
    """
    base = base_of(data_dir, marker.cluster_name)
    try:
        write_marker(base, marker)
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None
    return survey(data_dir, marker.cluster_name)


def reserve(base: str, member: str, marker: Marker) -> None:
    """First phase of a bootstrap: make sure that the place can be written and holds no data, and reserve it.

    Args:
        marker: names the new cluster, and all its places.

    Raises:
        UnusableFolder: it cannot be written.
        ClusterMismatch: there is data already.
    """
    try:
        RocksDisk().make_folder(base)
        with locked(base, member):
            found = look(base, member)
            if found.identity is not None or found.damage:
                raise ClusterMismatch(f"{found.folder} already holds data")
            RocksDisk().replace(_reservation(base, member), msgspec.json.encode(marker))
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None


def create(base: str, identity: Identity) -> None:
    """Second phase: write the databases and, last, the identity into a reserved place.

    Raises:
        ClusterMismatch: the place is not reserved for this cluster id.
    """
    member = identity.name
    try:
        with locked(base, member):
            found = look(base, member)
            if found.reserved != identity.cluster or found.identity is not None:
                raise ClusterMismatch(f"{found.folder} is not reserved for cluster id {identity.cluster:x}")
            MemberFolder.create(member_disk(), found.folder, identity).close()
            os.remove(_reservation(base, member))
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None


def enroll(base: str, identity: Identity) -> bool:
    """Make the data of a member that is about to join; nothing happens if it is there already.

    It is made once only: where it was and is gone, what the member has promised is gone with it.

    Returns:
        False if another process is at work there: the member itself, or somebody else who makes its data.

    Raises:
        UnusableFolder: the place cannot be written.
        ClusterMismatch: there is data of somebody else, or the member's was there and is gone.
        DataCorrupted: there is data that cannot be read.
    """
    try:
        RocksDisk().make_folder(base)
        with locked(base, identity.name):
            found = look(base, identity.name)
            if found.damage:
                raise DataCorrupted(f"{found.folder}: {found.damage}")
            if found.identity is not None:
                if (found.identity.cluster, found.identity.member) != (identity.cluster, identity.member):
                    raise ClusterMismatch(f"{found.folder} already holds data of another member")
            else:
                if _marked(_enrolled(base, identity.name)) == identity.cluster:
                    raise ClusterMismatch(f"{found.folder} held the data of {identity.name}, and it is gone")
                MemberFolder.create(member_disk(), found.folder, identity).close()
            RocksDisk().replace(_enrolled(base, identity.name), f"{identity.cluster:x}\n".encode())
    except Unavailable:
        return False
    except OSError as error:
        raise UnusableFolder(f"{error.filename or base}: {error.strerror}") from None
    return True


def is_unused(base: str, member: str, cluster: int) -> bool:
    """Whether the place was reserved for this cluster id and never written, or written and never voted or appended."""
    with locked(base, member):
        found = look(base, member)
        if found.identity is None:
            return not found.damage and found.reserved == cluster
        if found.identity.cluster != cluster:
            return False
        folder = MemberFolder.open(member_disk(), found.folder)
        try:
            return folder.log.empty
        finally:
            folder.close()


def clear(base: str, member: str, cluster: int) -> None:
    """Delete a member's data, if it is that cluster's; its lock must be free, so its process gone."""
    try:
        _clear(base, member, cluster)
    except FileNotFoundError:
        if os.path.isdir(base):
            raise
        return  # somebody else has just deleted it: nodes may share a disk
    with suppress(OSError):  # other members' data may be beside it
        os.rmdir(base)


def _clear(base: str, member: str, cluster: int) -> None:
    with locked(base, member):
        found = look(base, member)
        if found.identity is not None and found.identity.cluster != cluster:
            return
        # The identity goes last: half deleted data must not look like a place that never had any.
        if os.path.isdir(found.folder):
            for name in os.listdir(found.folder):
                path = os.path.join(found.folder, name)
                if os.path.isdir(path):
                    shutil.rmtree(path)
            shutil.rmtree(found.folder)
        for mark in (_reservation(base, member), _enrolled(base, member)):
            with suppress(FileNotFoundError):
                os.remove(mark)
        with suppress(FileNotFoundError):
            os.remove(_lock_path(base, member))


def clear_all(data_dir: str, cluster_name: str, cluster: int, patience: float, remains: Marker | None = None) -> None:
    """Delete all that a node holds of a cluster, once no process holds it, and nothing of another cluster id.

    Args:
        patience: in seconds.
        remains: if it may not be all that there is of the cluster: the marker to leave, of one that is destroyed.

    Raises:
        Unavailable: a process still holds data.
        UnusableFolder: it cannot be deleted.
    """
    deadline = time.monotonic() + patience
    site = survey(data_dir, cluster_name)
    others = bool(site.ids() - {cluster} - {marker.cluster for marker in site.markers if marker.destroyed})
    try:
        for found in site.found:
            while _is_of(found, cluster, others):
                try:
                    clear(site.base, found.name, cluster)
                    break
                except Unavailable:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(LOCK_PAUSE)
        if remains is None:
            remove_marker(site.base, cluster)
            with suppress(OSError):  # other clusters' data may be there
                os.rmdir(site.base)
        else:
            write_marker(site.base, remains)
            forget_oldest_destroyed(site.base, cluster_name)
    except OSError as error:
        raise UnusableFolder(f"{error.filename or site.base}: {error.strerror}") from None


def _is_of(found: Found, cluster: int, others: bool) -> bool:
    """Whether a place belongs to a cluster; one that cannot tell does if there is nothing of ``others``."""
    if found.identity is not None:
        return found.identity.cluster == cluster
    return found.reserved == cluster if found.reserved else not others


@contextmanager
def locked(base: str, member: str) -> Iterator[None]:
    """Hold the lock on a member's folder.

    Raises:
        Unavailable: another process holds it.
    """
    fd = try_lock(base, member)
    if fd is None:
        raise Unavailable(f"another process holds {_lock_path(base, member)}")
    try:
        yield
    finally:
        os.close(fd)


def try_lock(base: str, member: str) -> int | None:
    """Lock a member's folder for as long as the file descriptor is open; ``None`` if another process has it.

    The lock ends with the process, and only then: it holds where an actor's name does not.
    """
    fd = os.open(_lock_path(base, member), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def look(base: str, member: str) -> Found:
    """What is in one member's place."""
    folder = os.path.join(base, member)
    reserved, listed = _reserved(_reservation(base, member))
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return Found(member, folder, (0, 0), reserved=reserved, listed=listed)
    identity, note, damage = None, None, ""
    try:
        identity = MemberFolder.read_identity(RocksDisk(), folder)
        if identity is None and not reserved and os.listdir(folder):
            damage = "it holds data, but no identity"
        note = read_note(RocksDisk(), folder)
    except (DataCorrupted, OSError) as error:
        damage = str(error)
    return Found(
        member, folder, (status.st_dev, status.st_ino), identity, reserved, damage, note, listed, read_served(folder)
    )


def _reserved(path: str) -> tuple[int, tuple[MarkedMember, ...]]:
    """For which cluster id a place is reserved, and which places that bootstrap has; 0 if for none."""
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
    """Beside the folder of a member that has joined later: says that its data was made."""
    return os.path.join(base, f"{member}.enrolled")


def _lock_path(base: str, member: str) -> str:
    return os.path.join(base, f"{member}.lock")


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename
