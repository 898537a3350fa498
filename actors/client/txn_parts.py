"""``Compare`` and ``Op``: the parts of a transaction, before it belongs to a handle.

They only hold what the user wrote. The handle that runs the transaction checks it, adds its namespace and applies its
codec; so they can be made once and used on any handle, and they pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...schema.operations import Relation, Target
from ..arguments import Key
from .results import End


class Condition:
    """One comparison of a transaction, as ``Compare`` makes it."""

    __slots__ = ("end", "key", "operand", "prefix", "relation", "target")

    def __init__(
        self,
        target: Target,
        key: Key | None,
        end: Key | End | None,
        prefix: Key | None,
        relation: Relation,
        operand: Any,
    ) -> None:
        self.target = target
        self.key = key
        self.end = end
        self.prefix = prefix
        self.relation = relation
        self.operand = operand

    def __bool__(self) -> bool:
        raise TypeError("a comparison has no truth of its own: pass it to txn(compare=[...])")

    def __repr__(self) -> str:
        where = repr(self.key) if self.prefix is None else f"prefix={self.prefix!r}"
        return f"<{self.target.name.lower()} of {where} {self.relation.name.lower()} {self.operand!r}>"


class Comparand:
    """The left side of a comparison; ``==``, ``!=``, ``<`` or ``>`` with a value make a ``Condition``."""

    __slots__ = ("_end", "_key", "_prefix", "_target")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, target: Target, key: Key | None, end: Key | End | None, prefix: Key | None) -> None:
        self._target = target
        self._key = key
        self._end = end
        self._prefix = prefix

    def _compare(self, relation: Relation, operand: Any) -> Condition:
        return Condition(self._target, self._key, self._end, self._prefix, relation, operand)

    def __eq__(self, operand: object) -> Condition:  # type: ignore[override]
        return self._compare(Relation.EQUAL, operand)

    def __ne__(self, operand: object) -> Condition:  # type: ignore[override]
        return self._compare(Relation.NOT_EQUAL, operand)

    def __lt__(self, operand: object) -> Condition:
        return self._compare(Relation.LESS, operand)

    def __gt__(self, operand: object) -> Condition:
        return self._compare(Relation.GREATER, operand)


class Compare:
    """Comparisons of a transaction (etcd: Compare).

    ::

        Compare.version("k") == 0                    # there is no such key
        Compare.mod_revision("k") == found.mod_revision
        Compare.value("k") != "stop"
        Compare.create_revision(prefix="jobs/") < 100

    The operators are ``==``, ``!=``, ``<`` and ``>``. A comparison of a range (``end`` or ``prefix``, as for
    ``Client.range``) holds if it holds for every key in the range, so even if there is none. A single key that does not
    exist has version, revisions and lease 0, and no comparison of its value holds.
    """

    @staticmethod
    def version(key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None) -> Comparand:
        """The number of changes since the key was created, counting from 1; 0 if there is no such key."""
        return Comparand(Target.VERSION, key, end, prefix)

    @staticmethod
    def value(key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None) -> Comparand:
        """The value: ``str`` or ``bytes``; on a handle with a codec an object, and then only by ``==`` and ``!=``."""
        return Comparand(Target.VALUE, key, end, prefix)

    @staticmethod
    def create_revision(
        key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None
    ) -> Comparand:
        """The revision that created the key; 0 if there is no such key."""
        return Comparand(Target.CREATE_REVISION, key, end, prefix)

    @staticmethod
    def mod_revision(key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None) -> Comparand:
        """The revision of the key's last change; 0 if there is no such key."""
        return Comparand(Target.MOD_REVISION, key, end, prefix)

    @staticmethod
    def lease(key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None) -> Comparand:
        """The lease that the key is attached to, to be compared with a ``Lease`` or an id; 0 for none."""
        return Comparand(Target.LEASE, key, end, prefix)


class Op:
    """Operations of a transaction (etcd: RequestOp), with the arguments of the handle's calls of the same name.

    The result of each is an entry of ``TxnResult.responses``.
    """

    __slots__ = ("arguments", "kind")

    def __init__(self, kind: str, arguments: dict[str, Any]) -> None:
        self.kind = kind
        self.arguments = arguments

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value not in (None, False))
        return f"Op.{self.kind}({given})"

    @staticmethod
    def put(key: Key, value: Any, *, lease: Any = None, prev: bool = False) -> Op:
        """As ``Client.put``. Its result is a ``PutResult``."""
        return Op("put", {"key": key, "value": value, "lease": lease, "prev": prev})

    @staticmethod
    def get(key: Key, *, revision: int | None = None) -> Op:
        """As ``Client.get``. Its result is a ``KeyValue`` or ``None``."""
        return Op("get", {"key": key, "revision": revision})

    @staticmethod
    def range(
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        limit: int = 0,
        revision: int | None = None,
        sort: str | None = None,
        order: str = "ascend",
        keys_only: bool = False,
        count_only: bool = False,
    ) -> Op:
        """As ``Client.range``, but one page at most: ``more`` says whether there are others. Its result is a
        ``RangeResult``."""
        return Op(
            "range",
            {
                "key": key,
                "end": end,
                "prefix": prefix,
                "limit": limit,
                "revision": revision,
                "sort": sort,
                "order": order,
                "keys_only": keys_only,
                "count_only": count_only,
            },
        )

    @staticmethod
    def delete(
        key: Key | None = None, end: Key | End | None = None, *, prefix: Key | None = None, prev: bool = False
    ) -> Op:
        """As ``Client.delete``. Its result is a ``DeleteResult``."""
        return Op("delete", {"key": key, "end": end, "prefix": prefix, "prev": prev})

    @staticmethod
    def grant(id: int, ttl: float) -> Op:
        """Make a lease with an id of your own. Its result is the TTL in seconds that was granted.

        Later operations of the transaction may attach keys to it. Nothing keeps it alive; for a lease that is kept
        alive, use ``Client.leased_txn``.

        Args:
            id: a positive number that no other lease has.
            ttl: seconds.
        """
        return Op("grant", {"id": id, "ttl": ttl})

    @staticmethod
    def revoke(lease: Any) -> Op:
        """End a lease and delete its keys. Its result is ``None``.

        It must come after all other operations of the transaction, and these must not attach keys to that lease. A
        transaction that names a lease that does not exist has no effect and raises ``LeaseNotFound``.

        Args:
            lease: the ``Lease``, or the id of the lease.
        """
        return Op("revoke", {"lease": lease})

    @staticmethod
    def txn(compare: Sequence[Condition] = (), success: Sequence[Op] = (), failure: Sequence[Op] = ()) -> Op:
        """As ``Client.txn``, nested. Its result is a ``TxnResult``."""
        # Lists are copied, so that later changes of them do not matter; what is neither is refused by the handle.
        parts = {"compare": compare, "success": success, "failure": failure}
        for name, part in parts.items():
            if isinstance(part, list):
                parts[name] = tuple(part)
        return Op("txn", parts)


def first_keys(prefix: Key, limit: int) -> Op:
    """As ``Op.range`` with ``prefix`` and ``limit``, without values. It costs as much however many keys there are: the
    others are not counted, only ``more`` says whether there are any."""
    found = Op.range(prefix=prefix, limit=limit, keys_only=True)
    return Op(found.kind, {**found.arguments, "uncounted": True})
