"""The results of a handle's calls. All are immutable, and pickle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from ...codec import Codec
from ...errors import DecodeError
from .. import arguments as check

_UNDECODED = object()


class KeyValue:
    """A key with its value, as of some revision (etcd: mvccpb.KeyValue).

    Attributes:
        key: the key's bytes, without the handle's namespace.
        raw: the value's bytes.
        value: the value; an object if the handle has a codec, otherwise bytes.
        text: the value's bytes as text.
        create_revision: the revision of the put that created the key.
        mod_revision: the revision of its last change.
        version: the number of changes since it was created, counting from 1.
        lease: the id of the lease that it is attached to, 0 for none.
    """

    __slots__ = ("_codec", "_object", "create_revision", "key", "lease", "mod_revision", "raw", "version")

    def __init__(
        self,
        key: bytes,
        raw: bytes,
        create_revision: int,
        mod_revision: int,
        version: int,
        lease: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.key = key
        self.raw = raw
        self.create_revision = create_revision
        self.mod_revision = mod_revision
        self.version = version
        self.lease = lease
        self._codec = codec
        self._object: Any = _UNDECODED

    @property
    def value(self) -> Any:
        """The value: ``bytes``, or the object that the handle's codec makes of them.

        It is decoded when it is first read, not by the call that returns it: a write that took effect must not fail
        because the previous value cannot be decoded.

        Raises:
            DecodeError: the codec cannot read the stored bytes; ``raw`` has them.
        """
        if self._codec is None:
            return self.raw
        if self._object is _UNDECODED:
            try:
                self._object = self._codec.decode(self.raw)
            except Exception as error:
                codec, why = check.shown(self._codec), check.reason(error)
                raise DecodeError(f"{codec} cannot read the value of key {self.key!r}: {why}") from error
        return self._object

    @property
    def text(self) -> str:
        """The value's bytes as UTF-8 text.

        Raises:
            DecodeError: they are not valid UTF-8.
        """
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"the value of key {self.key!r} is not UTF-8 text: {error}") from error

    def _fields(self) -> tuple[Any, ...]:
        return self.key, self.raw, self.create_revision, self.mod_revision, self.version, self.lease

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, KeyValue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyValue, (*self._fields(), self._codec)

    def __repr__(self) -> str:
        return (
            f"KeyValue(key={self.key!r}, value={self.raw!r}, create_revision={self.create_revision}, "
            f"mod_revision={self.mod_revision}, version={self.version}, lease={self.lease})"
        )


class PutResult(msgspec.Struct, frozen=True):
    """The result of a put.

    Attributes:
        revision: the revision that the put made.
        prev: the pair that it replaced, if ``prev=True`` was given and there was one; otherwise ``None``.
    """

    revision: int
    prev: KeyValue | None = None


class RangeResult(msgspec.Struct, frozen=True):
    """The result of a range. Iterating over it yields its items; ``len`` is their number.

    Attributes:
        items: the pairs, in the order asked for.
        count: the number of keys in the whole range, whatever the limit.
        more: whether the limit left some out.
        revision: the revision as of which the range was read.
    """

    items: tuple[KeyValue, ...]
    count: int
    more: bool
    revision: int

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class DeleteResult(msgspec.Struct, frozen=True):
    """The result of a delete.

    Attributes:
        deleted: how many keys were deleted.
        prev: the deleted pairs, if ``prev=True`` was given; otherwise empty.
        revision: the revision of the store afterwards; a delete that deleted nothing makes none.
    """

    deleted: int
    prev: tuple[KeyValue, ...]
    revision: int


class TxnResult(msgspec.Struct, frozen=True):
    """The result of a transaction.

    Attributes:
        succeeded: whether all comparisons held, so that ``success`` ran.
        responses: one result for each operation that ran: of a put a ``PutResult``, of a get a ``KeyValue`` or
            ``None``, of a range a ``RangeResult``, of a delete a ``DeleteResult``, of a transaction a ``TxnResult``, of
            a grant the TTL in seconds, of a revoke ``None``.
        revision: the revision of the store afterwards.
    """

    succeeded: bool
    responses: tuple[PutResult | KeyValue | RangeResult | DeleteResult | TxnResult | float | None, ...]
    revision: int


class Event(msgspec.Struct, frozen=True):
    """One change of one key (etcd: mvccpb.Event).

    Attributes:
        type: ``"put"`` or ``"delete"``.
        kv: the pair after the change; for a delete only ``key`` and ``mod_revision`` have a meaning.
        prev: the pair before the change, if the watch was made with ``prev=True``; ``None`` if there was no such key,
            or if that revision has been compacted.
    """

    type: Literal["put", "delete"]
    kv: KeyValue
    prev: KeyValue | None = None


class Batch(msgspec.Struct, frozen=True):
    """All events of a watch at one revision, or a progress notice: nothing happened up to a revision.

    Attributes:
        revision: with this batch, everything up to this revision was delivered.
        events: those of this revision; empty in a progress notice.
    """

    revision: int
    events: tuple[Event, ...]


class Keep:
    """The type of ``KEEP``."""

    def __repr__(self) -> str:
        return "raykeeper.KEEP"

    def __reduce__(self) -> str:
        return "KEEP"


class End:
    """The type of ``END``."""

    def __repr__(self) -> str:
        return "raykeeper.END"

    def __reduce__(self) -> str:
        return "END"


KEEP = Keep()
"""As the value or the lease of a put: leave it as it is."""
END = End()
"""As the end of a range: up to the last key."""
