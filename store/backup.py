"""A backup: the state at one log index as a file that vouches for itself, and how a new cluster is made of one.

    RKBACKUP | length (8 bytes) | header: JSON | sha256 of the header | image (see ``checkpoint``)

The header names the image by the hash of its manifest, and the manifest holds a hash of each file; so no byte can be
lost or changed unseen. The header also holds the hash of the content (``content``): what a restore has unpacked must
mean the same, not only be the same bytes.

A new cluster keeps keys, their history and revisions, leases (with their whole TTL again, as in etcd), and the answers
to request ids. It gets its own identity, members, settings and term of office: what belongs to the old one's processes
(sessions) or members (descriptions, alarms) is dropped. Log indexes go on behind the backup's, so that ids which are
made of them stay unique.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from ..actors.raft.messages import Configuration
from ..errors import ClusterMismatch, DataCorrupted
from ..limits import COPY_BYTES, MAX_BACKUP_HEADER_BYTES, Limits, encode_settings
from .checkpoint import Outgoing, unpack_image
from .engine import Disk
from .folder import Identity, MemberFolder
from .portable import Portable
from .state import State

FORMAT = 1
MAGIC = b"RKBACKUP"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
PARTIAL = ".partial"
"""What the name of a backup that is being written ends in."""


class Header(Portable, frozen=True):
    """What a backup says of itself."""

    cluster_name: str
    cluster: int
    """Id of the cluster that it was taken of."""
    member: int
    """The member that it was taken from."""
    revision: int
    compact_revision: int
    index: int
    """The log index that it is of..."""
    term: int
    """... and its term."""
    image: str
    image_bytes: int
    content: str
    created: float
    """Seconds since 1970, by the clock of whoever made it; for people."""
    format: int = FORMAT


class _Format(msgspec.Struct, frozen=True):
    format: int


def encode_header(header: Header) -> bytes:
    """The beginning of a backup, up to its image."""
    data = msgspec.json.encode(header)
    return b"".join((MAGIC, len(data).to_bytes(_LENGTH_BYTES, "big"), data, hashlib.sha256(data).digest()))


def read_header(disk: Disk, path: str) -> tuple[Header, int]:
    """The header of a backup, and where its image begins.

    Raises:
        DataCorrupted: it is no backup, is damaged, or of a format that this version does not know.
        OSError: it cannot be read.
    """
    start = len(MAGIC) + _LENGTH_BYTES
    head = disk.read(path, 0, start)
    if head[: len(MAGIC)] != MAGIC or len(head) < start:
        raise DataCorrupted(f"{path} is no backup of RayKeeper")
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > MAX_BACKUP_HEADER_BYTES:
        raise DataCorrupted(f"{path}: its header is damaged")
    data, digest = disk.read(path, start, length), disk.read(path, start + length, _DIGEST_BYTES)
    if hashlib.sha256(data).digest() != digest:
        raise DataCorrupted(f"{path}: its header is damaged")
    try:
        format = msgspec.json.decode(data, type=_Format).format
        if format != FORMAT:
            raise DataCorrupted(f"{path} has format {format}; this version of RayKeeper knows {FORMAT}")
        return msgspec.json.decode(data, type=Header), start + length + _DIGEST_BYTES
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"{path}: its header cannot be read: {error}") from error


def verify(disk: Disk, path: str) -> Header:
    """Check every byte of a backup, and return its header. Raises as ``read_header``."""
    header, start = read_header(disk, path)
    _unpack(disk, path, header, start, None)
    return header


def _unpack(disk: Disk, path: str, header: Header, start: int, target: str | None) -> None:
    size = disk.size(path)
    if size != start + header.image_bytes:
        raise DataCorrupted(f"{path} has {size} bytes instead of {start + header.image_bytes}: it is incomplete")
    try:
        unpack_image(disk, path, start, header.image_bytes, header.image, target)
    except DataCorrupted as error:
        raise DataCorrupted(f"{path}: {error}") from error


def write_backup(disk: Disk, path: str, header: Header, chunk: Callable[[int, int], bytes]) -> int:
    """Write a backup to a file, durably and checked; the file is there whole or not at all.

    Args:
        path: an absolute path; a file that is there is replaced.
        chunk: (offset, size) -> bytes of the image, fewer only at its end.

    Returns:
        its size in bytes.

    Raises:
        DataCorrupted: what arrived is not what the header says.
        NoSpace: there is no room for it.
        OSError: it cannot be written.
    """
    partial = f"{path}{PARTIAL}"
    disk.remove(partial)
    try:
        disk.append(partial, encode_header(header))
        offset = 0
        while offset < header.image_bytes:
            data = chunk(offset, COPY_BYTES)
            if not data:
                raise DataCorrupted(f"{path}: its source has ended early")
            disk.append(partial, data)
            offset += len(data)
        verify(disk, partial)
        disk.sync_file(partial)
        size = disk.size(partial)
        disk.rename(partial, path)
    except BaseException:
        disk.remove(partial)
        raise
    return size


# --- a new cluster of it ---------------------------------------------------------------------------------------------


def create_member(disk: Disk, path: str, identity: Identity, backup: str) -> None:
    """Make the data of one of the first members of a new cluster, from a backup; in place of ``MemberFolder.create``.

    Leftovers of a creation that was interrupted are removed, the backup too if it lies in the folder.

    Raises:
        ClusterMismatch: there is a member's data already.
        DataCorrupted: the backup is damaged, or does not mean what it says.
    """
    if MemberFolder.read_identity(disk, path) is not None:
        raise ClusterMismatch(f"{path} already holds a member's data")
    header, start = read_header(disk, backup)
    for name in disk.list(path):
        if not backup.startswith(f"{path}/{name}"):
            disk.remove(f"{path}/{name}")
    disk.make_folder(path)
    target = f"{path}/state-1"
    _unpack(disk, backup, header, start, target)
    state = State.open(disk, target)
    try:
        found = (state.applied_index, state.applied_term, state.revision, state.compact_revision)
        if found != (header.index, header.term, header.revision, header.compact_revision):
            raise DataCorrupted(f"{backup}: its state is of {found}, not what its header says")
        if state.content_hash() != header.content:
            raise DataCorrupted(f"{backup}: its content is not what its header says")
        voters = tuple(sorted(member.id for member in identity.members))
        configuration = Configuration(voters=voters, index=header.index)
        state.begin_anew(configuration, encode_settings(identity.settings))
    finally:
        state.close()
    MemberFolder.adopt(disk, path, identity, configuration, header.index, header.term)
    if backup.startswith(f"{path}/"):
        disk.remove(backup)


def back_up_folder(disk: Disk, path: str, target: str, created: float, scratch: str) -> tuple[Header, int]:
    """Make a backup of the data of a member that no process has open, with all that its log holds.

    What was never committed is taken for done too: of the newest entries one member alone cannot know that, and those
    that were acknowledged must not be lost. The data is opened, so this is for a copy of it.

    Args:
        path: the member's folder.
        target: the file to write.
        created: for the header.
        scratch: a folder that does not exist yet; it is gone afterwards.

    Returns:
        the header, and how many entries were taken that the member did not know to be committed.

    Raises:
        DataCorrupted: log or state is missing or damaged.
    """
    folder = MemberFolder.open(disk, path, rebuild=True)
    try:
        state, log = folder.state, folder.log
        if state.lost:
            raise DataCorrupted(f"{path}: the state is lost ({state.lost}), and the log does not hold all of it")
        commit = log.hard_state.commit
        while state.applied_index < log.last_index():
            entries = log.entries(state.applied_index + 1, log.last_index() + 1, Limits().max_append_bytes)
            state.apply(entries, {entry.index: state.configuration for entry in entries})
        state.flush()
        outgoing = Outgoing(disk, scratch)
        disk.make_folder(scratch)
        state.checkpoint(outgoing.source)
        outgoing.pack()
        identity = folder.identity
        header = Header(
            cluster_name=identity.cluster_name,
            cluster=identity.cluster,
            member=identity.member,
            revision=state.revision,
            compact_revision=state.compact_revision,
            index=state.applied_index,
            term=state.applied_term,
            image=outgoing.id,
            image_bytes=outgoing.size,
            content=state.content_hash(),
            created=created,
        )
        write_backup(disk, target, header, outgoing.chunk)
        return header, log.last_index() - commit
    finally:
        folder.close()
        disk.remove(scratch)
