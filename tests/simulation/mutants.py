"""Wrong versions of the real code, one rule broken in each: the simulator must be able to fail.

Each mutant names the profile that sets the stage for it. The same profile without the mutant is part of the ordinary
seeds, and passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from raykeeper.actors.client import txn_parts
from raykeeper.actors.client.core.in_flight import LeaseQuestion
from raykeeper.actors.client.core.lease_core import LeaseCore
from raykeeper.actors.client.core.subscription import Subscription
from raykeeper.actors.client.core.watch_core import WatchCore
from raykeeper.actors.client.guard import GuardedView
from raykeeper.actors.client.view import Call
from raykeeper.actors.member.clock import SteadyClock
from raykeeper.actors.member.deadlines import ClusterTime
from raykeeper.actors.member.events import LeaseRenewal
from raykeeper.actors.member.leader_duties import LeaderDuties
from raykeeper.actors.member.lessor import Lessor
from raykeeper.actors.member.replica import Replica
from raykeeper.actors.member.watches import Watches
from raykeeper.actors.recipes import contenders
from raykeeper.actors.recipes.contenders import Contenders
from raykeeper.actors.transport.process_monitors import ProcessMonitors
from raykeeper.errors import LeaseNotFound, NoSpace
from raykeeper.raft import Node
from raykeeper.raft.leader_lease import Promise, PromiseRounds
from raykeeper.raft.log import Log
from raykeeper.raft.messages import AppendEntriesResponse, Entry, HardState
from raykeeper.raft.quorum import majority_value
from raykeeper.raft.ready import Ready
from raykeeper.schema.answers import Answer, Failed, Reason
from raykeeper.schema.commands import ClientWrites, RequestId
from raykeeper.schema.frames import Kept
from raykeeper.store.data_dir import DataDir
from raykeeper.store.engine.interface import Disk, Engine
from raykeeper.store.log import segments
from raykeeper.store.log.raft_log import RaftLog
from raykeeper.store.log.repair import SegmentContent
from raykeeper.store.log.segments import SegmentedLog, segment_name
from raykeeper.store.snapshot_file import SnapshotSink
from raykeeper.store.state import executor as executors
from raykeeper.store.state import mvcc, physical_compaction, stored_state, unfinished
from raykeeper.store.state.cluster_clock import ClusterClock
from raykeeper.store.state.content_hash import ContentHasher
from raykeeper.store.state.executor import Executor
from raykeeper.store.state.lease_table import LeaseRecord, LeaseTable
from raykeeper.store.state.machine import State
from raykeeper.store.state.mvcc import Mvcc, deletion_key
from raykeeper.store.state.sessions import Sessions
from raykeeper.store.state.write_batch import WriteBatch
from simulation import scripts

Mutate = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """A broken rule."""

    name: str
    profile: str
    apply: Mutate
    """While this context is entered, the code is wrong."""
    first_seed: int = 0
    """Where to begin looking for a seed that catches it: what seldom shows need not be looked for each time."""


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, profile: str, first_seed: int = 0) -> Callable[[Mutate], Mutate]:
    """Register a mutant."""

    def register(apply: Mutate) -> Mutate:
        MUTANTS[name] = Mutant(name, profile, apply, first_seed)
        return apply

    return register


@contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a class for a while."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name}"
    original = owner.__dict__.get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@contextmanager
def together(*changes: AbstractContextManager[None]) -> Iterator[None]:
    """Several replacements at once."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield


@mutant("no fsync before a vote", "elections")
def _no_fsync_before_a_vote() -> AbstractContextManager[None]:
    append = RaftLog.append

    def without(log: RaftLog, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        append(log, entries, hard_state, sync=sync and bool(entries))

    return patched(RaftLog, "append", without)


@mutant("an acknowledgement before the member's own fsync", "power")
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


@mutant("a follower that is sent nothing yet counts towards the quorum", "partitions")
def _waiting_counted() -> AbstractContextManager[None]:
    original = Node._waiting_followers

    def waiting(node: Any) -> Sequence[int]:
        found = original(node)
        for member in found:
            node.progress[member].match_index = node.log.last_index
        return found

    return patched(Node, "_waiting_followers", waiting)


@mutant("a follower that waits is sent nothing, even if others are silent", "partitions")
def _never_sent() -> AbstractContextManager[None]:
    return patched(Node, "send_deferred", lambda node: setattr(node, "sends_deferred", False))


@mutant("a read without confirming leadership", "partitions")
def _unconfirmed_read() -> AbstractContextManager[None]:
    return patched(Node, "_holds_lease", lambda node: True)


@mutant("a lease that never runs out", "lease reads")
def _endless_lease() -> AbstractContextManager[None]:
    return patched(Node, "_holds_lease", lambda node: node._lease_until > -math.inf)


@mutant("messages before the time that passed before them", "lease reads", first_seed=1)
def _messages_before_time() -> AbstractContextManager[None]:
    """A follower that has stalled takes the silence before a heartbeat for silence after it."""
    set_time, tick, take = Node.set_time, Replica._tick, Replica._take_events

    def late_time(node: Any, least: float, most: float) -> None:
        node._late = (least, most)

    def late_tick(replica: Any, now: float) -> None:
        if replica.is_leader:
            tick(replica, now)

    def late_take(replica: Any, events: Any) -> None:
        set_time(replica.node, *replica.node._late)
        if not replica.is_leader:
            tick(replica, replica._turn.now)
        take(replica, events)

    return together(
        patched(Node, "set_time", late_time),
        patched(Replica, "_tick", late_tick),
        patched(Replica, "_take_events", late_take),
    )


@mutant("a leader that does not count its sleep", "lease reads")
def _sleep_not_counted() -> AbstractContextManager[None]:
    readings = SteadyClock.readings

    def least(clock: SteadyClock) -> tuple[float, float]:
        shown, _ = readings(clock)
        return shown, shown

    return patched(SteadyClock, "readings", least)


@mutant("a follower that believes a leap of its clock", "lease reads", first_seed=2)
def _leap_believed() -> AbstractContextManager[None]:
    readings = SteadyClock.readings

    def most(clock: SteadyClock) -> tuple[float, float]:
        _, shown = readings(clock)
        return shown, shown

    return patched(SteadyClock, "readings", most)


@mutant("a leader that believes new timings at once", "lease reads", first_seed=2)
def _timings_believed() -> AbstractContextManager[None]:
    """It counts on what it has configured, though nobody was asked for that yet."""
    original = Replica._follow_settings

    def follow(replica: Any) -> None:
        before = replica.node.config.promise
        original(replica)
        more = (replica.node.config.promise - before) * (1 - replica.node.config.clock_drift)
        for progress in replica.node.progress.values():
            progress.promised_until += max(0.0, more)
        if replica.is_leader:
            replica.node._count_promises()

    return patched(Replica, "_follow_settings", follow)


@mutant("a promise that does not outlive its process", "lease reads", first_seed=1)
def _promise_forgotten() -> AbstractContextManager[None]:
    original = Promise.__init__

    def begin(promise: Promise, length: float, now: float) -> None:
        original(promise, 0.0, now)
        promise.length = length

    return patched(Promise, "__init__", begin)


@mutant("a leader that allows for no drift", "lease reads", first_seed=4)
def _no_drift() -> AbstractContextManager[None]:
    original = PromiseRounds.add_round

    def begin(rounds: PromiseRounds, number: int, length: float, drift: float, now: float) -> None:
        original(rounds, number, length, 0.0, now)

    return patched(PromiseRounds, "add_round", begin)


@mutant("a campaign with a configuration unapplied", "membership", first_seed=90)
def _campaign_unapplied() -> AbstractContextManager[None]:
    return patched(Log, "has_unapplied_configuration", lambda log, page_bytes: False)


@mutant("the log trimmed before the state is flushed", "power")
def _cut_before_sync() -> AbstractContextManager[None]:
    return patched(State, "flush", lambda state: None)


@mutant("the log trimmed after a flush that has failed", "full disks")
def _trimmed_after_failure() -> AbstractContextManager[None]:
    flush = State.flush

    def silent(state: State) -> None:
        with suppress(NoSpace):
            flush(state)

    return patched(State, "flush", silent)


# --- the log's files -------------------------------------------------------------------------------------------------


def _without_sync(method: str) -> AbstractContextManager[None]:
    """A method of the log in which ``sync`` does nothing."""
    original = getattr(SegmentedLog, method)

    def without(log: SegmentedLog, *arguments: Any) -> None:
        log.sync = lambda: None  # type: ignore[method-assign]
        try:
            original(log, *arguments)
        finally:
            del log.sync

    return patched(SegmentedLog, method, without)


@mutant("a segment written to before the last one is synced", "power")
def _sealed_unsynced() -> AbstractContextManager[None]:
    return _without_sync("_open_segment")


@mutant("segments removed before the new base is synced", "power", first_seed=180)
def _released_unsynced() -> AbstractContextManager[None]:
    return _without_sync("release")


@mutant("a start that does not sync what it has read", "power", first_seed=50)
def _read_unsynced() -> AbstractContextManager[None]:
    original = SegmentedLog._settle

    def settle(log: SegmentedLog, contents: dict[int, SegmentContent]) -> None:
        original(log, contents)
        log._unsynced = False

    return patched(SegmentedLog, "_settle", settle)


@mutant("a segment that gets its number before it is blank", "power", first_seed=100)
def _numbered_early() -> AbstractContextManager[None]:
    original = segments._prepare

    def prepare(disk: Disk, path: str, number: int, size: int, recycled: str | None, *pause: Any) -> None:
        if recycled is None or disk.size(recycled) != size:
            original(disk, path, number, size, recycled, *pause)
            return
        name = f"{path}/{segment_name(number)}"
        disk.rename(recycled, name)
        file = disk.open_file(name)
        file.write_zeros(0, size)
        file.sync(0)

    return patched(segments, "_prepare", prepare)


# --- sessions --------------------------------------------------------------------------------------------------------


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


@mutant("the applied index outside the batch", "power")
def _applied_outside() -> AbstractContextManager[None]:
    """Two writes instead of one: first the effects, then how far the log is applied."""
    original = WriteBatch.prepare

    def prepare(batch: Any, *arguments: Any) -> Generator[None, None, Callable[[], None]]:
        meta = batch._layers["meta"].values
        applied = meta.pop(b"applied", None)
        first = yield from original(batch, *arguments)

        def write() -> None:
            first()
            if applied is not None:
                batch._engine.write([("meta", b"applied", applied)])

        return write

    return patched(WriteBatch, "prepare", prepare)


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


# --- watches, leases and locks ---------------------------------------------------------------------------------------


@mutant("a keep-alive answered by a deposed leader", "leases")
def _unconfirmed_keep_alive() -> AbstractContextManager[None]:
    def keep(duties: Any, event: LeaseRenewal) -> None:
        if duties._node.role == "leader":
            duties._lessor.keep_alive(event.leases, event.arrival, event.done)
        else:
            event.done(duties._not_leader())

    return patched(LeaderDuties, "keep_leases", keep)


@mutant("a lease shortened by a leader change", "sleepers")
def _lease_not_reset() -> AbstractContextManager[None]:
    """A lease of which less than the TTL is written down is renewed by the leader alone, and its successor counts on
    from what is written."""

    def keep(lessor: Any, leases: tuple[int, ...], arrival: float, done: Callable[[tuple[Kept, ...]], None]) -> None:
        known = lessor._turn.state.leases

        def renew(lease: int) -> Kept:
            if lease not in known:
                return Kept.GONE
            return Kept.ALIVE if lessor._count_from(lease, known[lease].ttl, arrival) else Kept.ASK_AGAIN

        done(tuple([renew(lease) if lessor._term else Kept.ASK_AGAIN for lease in leases]))

    return patched(Lessor, "keep_alive", keep)


@mutant("a lease counted from the answer", "leases")
def _counted_from_the_answer() -> AbstractContextManager[None]:
    original = LeaseCore._kept

    def kept(core: LeaseCore, call: int, frame: Any, answers: Sequence[Kept], now: float) -> None:
        frame.sent_at = now
        original(core, call, frame, answers, now)

    return patched(LeaseCore, "_kept", kept)


@mutant("a watch that resumes one off", "watches")
def _resumes_one_off() -> AbstractContextManager[None]:
    original = WatchCore._wait_again

    def wait_again(core: WatchCore, watch: Subscription) -> None:
        if watch.fixed:
            watch.position += 1
        original(core, watch)

    return patched(WatchCore, "_wait_again", wait_again)


@mutant("a watch that sees an event again", "watches")
def _resumes_one_back() -> AbstractContextManager[None]:
    original = WatchCore._wait_again

    def wait_again(core: WatchCore, watch: Subscription) -> None:
        if watch.fixed and watch.position > 1:
            watch.position -= 1
        original(core, watch)

    return patched(WatchCore, "_wait_again", wait_again)


@mutant("a watch that restarts at now", "watches")
def _restarts_at_now() -> AbstractContextManager[None]:
    original = WatchCore._drop_stream

    def drop_stream(core: WatchCore, stream: Any) -> None:
        for watch in stream.watches.values():
            watch.fixed = False
        original(core, stream)

    return patched(WatchCore, "_drop_stream", drop_stream)


@mutant("progress ahead of events", "watches")
def _progress_ahead() -> AbstractContextManager[None]:
    """A watch that has more to read is not named as one that lags."""
    original = Watches._put_back

    def put_back(watches: Any, due: Any, seen: int) -> tuple[int, ...] | None:
        behind = original(watches, due, seen)
        return None if behind is None else ()

    return patched(Watches, "_put_back", put_back)


@mutant("a lock for a waiter whose predecessor is gone", "locks")
def _whoever_is_next() -> AbstractContextManager[None]:
    """It may have left the line without having had its turn."""

    async def following(line: Contenders, place: Any) -> None:
        return None

    return patched(Contenders, "_next", following)


@mutant("a lock for a waiter that saw one of several", "locks")
def _one_of_several() -> AbstractContextManager[None]:
    """The one that it waits for was not the only one before it."""
    return patched(contenders, "first_keys", lambda prefix, limit: txn_parts.first_keys(prefix, 1))


@mutant("a guard that guards nothing", "locks")
def _no_guard() -> AbstractContextManager[None]:
    original = GuardedView._guarded

    def guarded(view: Any, command: Any, request_id: object) -> Any:
        return (yield from original(GuardedView(view.space, view.codec, ()), command, request_id))

    return patched(GuardedView, "_guarded", guarded)


# --- disks that rot --------------------------------------------------------------------------------------------------


@mutant("a lost state takes the log with it", "rot")
def _log_dropped() -> AbstractContextManager[None]:
    """The snapshot replaces the log too, with all that was acknowledged after it."""
    return patched(Node, "snapshot_keeps_log", lambda node, meta: False)


@mutant("an image that the log does not continue", "rot")
def _any_image() -> AbstractContextManager[None]:
    return patched(Node, "_min_snapshot_index", lambda node: 1)


@mutant("damage that is forgotten", "rot")
def _damage_forgotten() -> AbstractContextManager[None]:
    return patched(DataDir, "mark_state_damaged", lambda folder, why: None)


# --- the past --------------------------------------------------------------------------------------------------------


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


# --- background care -------------------------------------------------------------------------------------------------


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


@mutant("the clock starts over with each leader", "reigns", first_seed=54)
def _clock_begins_anew() -> AbstractContextManager[None]:
    original = ClusterTime.lead

    def lead(time: ClusterTime, term: int, now: float) -> None:
        time._since = now
        original(time, term, now)

    return patched(ClusterTime, "lead", lead)


@mutant("silence starts over with each leader", "reigns", first_seed=54)
def _silence_begins_anew() -> AbstractContextManager[None]:
    return patched(ClusterClock, "silent_since", lambda clock, heard: None)


@mutant("time that is counted twice", "reigns")
def _time_counted_twice() -> AbstractContextManager[None]:
    def applied(time: ClusterTime, now: float) -> None:
        time._seen = time._turn.state.clock.seconds

    return patched(ClusterTime, "applied", applied)


@mutant("a lease renewed behind the log's back", "reigns")
def _renewed_beside_the_log() -> AbstractContextManager[None]:
    def runs_out(lessor: Lessor, lease: LeaseRecord) -> bool:
        return lease.until is not None or lease.id in lessor._checkpointing

    return patched(Lessor, "_runs_out", runs_out)


@mutant("rights are not looked up where a command is applied", "users")
def _no_rights() -> AbstractContextManager[None]:
    return patched(executors, "may_run", lambda operation, rights: True)


@mutant("the end of a lane taken for a death", "deaths")
def _hint_believed() -> AbstractContextManager[None]:
    original = ProcessMonitors.lane_ended

    def lane_ended(monitors: ProcessMonitors, lane: object, now: float) -> tuple[int, ...]:
        known = monitors._by_lane.get(lane)
        original(monitors, lane, now)
        return tuple(sorted(known.sessions)) if known is not None else ()

    return patched(ProcessMonitors, "lane_ended", lane_ended)


@mutant("a process known by its id", "deaths")
def _id_believed() -> AbstractContextManager[None]:
    """A process that has the id of one that has died is taken for dead as well."""
    by_id: dict[tuple[ProcessMonitors, int], set[int]] = {}
    ids: dict[tuple[ProcessMonitors, int], int] = {}
    monitor_before, ended_before = ProcessMonitors.monitor, ProcessMonitors.process_ended

    def monitor(monitors: ProcessMonitors, lane: object, pid: int, session: int) -> int:
        fd = monitor_before(monitors, lane, pid, session)
        ids[monitors, fd] = pid
        by_id.setdefault((monitors, pid), set()).add(session)
        return fd

    def process_ended(monitors: ProcessMonitors, fd: int) -> tuple[int, ...]:
        if not ended_before(monitors, fd):
            return ()
        return tuple(sorted(by_id.pop((monitors, ids[monitors, fd]), ())))

    stack = ExitStack()
    stack.enter_context(patched(ProcessMonitors, "monitor", monitor))
    stack.enter_context(patched(ProcessMonitors, "process_ended", process_ended))
    return stack


@mutant("a keep-alive of another process beside the log", "deaths")
def _used_beside_the_log() -> AbstractContextManager[None]:
    """The death overtakes it."""
    return patched(Lessor, "_must_be_logged", lambda lessor, lease, session: lessor._runs_out(lease))


@mutant("a renewal by another process leaves the lease to its owner", "deaths")
def _renewal_overtaken() -> AbstractContextManager[None]:
    original = LeaseTable.renew

    def renew(table: LeaseTable, id: int, index: int, by: int = 0) -> bool:
        lease = table.by_id.get(id)
        return original(table, id, index, by if lease is None else lease.owner)

    return patched(LeaseTable, "renew", renew)


@mutant("a key of another process leaves the lease to its owner", "deaths")
def _key_overlooked() -> AbstractContextManager[None]:
    return patched(LeaseTable, "use", lambda table, id, by: None)


@mutant("adopting by what is left, without a keep-alive", "deaths")
def _adopted_unkept() -> AbstractContextManager[None]:
    def adopt_steps(id: int, deadline: float) -> Generator[Any, Any, tuple[int, float, float, bool]]:
        asked_at = scripts.now()
        answer = yield Call(LeaseQuestion((id,)))
        if not answer.leases:
            raise LeaseNotFound("it is gone")
        left = min(answer.leases[0].remaining, answer.leases[0].ttl * 2 / 3)
        return id, answer.leases[0].ttl, asked_at - (answer.leases[0].ttl - left), False

    return patched(scripts, "adopt_steps", adopt_steps)
