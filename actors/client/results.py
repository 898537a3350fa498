"""What the calls of a handle return. All of it is immutable and pickles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ...codec import Codec
from ...errors import DecodeError

_UNDECODED = object()


class KeyValue:
    """A key with its value as of some revision (etcd: mvccpb.KeyValue).

    Attributes:
        key: without the handle's namespace.
        raw: the value's bytes.
        create_revision: revision of the put that created the key.
        mod_revision: revision of its last change.
        version: number of changes since it was created, from 1.
        lease: id of the lease it is bound to, 0 for none.
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

        Decoding happens on the first look: a call whose write took effect must not fail because of a previous value.

        Raises:
            DecodeError: the codec cannot read the stored bytes (see ``raw``).
        """
        if self._codec is None:
            return self.raw
        if self._object is _UNDECODED:
            try:
                self._object = self._codec.decode(self.raw)
            except Exception as error:
                from . import arguments as check  # which knows results

                codec, why = check.shown(self._codec), check.reason(error)
                raise DecodeError(f"{codec} cannot read the value of key {self.key!r}: {why}") from error
        return self._object

    @property
    def text(self) -> str:
        """The value's bytes as UTF-8 text.

        Raises:
            DecodeError: they are none.
        """
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"the value of key {self.key!r} is no UTF-8 text: {error}") from error

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
    """The revision that a put made, and what was there before if ``prev=True`` was asked (``None``: nothing)."""

    revision: int
    prev: KeyValue | None = None


class RangeResult(msgspec.Struct, frozen=True):
    """The keys of a range.

    Attributes:
        items: what was asked for, in order.
        count: keys in the whole range, whatever the limit.
        more: whether the limit left some out.
        revision: the revision that was read.
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
    """How many keys a delete removed, the removed ones if ``prev=True`` was asked, and the revision after it."""

    deleted: int
    prev: tuple[KeyValue, ...]
    revision: int


class TxnResult(msgspec.Struct, frozen=True):
    """Outcome of a transaction: whether all comparisons held, and one result for each operation of the branch that ran.

    A put answers a ``PutResult``, a get a ``KeyValue`` or ``None``, a range a ``RangeResult``, a delete a
    ``DeleteResult``, a transaction a ``TxnResult``.
    """

    succeeded: bool
    responses: tuple[PutResult | KeyValue | RangeResult | DeleteResult | TxnResult | float | None, ...]
    revision: int


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
"""As a value or a lease of a put: leave what is there."""
END = End()
"""As the end of a range: to the last key."""
