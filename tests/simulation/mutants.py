"""Wrong versions of the real code, one rule broken in each: the simulator must be able to fail.

Each mutant names the profile that sets the stage for it. The same profile without the mutant is part of the ordinary
seeds, and passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from raykeeper.actors.raft import Node
from raykeeper.actors.raft.log import Log
from raykeeper.actors.raft.messages import AppendEntriesResponse, Entry, HardState
from raykeeper.actors.raft.quorum import majority_value
from raykeeper.actors.raft.ready import Ready
from raykeeper.limits import Limits
from raykeeper.store.checkpoint import Incoming
from raykeeper.store.commands import Answer, ClientWrites, Failed, Reason
from raykeeper.store.pending import Pending
from raykeeper.store.raft_log import RaftLog
from raykeeper.store.sessions import Run, Sessions
from raykeeper.store.state import State

Mutate = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """A broken rule."""

    name: str
    profile: str
    apply: Mutate
    """While this context is entered, the code is wrong."""


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, profile: str) -> Callable[[Mutate], Mutate]:
    """Register a mutant."""

    def register(apply: Mutate) -> Mutate:
        MUTANTS[name] = Mutant(name, profile, apply)
        return apply

    return register


@contextmanager
def patched(owner: type, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a class for a while."""
    original = owner.__dict__.get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@mutant("no fsync before a vote", "elections")
def _no_fsync_before_a_vote() -> AbstractContextManager[None]:
    append = RaftLog.append

    def without(log: RaftLog, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        append(log, entries, hard_state, sync=sync and bool(entries))

    return patched(RaftLog, "append", without)


@mutant("an acknowledgement before the own fsync", "power")
def _acknowledgement_before_fsync() -> AbstractContextManager[None]:
    original = Node.ready

    def ready(node: Node) -> Ready:
        made = original(node)
        early = [message for message in made.messages_after if isinstance(message, AppendEntriesResponse)]
        made.messages = [*made.messages, *early]
        made.messages_after = [message for message in made.messages_after if message not in early]
        return made

    return patched(Node, "ready", ready)


@mutant("an old term's entry committed by counting", "figure 8")
def _old_term_committed() -> AbstractContextManager[None]:
    def maybe_commit(node: Any, reached: int) -> None:
        if reached <= node.log.commit_index:
            return
        index = majority_value([node.progress[voter].match_index for voter in node.configuration.voters])
        if node.configuration.outgoing:
            index = min(
                index, majority_value([node.progress[voter].match_index for voter in node.configuration.outgoing])
            )
        if node.log.commit_to(index):
            node._sends_due = True

    return patched(Node, "_maybe_commit", maybe_commit)


@mutant("a read without confirming leadership", "partitions")
def _unconfirmed_read() -> AbstractContextManager[None]:
    return patched(Node, "_holds_lease", lambda node: True)


@mutant("a campaign with a configuration unapplied", "membership")
def _campaign_unapplied() -> AbstractContextManager[None]:
    return patched(Log, "has_unapplied_configuration", lambda log, page_bytes: False)


@mutant("the log cut before the state is synced", "power")
def _cut_before_sync() -> AbstractContextManager[None]:
    return patched(State, "sync", lambda state: None)


@mutant("a session forgotten", "retries")
def _session_forgotten() -> AbstractContextManager[None]:
    """What was answered is not remembered, so a repeated write runs again."""
    original = Sessions.write

    def write(
        sessions: Sessions, command: ClientWrites, index: int, run: Run, size: Callable[[], int], limits: Limits
    ) -> list[Answer]:
        answers = original(sessions, command, index, run, size, limits)
        session = sessions.by_id.get(command.session)
        if session is not None:
            low = session.low
            for stored_under in session.drop_below(1 << 62):
                key = b"a" + session.id.to_bytes(8, "big") + stored_under.to_bytes(8, "big")
                sessions._pending.set("sessions", key, None)
            session.low = low
        return answers

    return patched(Sessions, "write", write)


@mutant("a sequence below the mark run again", "retries")
def _below_the_mark() -> AbstractContextManager[None]:
    original = Sessions.write

    def write(
        sessions: Sessions, command: ClientWrites, index: int, run: Run, size: Callable[[], int], limits: Limits
    ) -> list[Answer]:
        answers = original(sessions, command, index, run, size, limits)
        for position, (answer, asked) in enumerate(zip(answers, command.writes, strict=True)):
            if type(answer) is Failed and answer.reason is Reason.BELOW_MARK:
                answers[position] = run(asked.operation, 1 << 20, (index << 16) + position)
        return answers

    return patched(Sessions, "write", write)


@mutant("the applied index outside the batch", "power")
def _applied_outside() -> AbstractContextManager[None]:
    """Two writes instead of one: first the effects, then how far the log is applied."""
    original = Pending.flush

    def flush(pending: Any) -> None:
        meta = pending._layers["meta"].values
        applied = meta.pop(b"applied", None)
        original(pending)
        if applied is not None:
            pending._engine.write([("meta", b"applied", applied)])

    return patched(Pending, "flush", flush)


@mutant("a snapshot without the sessions", "snapshots")
def _snapshot_without_sessions() -> AbstractContextManager[None]:
    original = Incoming.unpack

    def unpack(incoming: Incoming) -> None:
        original(incoming)
        state = incoming.state
        assert state is not None
        state._engine.write([("sessions", key, None) for key, _ in list(state._engine.iterate("sessions"))])
        state._engine.sync()
        state.close()
        incoming.state = State.open(incoming._disk, incoming.target)

    return patched(Incoming, "unpack", unpack)
