"""Wrong versions of the state machine: exactly once, large deletes, the past, care in the background, rights."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager
from typing import Any

from raykeeper.schema.answers import Answer, Failed, PutAnswer, Reason
from raykeeper.schema.commands import ClientWrites, RequestId
from raykeeper.schema.operations import KEEP_LEASE, Put, Txn
from raykeeper.store.engine.interface import Engine
from raykeeper.store.snapshot_file import SnapshotSink
from raykeeper.store.state import executor as executors
from raykeeper.store.state import mvcc, physical_compaction, stored_state, unfinished
from raykeeper.store.state.content_hash import ContentHasher
from raykeeper.store.state.executor import Executor
from raykeeper.store.state.machine import State
from raykeeper.store.state.members import Members
from raykeeper.store.state.mvcc import Mvcc, deletion_key
from raykeeper.store.state.sessions import Sessions
from raykeeper.store.state.small_ranges import SmallRanges
from simulation.mutants.registry import mutant, patched, together


@mutant("a session forgotten", "retries")
def _session_forgotten() -> AbstractContextManager[None]:
    """What was answered is not remembered, so a repeated write runs again."""
    original = Sessions.apply_writes

    def write(
        sessions: Sessions, command: ClientWrites, index: int, executor: Executor
    ) -> Generator[None, None, list[Answer]]:
        answers = yield from original(sessions, command, index, executor)
        session = sessions.by_id.get(command.session)
        if session is not None:
            low = session.low
            for stored_under in session.drop_below(1 << 62):
                key = b"a" + session.id.to_bytes(8, "big") + stored_under.to_bytes(8, "big")
                sessions._batch.set("sessions", key, None)
            session.low = low
        return answers

    return patched(Sessions, "apply_writes", write)


@mutant("a sequence below the mark run again", "retries")
def _below_the_mark() -> AbstractContextManager[None]:
    original = Sessions.apply_writes

    def write(
        sessions: Sessions, command: ClientWrites, index: int, executor: Executor
    ) -> Generator[None, None, list[Answer]]:
        answers = yield from original(sessions, command, index, executor)
        for position, (answer, asked) in enumerate(zip(answers, command.writes, strict=True)):
            if type(answer) is Failed and answer.reason is Reason.BELOW_MARK:
                plain = executor.run_plain(asked.operation, 1 << 20)
                again = executor.run(asked.operation, 1 << 20, (index << 16) + position)
                answers[position] = plain or (yield from again)
        return answers

    return patched(Sessions, "apply_writes", write)


@mutant("a request_id without its scope", "retries")
def _request_id_of_anybody() -> AbstractContextManager[None]:
    """A caller that uses the same name elsewhere gets the other's answer, and nothing is done."""
    original = Sessions._run_named

    def once(sessions: Sessions, request_id: RequestId, *rest: Any) -> Generator[None, None, tuple[Answer, int]]:
        return original(sessions, RequestId(request_id.name.rsplit(b"/")[-1], request_id.meaning), *rest)

    return patched(Sessions, "_run_named", once)


@mutant("a request_id not remembered", "retries")
def _request_id_forgotten() -> AbstractContextManager[None]:
    def once(
        sessions: Sessions, request_id: RequestId, operation: Any, room: int, fresh: int, index: int, run: Executor
    ) -> Generator[None, None, tuple[Answer, int]]:
        answer = yield from run.run(operation, room, fresh)
        return answer, run.answer_bytes

    return patched(Sessions, "_run_named", once)


@mutant("half of a large delete", "large deletes")
def _keys_ahead() -> AbstractContextManager[None]:
    """The keys go in slices, too."""
    return patched(stored_state, "AHEAD", (*unfinished.AHEAD, "keys"))


@mutant("what was written ahead is kept", "large deletes")
def _unfinished_kept() -> AbstractContextManager[None]:
    """After a crash in the middle of a large delete its history stays, though its keys live."""

    def keep(engine: Engine, revision: int) -> None:
        engine.write([("meta", unfinished.MARK, None)])

    return patched(stored_state, "remove_unfinished", keep)


@mutant("a snapshot without the sessions", "snapshots")
def _snapshot_without_sessions() -> AbstractContextManager[None]:
    original = SnapshotSink.unpack

    def unpack(incoming: SnapshotSink) -> None:
        original(incoming)
        state = incoming.state
        assert state is not None
        state._engine.write([("sessions", key, None) for key, _ in list(state._engine.iterate("sessions"))])
        state._engine.flush()
        state.close()
        incoming.state = State.open(incoming._disk, incoming.target)

    return patched(SnapshotSink, "unpack", unpack)


@mutant("a deletion that the past does not find", "watches")
def _deletion_not_found() -> AbstractContextManager[None]:
    """A key that was deleted since seems not to have existed before."""
    original = Mvcc.delete

    def delete(mvcc: Mvcc, key: bytes, old: bytes) -> int:
        revision = original(mvcc, key, old)
        mvcc._batch.set("deletions", deletion_key(key, revision), None)
        return revision

    return patched(Mvcc, "delete", delete)


@mutant("the compact revision removed from the history", "watches")
def _compacted_too_far() -> AbstractContextManager[None]:
    """Its changes can still be watched."""
    original = physical_compaction._next_removals

    def removals(source: Any, compact_revision: int, start: bytes, count: int) -> Any:
        newest = mvcc.newest_change(source)  # that one is looked at when the state is opened
        return original(source, min(compact_revision + 1, newest), start, count)

    return patched(physical_compaction, "_next_removals", removals)


@mutant("a hash of whatever was applied together", "care")
def _hash_of_the_batch() -> AbstractContextManager[None]:
    """The content is not taken at its entry, but when what follows is written."""
    original = State.take_content_hasher
    asked: dict[State, int] = {}

    def take_content_hasher(state: State) -> ContentHasher | None:
        content = original(state)
        if content is not None:
            asked[state] = content.index
            return None
        if state not in asked:
            return None
        late = ContentHasher(state)
        late.index = asked.pop(state)
        return late

    return patched(State, "take_content_hasher", take_content_hasher)


@mutant("room is forgotten over a restart", "care")
def _alarms_forgotten() -> AbstractContextManager[None]:
    """A member that starts takes puts that the others refuse."""
    original = State.__init__

    def made(state: State, *arguments: Any, **options: Any) -> None:
        original(state, *arguments, **options)
        state._executor.read_only = False

    return patched(State, "__init__", made)


@mutant("rights are not looked up where a command is applied", "users")
def _no_rights() -> AbstractContextManager[None]:
    return patched(executors, "may_run", lambda operation, rights: True)


@mutant("a transaction that compares one key only", "lists")
def _first_comparison() -> AbstractContextManager[None]:
    original = Executor._evaluate_compares

    def evaluate(executor: Executor, txn: Txn) -> Generator[None, None, list[bool]]:
        return original(executor, Txn(txn.compare[:1], txn.success, txn.failure))

    return patched(Executor, "_evaluate_compares", evaluate)


@mutant("a range that is known without its new keys", "locks")
def _new_keys_unknown() -> AbstractContextManager[None]:
    """A contender that joins a line that was empty finds it empty ever after."""
    return patched(SmallRanges, "key_added", lambda ranges, key: None)


@mutant("a key that is not there keeps its lease", "retries")
def _made_by_keeping() -> AbstractContextManager[None]:
    original = Executor._put

    def put(executor: Executor, asked: Put) -> PutAnswer:
        if asked.lease is KEEP_LEASE and executor._batch.get("keys", asked.key) is None:
            asked = Put(asked.key, asked.value, 0, asked.prev)
        return original(executor, asked)

    return patched(Executor, "_put", put)


@mutant("compaction that goes on where it was under a newer mark", "care")
def _left_at_the_mark() -> AbstractContextManager[None]:
    """What the pass before had to leave stays forever."""
    return patched(physical_compaction, "_next_pass", lambda start, compact_revision: start)


@mutant("a command about nobody raises", "poison")
def _raises() -> AbstractContextManager[None]:
    """And nothing stands between it and the member's loop."""
    original = Members.retire

    def retire(records: Members, member: int, members: Collection[int]) -> bool:
        if member not in members and member not in records.by_id:
            raise KeyError(member)
        return original(records, member, members)

    return together(patched(Members, "retire", retire), patched(State, "_retry_without", lambda state, error: False))
