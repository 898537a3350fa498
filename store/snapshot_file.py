"""The image of a snapshot: a checkpoint of the state database as one stream of bytes, to be sent to another member.

    length of the manifest (8 bytes) | manifest: format, (name, size, sha256) of each file | the files, in that order

The image's id is the hash of its manifest, so it names exactly these bytes. Chunks of two images never mix, and the id
is all that the receiver needs to check that it got what was sent.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right

import msgspec

from ..errors import DataCorrupted
from ..limits import COPY_BYTES, SNAPSHOT_SYNC_BYTES
from ..raft.messages import SnapshotMeta
from .engine.interface import Disk
from .state.machine import State

SNAPSHOT_FORMAT = 1
_LENGTH_BYTES = 8
_FORBIDDEN = re.compile(r"[/\x00]|^\.{0,2}$")
"""In names of files: an image may come from anywhere, and must not reach beyond its folder."""
_MAX_NAME = 100
"""RocksDB's are far shorter."""


class _File(msgspec.Struct, frozen=True, array_like=True):
    name: str
    size: int
    sha256: bytes


class _Manifest(msgspec.Struct, frozen=True, array_like=True):
    format: int
    files: tuple[_File, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Manifest).decode
_decode_meta = msgspec.msgpack.Decoder(SnapshotMeta).decode
_META = "meta"


class SnapshotSource:
    """A snapshot to send. Its image is read from the files of a checkpoint; it is not a file of its own.

    Args:
        disk: the disk of the checkpoint.
        folder: a folder for this snapshot alone.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = folder
        self.source = f"{folder}/checkpoint"
        """The folder to which the checkpoint has to be written."""
        self.id = ""
        self.size = 0
        """Size of the image in bytes."""
        self._head = b""
        self._starts: list[int] = []
        """Offset in the image at which each file begins."""
        self._files: tuple[_File, ...] = ()

    def pack(self) -> None:
        """Hash the files and make the manifest; sets ``id`` and ``size``. Slow: for a background thread."""
        files = []
        for name in self._disk.list(self.source):
            path = f"{self.source}/{name}"
            size, digest = self._disk.size(path), hashlib.sha256()
            for offset in range(0, size, COPY_BYTES):
                digest.update(self._disk.read(path, offset, COPY_BYTES))
            files.append(_File(name, size, digest.digest()))
        manifest = _encode(_Manifest(SNAPSHOT_FORMAT, tuple(files)))
        self._head = len(manifest).to_bytes(_LENGTH_BYTES, "big") + manifest
        self._files = tuple(files)
        position = len(self._head)
        for file in files:
            self._starts.append(position)
            position += file.size
        self.size = position
        self.id = hashlib.sha256(manifest).hexdigest()

    def read_chunk(self, offset: int, size: int) -> bytes:
        """``size`` bytes of the image from an offset on; fewer only at its end."""
        parts = [self._head[offset : offset + size]]
        offset += len(parts[0])
        left = min(size, self.size - offset + len(parts[0])) - len(parts[0])
        while left > 0:
            number = bisect_right(self._starts, offset) - 1
            file, inside = self._files[number], offset - self._starts[number]
            part = self._disk.read(f"{self.source}/{file.name}", inside, min(left, file.size - inside))
            if not part:
                raise DataCorrupted(f"{self.source}/{file.name} is shorter than when it was hashed")
            parts.append(part)
            offset += len(part)
            left -= len(part)
        return b"".join(parts)

    def remove(self) -> None:
        """Remove the checkpoint. The object cannot be used afterwards."""
        self._disk.remove(self._folder)


class SnapshotSink:
    """A snapshot that is being received, and then unpacked to a state.

    Args:
        disk: the disk to write to.
        folder: a folder for this snapshot alone.
        target: the folder to which the state will be unpacked.
        meta: the sender's description.
        resume: continue with the bytes that an earlier process has received.
    """

    def __init__(self, disk: Disk, folder: str, target: str, meta: SnapshotMeta, *, resume: bool = False) -> None:
        self._disk = disk
        self._folder = folder
        self._stream = f"{folder}/stream"
        self.target = target
        self.meta = meta
        self.received = 0
        """Bytes of the image so far."""
        self._unsynced = 0
        self.state: State | None = None
        """The opened state, after ``unpack``."""
        if resume:
            self.received = disk.size(self._stream)
        else:
            disk.remove(folder)
            disk.make_folder(folder)
            disk.append(f"{folder}/{_META}", _encode(meta))

    @classmethod
    def resume(cls, disk: Disk, folder: str, target: str) -> SnapshotSink | None:
        """The incomplete snapshot that an earlier process has left in a folder; ``None`` if receiving cannot continue.

        Its bytes were not all synced, so some may be wrong; the hashes tell once it is complete.
        """
        try:
            meta = _decode_meta(disk.read(f"{folder}/{_META}"))
            sink = cls(disk, folder, target, meta, resume=True)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return sink if sink.received <= meta.size else None

    @property
    def id(self) -> str:
        """The image's id."""
        return self.meta.id

    def write_chunk(self, offset: int, data: bytes) -> int:
        """Store a chunk if it is the next one. Returns the offset of the next byte needed."""
        if offset == self.received:
            data = data[: self.meta.size - offset]
            if data:
                self._disk.append(self._stream, data)
                self.received += len(data)
                self._unsynced += len(data)
                if self._unsynced >= SNAPSHOT_SYNC_BYTES:
                    self._disk.sync_file(self._stream)
                    self._unsynced = 0
        return self.received

    def unpack(self) -> None:
        """Check the whole image, write its files durably to ``target``, and open the state there.

        Everything is checked before the state can be used: the bytes by their hashes, the state against ``meta``, and
        every checksum of the database. Slow: for a background thread.

        Raises:
            DataCorrupted: the bytes are not what was sent, or not the state that ``meta`` describes. ``target`` is
                removed.
        """
        self._disk.remove(self.target)
        try:
            if not self.received or self.received != self.meta.size:
                raise DataCorrupted(f"the snapshot has {self.received} bytes instead of {self.meta.size}")
            unpack_image(self._disk, self._stream, 0, self.meta.size, self.meta.id, self.target)
            self.state = state = State.open(self._disk, self.target)
            found = (state.applied_index, state.applied_term, state.configuration)
            if found != (self.meta.index, self.meta.term, self.meta.configuration):
                raise DataCorrupted(f"the snapshot is of {found}, not what was announced: {self.meta}")
            state.verify()
            state.flush()
        except Exception:
            self._discard_target()
            raise
        self._disk.remove(self._folder)

    def _discard_target(self) -> None:
        if self.state is not None:
            self.state.close()
            self.state = None
        self._disk.remove(self.target)

    def remove(self) -> None:
        """Drop the snapshot and all its files."""
        self._discard_target()
        self._disk.remove(self._folder)


def unpack_image(disk: Disk, stream: str, start: int, size: int, id: str, target: str | None) -> None:
    """Check an image against its id, and write its files durably.

    Args:
        stream: the file that contains the image, from byte ``start`` on.
        size, id: the image's.
        target: a folder that does not exist yet; ``None`` only checks.

    Raises:
        DataCorrupted: it is not the image with that id. Some files may have been written already.
    """
    manifest, position = _read_manifest(disk, stream, start, size, id)
    if target is not None:
        disk.make_folder(target)
    for file in manifest.files:
        digest = hashlib.sha256()
        end = position + file.size
        if end > start + size:
            raise DataCorrupted("the image is incomplete")
        unsynced = 0
        if target is not None:
            disk.append(f"{target}/{file.name}", b"")
        while position < end:
            part = disk.read(stream, position, min(COPY_BYTES, end - position))
            if not part:
                raise DataCorrupted("the image is incomplete")
            digest.update(part)
            if target is not None:
                disk.append(f"{target}/{file.name}", part)
                unsynced += len(part)
                if unsynced >= SNAPSHOT_SYNC_BYTES:
                    disk.sync_file(f"{target}/{file.name}")
                    unsynced = 0
            position += len(part)
        if digest.digest() != file.sha256:
            raise DataCorrupted(f"{file.name} in the image is damaged")
        if target is not None:
            disk.sync_file(f"{target}/{file.name}")
    if position != start + size:
        raise DataCorrupted("the image is longer than its manifest says")


def _read_manifest(disk: Disk, stream: str, start: int, size: int, id: str) -> tuple[_Manifest, int]:
    """The checked manifest, and the offset in ``stream`` at which the first file begins."""
    length = int.from_bytes(disk.read(stream, start, _LENGTH_BYTES), "big")
    if _LENGTH_BYTES + length > size:
        raise DataCorrupted("the image's manifest is damaged")
    data = disk.read(stream, start + _LENGTH_BYTES, length)
    if hashlib.sha256(data).hexdigest() != id:
        raise DataCorrupted("the image's manifest is damaged")
    try:
        manifest = _decode(data)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"the image's manifest cannot be read: {error}") from error
    if manifest.format != SNAPSHOT_FORMAT:
        raise DataCorrupted(f"the image has format {manifest.format}; this version knows {SNAPSHOT_FORMAT}")
    if any(_FORBIDDEN.search(file.name) or len(file.name) > _MAX_NAME for file in manifest.files):
        raise DataCorrupted("the image has a file with a forbidden name")
    return manifest, start + _LENGTH_BYTES + length
