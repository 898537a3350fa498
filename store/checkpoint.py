"""A checkpoint of the state database as one stream of bytes, for sending it to another member.

    length of the manifest (8 bytes) | manifest: format, (name, size, sha256) of each file | the files, in that order

The image's id is the hash of its manifest, so it names exactly these bytes: chunks of two images never mix, and the
receiver needs nothing but the id to know that what it got is what was sent.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right

import msgspec

from ..actors.raft.messages import SnapshotMeta
from ..errors import DataCorrupted
from ..limits import COPY_BYTES, SNAPSHOT_SYNC_BYTES
from .engine import Disk
from .state import State

FORMAT = 1
_LENGTH_BYTES = 8


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


class Outgoing:
    """An image to send, over a checkpoint that stays where it is.

    Args:
        disk: where it lies.
        folder: a folder of its own for the image.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = folder
        self.source = f"{folder}/checkpoint"
        """Where the checkpoint is to be written."""
        self.id = ""
        self.size = 0
        """Bytes of the stream."""
        self._head = b""
        self._starts: list[int] = []
        """Offset in the stream at which each file begins."""
        self._files: tuple[_File, ...] = ()

    def pack(self) -> None:
        """Hash the files and make the manifest. Slow, for a background thread; afterwards ``id`` and ``size`` hold."""
        files = []
        for name in self._disk.list(self.source):
            path = f"{self.source}/{name}"
            size, digest = self._disk.size(path), hashlib.sha256()
            for offset in range(0, size, COPY_BYTES):
                digest.update(self._disk.read(path, offset, COPY_BYTES))
            files.append(_File(name, size, digest.digest()))
        manifest = _encode(_Manifest(FORMAT, tuple(files)))
        self._head = len(manifest).to_bytes(_LENGTH_BYTES, "big") + manifest
        self._files = tuple(files)
        position = len(self._head)
        for file in files:
            self._starts.append(position)
            position += file.size
        self.size = position
        self.id = hashlib.sha256(manifest).hexdigest()

    def chunk(self, offset: int, size: int) -> bytes:
        """Bytes of the stream from an offset on, fewer only at its end."""
        parts = [self._head[offset : offset + size]]
        offset += len(parts[0])
        left = min(size, self.size - offset + len(parts[0])) - len(parts[0])
        while left > 0:
            number = bisect_right(self._starts, offset) - 1
            file, inside = self._files[number], offset - self._starts[number]
            part = self._disk.read(f"{self.source}/{file.name}", inside, min(left, file.size - inside))
            if not part:
                raise DataCorrupted(f"{self.source}/{file.name} is shorter than it was")
            parts.append(part)
            offset += len(part)
            left -= len(part)
        return b"".join(parts)

    def remove(self) -> None:
        """Remove the checkpoint. The object is of no use afterwards."""
        self._disk.remove(self._folder)


class Incoming:
    """An image that is being received, and what becomes of it.

    Args:
        disk: where it goes.
        folder: a folder of its own for the stream.
        target: where the state is to be unpacked.
        meta: what the sender said of it.
    """

    def __init__(self, disk: Disk, folder: str, target: str, meta: SnapshotMeta, *, resume: bool = False) -> None:
        self._disk = disk
        self._folder = folder
        self._stream = f"{folder}/stream"
        self.target = target
        self.meta = meta
        self.received = 0
        """Bytes of the stream so far."""
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
    def find(cls, disk: Disk, folder: str, target: str) -> Incoming | None:
        """What an earlier process has left of an image in its folder, to go on with, if it can be used.

        It was not synced, so some of it may be wrong; the hashes will tell once it is whole.
        """
        try:
            meta = _decode_meta(disk.read(f"{folder}/{_META}"))
            incoming = cls(disk, folder, target, meta, resume=True)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return incoming if incoming.received <= meta.size else None

    @property
    def id(self) -> str:
        """The image's id."""
        return self.meta.id

    def accept(self, offset: int, data: bytes) -> int:
        """Store a chunk if it is the next one; returns the offset that is wanted next."""
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
        """Check the whole stream, write its files durably to ``target``, and open the state there.

        Slow, for a background thread.

        Raises:
            DataCorrupted: it is not what the sender sent, or not the state that ``meta`` speaks of. Nothing is left of
                it but the stream.
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
            state.sync()
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
        """Forget the image, unless it was installed."""
        self._discard_target()
        self._disk.remove(self._folder)


def unpack_image(disk: Disk, stream: str, start: int, size: int, id: str, target: str | None) -> None:
    """Check an image, and write its files durably.

    Args:
        stream: the file that holds the image, from ``start`` on.
        size, id: of the image.
        target: a folder that does not exist yet; ``None`` only checks.

    Raises:
        DataCorrupted: it is not the image of that id. Some files may be there already.
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
        raise DataCorrupted("the image has more bytes than its manifest says")


def _read_manifest(disk: Disk, stream: str, start: int, size: int, id: str) -> tuple[_Manifest, int]:
    """The manifest, and where in the stream the first file begins."""
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
    if manifest.format != FORMAT:
        raise DataCorrupted(f"the image has format {manifest.format}; this version knows {FORMAT}")
    if any("/" in file.name or file.name in ("", ".", "..") for file in manifest.files):
        raise DataCorrupted("the image has a file with a forbidden name")
    return manifest, start + _LENGTH_BYTES + length
