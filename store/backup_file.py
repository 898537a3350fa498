"""Backups: the state at one log index as a file that can be checked by itself, and how to make a new cluster from it.

    RKBACKUP | length (8 bytes) | header: JSON | sha256 of the header | image (see ``snapshot_file``)

and, if a client of etcd has saved it,

    | zeros up to a multiple of 512 bytes | sha256 of all before

The header names the image by the hash of its manifest, and the manifest holds a hash of each file, so no byte can be
lost or changed unnoticed. The header also holds the hash of the content (``state/content_hash.py``): a restore checks
that the unpacked state means the same, not only that its bytes are the same.

A new cluster keeps the keys with their history and revisions, the leases (with their whole TTL again, as in etcd), and
the answers to request ids. It gets its own identity, members and settings. Sessions, member records and alarms of the
old cluster are dropped. Log indexes continue after the backup's, so that ids made from them stay unique.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from ..errors import ClusterMismatch, DataCorrupted
from ..limits import BACKUP_BLOCK_BYTES, COPY_BYTES, MAX_BACKUP_HEADER_BYTES, Limits, encode_settings
from ..raft.messages import Configuration
from ..schema.portable import Portable
from .data_dir import DataDir, Identity
from .engine.interface import Disk
from .snapshot_file import SnapshotSource, unpack_image
from .state.machine import State

BACKUP_FORMAT = 1
MAGIC = b"RKBACKUP"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
PARTIAL = ".partial"
"""Suffix of a backup that is being written."""


class Header(Portable, frozen=True):
    """The header of a backup."""

    cluster_name: str
    cluster: int
    """Id of the cluster that it was taken from."""
    member: int
    """The member that it was taken from."""
    revision: int
    compact_revision: int
    index: int
    """The log index of the state..."""
    term: int
    """... and its term."""
    image: str
    image_bytes: int
    content: str
    created: float
    """Seconds since 1970, by the clock of the process that wrote it; for people."""
    format: int = BACKUP_FORMAT


class _BackupFormat(msgspec.Struct, frozen=True):
    format: int


def encode_header(header: Header) -> bytes:
    """The bytes of a backup before its image."""
    data = msgspec.json.encode(header)
    return b"".join((MAGIC, len(data).to_bytes(_LENGTH_BYTES, "big"), data, hashlib.sha256(data).digest()))


def read_header(disk: Disk, path: str) -> tuple[Header, int]:
    """The header of a backup, and the offset at which its image begins.

    Raises:
        DataCorrupted: it is not a backup, is damaged, or has a format that this version does not know.
        OSError: it cannot be read.
    """
    start = len(MAGIC) + _LENGTH_BYTES
    head = disk.read(path, 0, start)
    if head[: len(MAGIC)] != MAGIC or len(head) < start:
        raise DataCorrupted(f"{path} is not a backup of RayKeeper")
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > MAX_BACKUP_HEADER_BYTES:
        raise DataCorrupted(f"{path}: its header is damaged")
    data, digest = disk.read(path, start, length), disk.read(path, start + length, _DIGEST_BYTES)
    if hashlib.sha256(data).digest() != digest:
        raise DataCorrupted(f"{path}: its header is damaged")
    try:
        format = msgspec.json.decode(data, type=_BackupFormat).format
        if format != BACKUP_FORMAT:
            raise DataCorrupted(f"{path} has format {format}; this version of RayKeeper knows {BACKUP_FORMAT}")
        return msgspec.json.decode(data, type=Header), start + length + _DIGEST_BYTES
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"{path}: its header cannot be read: {error}") from error


def verify(disk: Disk, path: str) -> Header:
    """Check every byte of a backup, and return its header. Raises as ``read_header``."""
    header, start = read_header(disk, path)
    _unpack(disk, path, header, start, None)
    return header


def _unpack(disk: Disk, path: str, header: Header, start: int, target: str | None) -> None:
    size, end = disk.size(path), start + header.image_bytes
    blocks = end + -end % BACKUP_BLOCK_BYTES
    if size == blocks + _DIGEST_BYTES:
        _check_digest(disk, path, blocks)
    elif size != end:
        raise DataCorrupted(f"{path} has {size} bytes instead of {end}: it is incomplete")
    try:
        unpack_image(disk, path, start, header.image_bytes, header.image, target)
    except DataCorrupted as error:
        raise DataCorrupted(f"{path}: {error}") from error


def _check_digest(disk: Disk, path: str, size: int) -> None:
    """Compare the digest at the end of a file with what is before it."""
    digest = hashlib.sha256()
    for offset in range(0, size, COPY_BYTES):
        digest.update(disk.read(path, offset, min(COPY_BYTES, size - offset)))
    if disk.read(path, size, _DIGEST_BYTES) != digest.digest():
        raise DataCorrupted(f"{path} is damaged: its SHA-256 is another")


def write_backup(disk: Disk, path: str, header: Header, chunk: Callable[[int, int], bytes]) -> int:
    """Write a backup to a file, durably and checked. The file appears complete or not at all.

    Args:
        path: an absolute path; an existing file is replaced.
        chunk: (offset, size) -> bytes of the image, fewer only at its end.

    Returns:
        Its size in bytes.

    Raises:
        DataCorrupted: the image is not the one that the header describes.
        NoSpace: the disk is full.
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
                raise DataCorrupted(f"{path}: the image ended early")
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


# --- a new cluster from it -------------------------------------------------------------------------------------------


def create_member(disk: Disk, path: str, identity: Identity, backup: str) -> None:
    """Create the data of one of the first members of a new cluster from a backup; instead of ``DataDir.create``.

    The identity is written last, so an interrupted creation leaves no member. Leftovers of one are removed, and so is
    the backup if it lies in the folder.

    Raises:
        ClusterMismatch: the folder already holds a member's data.
        DataCorrupted: the backup is damaged, or its state is not what its header says.
    """
    if DataDir.read_identity(disk, path) is not None:
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
        state.reset_for_new_cluster(configuration, encode_settings(identity.settings))
    finally:
        state.close()
    DataDir.create_from_state(disk, path, identity, configuration, header.index, header.term)
    if backup.startswith(f"{path}/"):
        disk.remove(backup)


def back_up_folder(disk: Disk, path: str, target: str, created: float, scratch: str) -> tuple[Header, int]:
    """Back up the data of a member that no process has open, including everything in its log.

    Uncommitted entries are applied too: one member alone cannot know which of its newest entries were committed, and
    acknowledged writes must not be lost. The data is opened and changed, so use a copy of it.

    Args:
        path: the member's folder.
        target: the file to write.
        created: for the header.
        scratch: a folder that does not exist yet; it is removed afterwards.

    Returns:
        The header, and the number of applied entries that the member did not know to be committed.

    Raises:
        DataCorrupted: log or state is missing or damaged.
    """
    data_dir = DataDir.open(disk, path, rebuild=True)
    try:
        state, log = data_dir.state, data_dir.log
        if state.lost:
            raise DataCorrupted(
                f"{path}: the state is lost ({state.lost}), and the log does not hold everything that it contained"
            )
        commit = log.hard_state.commit
        while state.applied_index < log.last_index():
            entries = log.entries(state.applied_index + 1, log.last_index() + 1, Limits().max_append_bytes)
            state.apply(entries, {entry.index: state.configuration for entry in entries})
        state.flush()
        source = SnapshotSource(disk, scratch)
        disk.make_folder(scratch)
        state.checkpoint(source.source)
        source.pack()
        identity = data_dir.identity
        header = Header(
            cluster_name=identity.cluster_name,
            cluster=identity.cluster,
            member=identity.member,
            revision=state.revision,
            compact_revision=state.compact_revision,
            index=state.applied_index,
            term=state.applied_term,
            image=source.id,
            image_bytes=source.size,
            content=state.content_hash(),
            created=created,
        )
        write_backup(disk, target, header, source.read_chunk)
        return header, log.last_index() - commit
    finally:
        data_dir.close()
        disk.remove(scratch)
