"""Workers' transactions over several lists: read some, append to some, all in one, if nothing has changed since.

A list is a key whose value holds its elements. A transaction compares the keys that it touches with what its worker saw
last; if they are the same it appends to some and reads others, otherwise it reads all. Both are transactions of the
history that ``dependency_cycles`` judges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raykeeper.schema.answers import RangeAnswer, TxnAnswer
from raykeeper.schema.frames import Read
from raykeeper.schema.operations import KeyRange, Put, Range, Relation, Target, Txn, TxnCompare
from simulation.checker import Observation, Violation
from simulation.dependency_cycles import Transaction

if TYPE_CHECKING:
    import random

    from simulation.history import History

LISTS = tuple(b"l%d" % n for n in range(4))
LISTS_RANGE = KeyRange(b"l0", b"l4")


def elements(value: bytes | None) -> tuple[str, ...]:
    """What a list's value holds."""
    return tuple(value.decode().split()) if value else ()


class ListAppend:
    """Base of ``Worker``."""

    rng: random.Random
    history: History
    name: str
    _operation: int
    _run: Callable[..., None]
    _see: Callable[..., dict[bytes, bytes | None]]
    _lists: dict[bytes, tuple[int, tuple[str, ...]]]
    """By key, as it was seen last: its mod_revision, and its elements."""

    def _do_lists(self, always: bool = False) -> None:
        """Read all lists, in one transaction; or, unless ``always``, what some member knows of them, which does not
        belong to the history."""
        if not always and self.rng.random() < 0.3:

            def note(answer: RangeAnswer, seen: Observation) -> None:
                seen.revision = answer.revision
                self._note_lists(seen, answer, LISTS)

            self._run(Read(Range(LISTS_RANGE)), "serializable lists", [], note, linearizable=False, serializable=True)
            return
        transaction = Transaction(self.name, 0)

        def judge(answer: RangeAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            transaction.reads = self._note_lists(seen, answer, LISTS)
            self._ended(transaction, seen)

        self._run(Read(Range(LISTS_RANGE)), "read the lists", [], judge, transaction=transaction)

    def _do_append(self) -> None:
        keys = self.rng.sample(LISTS, self.rng.randint(1, 3))
        changed = keys[: self.rng.randint(1, len(keys))]
        read = keys[len(changed) :]
        known = {key: self._lists.get(key, (0, ())) for key in keys}
        element = f"{self.name}+{self._operation}"
        writes: dict[bytes, bytes | None] = {key: " ".join((*known[key][1], element)).encode() for key in changed}
        transaction = Transaction(self.name, 0, appends=dict.fromkeys(changed, element))

        def judge(answer: TxnAnswer, seen: Observation) -> None:
            seen.revision = answer.revision
            if answer.succeeded:
                seen.writes = writes
                transaction.reads = {key: known[key][1] for key in changed}
                for key, response in zip(read, answer.responses[len(changed) :], strict=True):
                    there = self._note_lists(seen, response, (key,))
                    if there[key] != known[key][1]:
                        raise Violation(f"{seen} read {there}, though nothing had changed since {known}")
                    transaction.reads |= there
                for key in changed:
                    self._lists[key] = (answer.revision, (*known[key][1], element))
            else:
                transaction.appends = {}
                transaction.reads = self._note_lists(seen, answer.responses[0], LISTS)
            self._ended(transaction, seen)

        compare = tuple([TxnCompare(KeyRange(key), Target.MOD_REVISION, Relation.EQUAL, known[key][0]) for key in keys])
        puts = [Put(key, writes[key]) for key in changed]
        request = Txn(compare, (*puts, *[Range(KeyRange(key)) for key in read]), (Range(LISTS_RANGE),))
        self._run(request, f"append to {changed}", [], judge, writes=writes, transaction=transaction)

    def _note_lists(self, seen: Observation, answer: Any, keys: tuple[bytes, ...]) -> dict[bytes, tuple[str, ...]]:
        values = self._see(seen, answer, keys)
        revisions = {item.key: item.mod_revision for item in answer.items}
        for key in keys:
            if revisions.get(key, 0) >= self._lists.get(key, (0, ()))[0]:
                self._lists[key] = (revisions.get(key, 0), elements(values[key]))
        return {key: elements(values[key]) for key in keys}

    def _ended(self, transaction: Transaction, seen: Observation) -> None:
        transaction.returned = seen.returned
