"""A member without Ray: one object that owns the consensus core and the state machine, and does one turn at a time.

A turn takes in what has arrived: it steps the messages from peers, counts the time, takes the events from other
threads, and then processes what the core has ready, in the order on which safety rests:

    send what may go at once -> write entries and hard state, one fsync -> send promises -> apply, one write -> answer

It has no threads, clock or randomness of its own: ``event_loop.py`` runs it on a thread in real time, and the simulator
runs the same code in simulated time. (A stopwatch is read, but only log lines depend on it.) Only the thread of the
loop may call it; each property says what other threads may read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from ...errors import DataCorrupted
from ...limits import (
    COMMIT_NOTICE_PAUSE_S,
    DEFERRED_SEND_PAUSE_S,
    LAG_LOOK_S,
    MAX_READY_ROUNDS,
    NOTED_APPEND_S,
    SLOW_S,
    TURN_S,
    Limits,
    Settings,
    Timings,
    decode_settings,
)
from ...raft import Entry, Node, Ready
from ...raft.messages import AppendEntries, Configuration, EntryKind, Message
from ...schema.answers import Answer
from ...schema.frames import Refusal, Refused
from ...store.data_dir import DataDir, DataMissing, StateDamaged
from ...store.state.machine import State
from ...telemetry import COUNT_BUCKETS, Histogram
from ..logs import MemberLog
from .clock import both_readings
from .commit_times import CommitTimes
from .compaction_pacer import CompactionPacer
from .config_changes import ConfigChanges
from .deadlines import ClusterTime
from .event_recorder import EventRecorder
from .events import (
    BackgroundDone,
    CompactionAwaited,
    InboxEvent,
    LeadershipTransfer,
    LeaseRenewal,
    LeasesAsked,
    LoneReadAsked,
    MembershipChange,
    Proposal,
    ReadAsked,
    SessionRenewal,
    Unreachable,
)
from .hashing import Hashing
from .leader_duties import LeaderDuties
from .log_trimmer import LogTrimmer
from .node_config import node_config
from .operator_log import OperatorLog, TurnTimes
from .proposals import Proposals
from .read_index import ReadRounds
from .request_spans import RequestSpans
from .slow_requests import SlowRequests
from .snapshots import Background, MemberStorage, Snapshots
from .turn import Turn
from .watches import Watches


class Replica:
    """One member's consensus and state.

    Args:
        folder: the member's opened data; the replica closes it.
        timings, limits: the cluster's settings.
        send: sends messages to peers; may lose some, never blocks.
        clock: monotonic seconds that run on while the machine sleeps. Leader leases are counted on its upper reading
            (see ``clock``).
        rng: for election timeouts.
        background: runs slow work elsewhere and reports its end as an event (see ``snapshots``).
        throttle: called by slow work after each slice; gives way to other work.
        wall: seconds since 1970, for events of the cluster; without it, none are recorded.
        spans: makes spans of sampled requests.
    """

    def __init__(
        self,
        *,
        folder: DataDir,
        timings: Timings,
        limits: Limits,
        send: Callable[[Sequence[Message]], None],
        clock: Callable[[], float],
        rng: random.Random,
        background: Background,
        throttle: Callable[[], None] = lambda: None,
        wall: Callable[[], float] | None = None,
        spans: RequestSpans | None = None,
    ) -> None:
        self.folder = folder
        self.timings = timings
        self.limits = limits
        self._settings = folder.state.settings
        self._send = send
        self._clock = clock
        self._readings = both_readings(clock)
        self._turn = Turn(*self._readings(), folder.state)
        self.snapshots = Snapshots(folder, limits, background, clock)
        self.node = Node(
            node_config(folder.identity, timings, limits),
            MemberStorage(folder, self.snapshots),
            hard_state=folder.log.hard_state,
            configuration=folder.state.configuration,
            applied=folder.log.first_index() - 1 if folder.state.lost else folder.state.applied_index,
            rng=rng,
            needs_snapshot=bool(folder.state.lost),
            now=clock(),
        )
        log = MemberLog("member", folder.identity.cluster_name, folder.identity.name)
        self._operator_log = OperatorLog(
            log,
            self.node,
            folder.state.alarms,
            folder.state.compact_revision,
        )
        self._times = TurnTimes()
        self.slow = SlowRequests(log, wall)
        """Counts what was slow, and says so."""
        self.turn_times = Histogram()
        """Seconds of each turn, in real time; for metrics, like the next."""
        self.turn_sizes = Histogram(COUNT_BUCKETS)
        """Messages and events of each turn."""
        self.leader_changes = self.slow_applies = self.late_heartbeats = 0
        self.round_trips: dict[int, Histogram] = {}
        """Of a leader: seconds from a heartbeat to its answer, by member; one in each heartbeat interval."""
        # What waits: for its place in the log, for a quorum's word, for a configuration.
        identity = folder.identity
        self.spans = spans or RequestSpans(None, identity.cluster_name, identity.member, clock)
        self.proposals = Proposals(self.node, self._turn, self.slow.wrote, self.spans.propose)
        self.reads = ReadRounds()
        self.config_changes = ConfigChanges(self.node, self._turn, 2 * timings.election_timeout)
        # What a leader does. Every member reads the cluster's clock.
        self._time = ClusterTime(self._turn, self.proposals.propose_own, clock())
        self.duties = LeaderDuties(
            self.node,
            self._turn,
            clock,
            self._time,
            self.proposals,
            self.config_changes,
            self.reads,
        )
        self._recorder = None
        if wall is not None:
            propose = self.proposals.propose_own
            self._recorder = EventRecorder(self.node, self._turn, self.config_changes, propose, wall)
        # What every member does.
        self.watches = Watches(self._turn, clock, lambda: self.is_cut_off, lambda: self.term)
        """Serves polls of watches, which may come on any thread."""
        self.hashing = Hashing(background, throttle, folder.state.applied_index)
        self._checked_at = clock()
        """When a leader last had the members' contents compared."""
        self._trimmer = LogTrimmer(folder, self.snapshots, limits, background, self._operator_log)
        self._compaction = CompactionPacer(self._turn, clock())
        self._last_tick = clock()
        """The time up to which the core has counted ticks."""
        self._next_sweep = self._next_lag_look = self._last_tick
        self._leadership = ("", 0, 0, 0)
        """Role, term, leader and transfer target when the duties last followed them..."""
        self.role_since = self._last_tick
        """... and since when role and leader are these, on the replica's clock. Other threads read it."""
        self.commit_times = CommitTimes()
        """Of a leader: by how many seconds members lag."""
        self._led_by = 0
        """The last leader that was known."""
        self._tell_commit_at = math.inf
        """When followers for whom nothing brings the commit index are told of it."""
        self._send_deferred_at = math.inf
        """When the followers that no quorum needs are sent what they lack."""
        self._work_left = False
        """Whether the last turn ended before everything ready was processed."""
        self._handlers: dict[type[InboxEvent], Callable[[Any], None]] = {
            ReadAsked: lambda event: self.reads.add_read(event, self._turn.state),
            LoneReadAsked: lambda event: self.reads.add_lone_read(event, self.node, self._turn.state),
            SessionRenewal: self.duties.keep_session,
            LeaseRenewal: self.duties.keep_leases,
            LeasesAsked: self.duties.report_leases,
            BackgroundDone: lambda event: event.then(),
            Unreachable: lambda event: self.node.report_unreachable(event.member),
            LeadershipTransfer: self.duties.transfer,
            MembershipChange: lambda event: self.config_changes.request_change(event, self._turn.now),
            CompactionAwaited: self._compaction.wait,
        }
        """The handler of each kind of event except proposals."""

    # -- for other threads --------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state machine; its reads may run on any thread. A snapshot from the leader replaces it."""
        return self._turn.state

    @property
    def seconds_since_check(self) -> float:
        """Seconds since a leader, this one or another, last had the members' contents compared, or since the start."""
        return self._clock() - self._checked_at

    @property
    def cluster_time(self) -> float:
        """The time of the cluster's clock, as far as this member can tell. For any thread."""
        return self._time.reading(self._clock())

    @property
    def turn_began(self) -> float:
        """When the present turn, or the last one, began, on the member's clock."""
        return self._turn.now

    @property
    def is_leader(self) -> bool:
        """Whether this member believes that it leads; only a confirmed heartbeat round proves it."""
        return self.node.role == "leader"

    @property
    def leader(self) -> int:
        """The leader as far as this member knows, 0 if it knows none."""
        return self.node.leader

    @property
    def term(self) -> int:
        """The Raft term that this member is in."""
        return self.node.term

    @property
    def active_version(self) -> int:
        """The newest version of commands that all members of the configuration support. Newer ones are not proposed."""
        return self.proposals.active_version

    @property
    def is_cut_off(self) -> bool:
        """Whether this member has not heard from a leader for so long that its state may be stale."""
        return self.node.ticks_without_leader >= 2 * self.node.config.election_ticks

    @property
    def why_not_serving(self) -> str:
        """Why this member takes part in consensus but answers no client: its state is being rebuilt. Empty if it
        serves."""
        state, serve_from = self.folder.state, self.folder.serve_from
        if state.lost:
            return f"its state is lost ({state.lost}); it waits for a snapshot, {self.snapshots.arrival}"
        if state.applied_index < serve_from:
            return (
                f"its state is being rebuilt from its log, and has reached index {state.applied_index} of {serve_from}"
            )
        return ""

    # -- the turn -----------------------------------------------------------------------------------------------------

    def turn(self, messages: Sequence[Message], events: Sequence[InboxEvent]) -> None:
        """Do one turn: take messages and events, then process what is ready.

        Raises:
            StateDamaged: the state was found damaged, here or by a read on another thread. It is condemned: the
                process must end, and the next one rebuilds it.
            DataMissing: the data directory is gone. The process must end.
            CommandUnknown: the next log entry needs a newer version of RayKeeper. This process must stop.
        """
        times = self._times
        times.start()
        try:
            self._do_turn(messages, events)
        except DataCorrupted:
            self._check_damage()
            raise
        self._check_damage()
        self.turn_times.observe(took := monotonic() - times.began)
        self.turn_sizes.observe(len(messages) + len(events))
        if took >= SLOW_S:
            self._operator_log.slow_turn(took, times, messages, events)

    def _do_turn(self, messages: Sequence[Message], events: Sequence[InboxEvent]) -> None:
        """Everything in a turn uses one reading of the clock, taken after its messages and events arrived. So a leader
        lease that is valid at that reading was valid after each of the turn's reads arrived (thesis 6.4.1).

        What a leader's duties and housekeeping propose leaves in the same turn. A new commit index that nothing has
        carried to the followers by then is told ``COMMIT_NOTICE_PAUSE_S`` later; if something waits for the next one
        here, the leader is asked to tell it at once (``Node.want_commits``)."""
        turn, node = self._turn, self.node
        turn.now, turn.most = now, most = self._readings()
        node.set_time(now, most)
        self._step(messages, now)
        self._take_events(events)
        self.reads.start_round(node)
        if self.snapshots.chunk_due(now):
            node.snapshot_chunk_ready()
        if now >= self._send_deferred_at:
            node.send_deferred()
        if now >= self._tell_commit_at:
            node.tell_commit()
        self._process_all_ready()
        self.reads.applied(turn.state)  # lone reads come after what the turn sends, however many there are
        more = False
        if self.duties.term:
            last = node.last_index
            self.duties.work(now, self.timings.heartbeat_interval)
            more = node.last_index != last
        if now >= self._next_sweep or now >= self._compaction.due:
            self._keep_house(now)
            more = True
        more |= node.want_commits(self.watches.busy or self.reads.await_commits)
        if more and node.has_ready():
            self._process_all_ready()
        if not node.sends_deferred:
            self._send_deferred_at = math.inf
        elif self._send_deferred_at <= now or self._send_deferred_at == math.inf:
            self._send_deferred_at = now + DEFERRED_SEND_PAUSE_S
        if not node.commit_untold:
            self._tell_commit_at = math.inf
        elif self._tell_commit_at <= now or self._tell_commit_at == math.inf:
            self._tell_commit_at = now + COMMIT_NOTICE_PAUSE_S

    def _process_all_ready(self) -> None:
        """Process what is ready, and what becomes ready by that, as far as the time for one turn goes.

        The first ``Ready`` is not asked for beforehand: nearly every turn has one, and an empty one does nothing. The
        duties follow each change of leadership, and while this member leads without them: they begin once it has
        applied what earlier leaders committed (``LeaderDuties.follow_leadership``)."""
        node, now = self.node, self._turn.now
        for _ in range(MAX_READY_ROUNDS):
            self._process_ready(node.ready())
            self._work_left = node.has_ready()
            if not self._work_left or self._clock() - now >= TURN_S:
                break
        leadership = node.role, node.term, node.leader, node.transfer_target
        if leadership != self._leadership or (node.role == "leader" and not self.duties.term):
            self.leader_changes += node.leader not in (0, self._led_by)
            self._led_by = node.leader or self._led_by
            if (node.role, node.leader) != (self._leadership[0], self._leadership[2]):
                self.role_since = now
                self.commit_times.begin()
            self._leadership = leadership
            self._operator_log.follow_leadership()
            self.duties.follow_leadership(now)

    def _process_ready(self, ready: Ready) -> None:
        """The order on which safety rests: what binds this member (its entries, its vote, its acknowledgements) is on
        disk before any message says so. A leader's appends may leave before its own fsync, because it counts itself
        only afterwards (``Node.advance``; thesis 10.2.1)."""
        # If nothing has to be written, clients get their answers before followers learn what is committed.
        answer_first = bool(ready.committed) and not ready.must_sync
        if ready.messages and not answer_first:
            self._send(ready.messages)
        if ready.must_sync or ready.hard_state is not None:
            self._append(ready)
        if ready.messages_after:
            self._send(ready.messages_after)
        if ready.committed:
            self._apply(ready)
        self.node.advance(ready)
        if ready.messages and answer_first:
            self._send(ready.messages)
        if ready.chunk is not None:  # after applying: it may replace what was applied to
            self.snapshots.receive_chunk(ready.chunk, self.node, self._state_replaced)
        if ready.read_states or ready.failed_reads:
            self.reads.round_answered(ready, self._turn.state)
        if ready.rejected_snapshots:
            self.snapshots.snapshot_rejected(ready.rejected_snapshots)

    # -- input --------------------------------------------------------------------------------------------------------

    def _step(self, messages: Sequence[Message], now: float) -> None:
        """Pass messages to the core, and count the time that has passed.

        A follower counts time first: time that passed before a leader's message is not silence after it. A leader
        counts it last: the responses waiting here may show that it still has its quorum. While the state is lost and
        the log is full, new entries are ignored: the snapshot on its way contains them.
        """
        leads = self.node.role == "leader"
        if leads:
            self.config_changes.note_heard(messages, now)
        else:
            self._tick(now)
        state = self._turn.state
        full = state.lost and self.folder.log.size_bytes >= self.limits.log_hold_bytes
        for message in messages:
            if not state.members.is_removed(message.sender) and not (full and type(message) is AppendEntries):
                self.node.step(message)
        if leads:
            self._tick(now)

    def _tick(self, now: float) -> None:
        """Tell the core how much time has passed.

        After a pause of this process a leader counts all of it, so that check-quorum takes effect; two election
        timeouts are enough for that. Others count little: a process that did not listen cannot tell that there was
        silence.
        """
        interval = self.timings.heartbeat_interval
        ticks = int((now - self._last_tick) / interval)
        if ticks <= 0:
            return
        self._last_tick += ticks * interval
        most = 2 * self.node.config.election_ticks if self.is_leader else 3
        self.late_heartbeats += self.is_leader and ticks > 2
        for _ in range(min(ticks, most)):
            self.node.tick()

    def _take_events(self, events: Sequence[InboxEvent]) -> None:
        """Pass all proposals to the core at once, so that one append carries them, and the rest to ``_handlers``."""
        proposals: list[Proposal] = []
        for event in events:
            if type(event) is Proposal:
                proposals.append(event)
            else:
                self._handlers[type(event)](event)
        if proposals:
            self.proposals.propose(proposals)

    # -- output -------------------------------------------------------------------------------------------------------

    def _append(self, ready: Ready) -> None:
        """Write entries and hard state to the log, with one fsync for all."""
        began = monotonic()
        self.folder.log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
        self._times.append += (took := monotonic() - began)
        if self.spans.waiting:
            self.spans.appended(ready.entries, took)
        if took >= NOTED_APPEND_S:
            self.slow.note_append(ready.entries, took)
            if took >= SLOW_S:
                self._operator_log.slow_append(took, ready)

    def _apply(self, ready: Ready) -> None:
        """Apply the first of the committed entries, as many as time allows in one round, in one write; then answer.
        Only these stay in ``ready.committed``: the others come again with the next ``Ready``.

        Entries are applied in the order of the log, each once. A configuration is applied alone, so that it takes
        effect after all before it and before anything after it."""
        now, state, entries = self._clock(), self._turn.state, ready.committed
        configurations: dict[int, Configuration] = {}
        if state.lost:  # a snapshot is on its way, and these entries come again after it
            for entry in entries:
                if entry.kind is EntryKind.CONFIGURATION:
                    self.node.apply_configuration(entry)
            return
        kinds = [entry.kind for entry in entries]
        if EntryKind.CONFIGURATION in kinds:
            entries = entries[: max(1, kinds.index(EntryKind.CONFIGURATION))]
            if kinds[0] is EntryKind.CONFIGURATION:
                configurations[entries[0].index] = self.node.apply_configuration(entries[0])
        began = monotonic()
        try:
            answers = state.apply_some(entries, configurations, self.proposals.decoded(entries))
        except DataCorrupted as error:
            state.report_damage(error)
            raise
        finally:
            for index, raised in state.take_command_errors():
                self._operator_log.command_error(index, raised)
        ready.committed = entries[: len(answers)]
        self._times.apply += (took := monotonic() - began)
        self.slow.apply_began, self.slow.apply_took = now, took
        if took >= SLOW_S:  # without answers, the first entry is partly done
            self.slow_applies += 1
            self._operator_log.slow_apply(took, ready.committed or entries[:1])
        if answers:
            self._answer(ready.committed, answers, now)

    def _answer(self, entries: Sequence[Entry], answers: Sequence[tuple[Answer, ...]], now: float) -> None:
        """These entries were just applied: answer those that are proposals of this member, and let everything continue
        that waited for them. Watches come before reads: a watch that a read allows to start now must start after these
        entries. A lone watch comes first of all: a lock is handed over by one."""
        state, duties = self._turn.state, self.duties
        self._time.applied(now)
        if duties.term:
            for answer in answers:
                duties.count_granted(answer, now)
        self.watches.keys_changed(state.take_changed_keys(), state.revision)
        took = self.slow.apply_took
        self.proposals.answer(entries, answers, duties.heard_session, now + took - SLOW_S, (now, took))
        self.watches.answer_others()
        content = state.take_content_hasher()
        if content is not None:
            self.hashing.hash_content(content, state.report_damage)
            if content.routine:
                self._checked_at = now
        self.reads.applied(state)
        duties.applied()
        self.config_changes.applied()

    def _state_replaced(self) -> None:
        """A snapshot has replaced the state: proposals that wait for single entries will not see them applied."""
        self._turn.state = self.folder.state
        self._drop_proposals(Refused(Refusal.LOST, self.leader))
        self.watches.state_replaced()
        self.hashing.state_replaced(self._turn.state.applied_index)
        self._time.applied(self._clock())
        self.reads.applied(self._turn.state)
        self._compaction.due = self._clock()

    def _drop_proposals(self, refused: Refused) -> None:
        self.proposals.drop(refused)
        self.config_changes.drop_waiting(refused)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        began = monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        if now >= self._compaction.due:
            self._compaction.work(now, self.limits.compaction_slice_keys)
        self._times.housekeeping += monotonic() - began

    def _sweep(self, now: float) -> None:
        """Once in a heartbeat interval. Late waits are refused first, before anything that may be slow."""
        self._follow_settings()
        self._next_sweep = now + self.timings.heartbeat_interval
        self.proposals.refuse_late(now)
        self.reads.refuse_late(now)
        self.config_changes.refuse_late(now)
        self._compaction.refuse_late(now)
        self.snapshots.drop_idle()
        if not self.folder.exists:
            raise DataMissing(f"{self.folder.path} is gone")
        self._trimmer.trim()
        self._recover()
        self.watches.answer_overdue_polls(now)
        self.folder.write_membership_note()
        self._operator_log.follow_state(self, now)
        if self._recorder is not None and self.duties.term:
            self._recorder.work(now)
        self._look_at_lag(now)
        self._compaction.look_again(now)

    def _look_at_lag(self, now: float) -> None:
        """What is told of other processes: how far members are away, and which watcher lags."""
        if self.node.role == "leader":
            for member, progress in self.node.progress.items():
                if progress.round_trip >= 0:
                    self.round_trips.setdefault(member, Histogram()).observe(progress.round_trip)
                    progress.round_trip = -1.0
        if now >= self._next_lag_look:
            self._next_lag_look = now + LAG_LOOK_S
            if self.is_leader:
                self.commit_times.note(self.node.commit_index, now)
            if self.watches.busy:
                self.slow.follow_watches(self.watches.figures(now), now)

    def _follow_settings(self) -> None:
        """Adopt timings and limits that a ``Configure`` command has changed."""
        data = self._turn.state.settings
        if data == self._settings:
            return
        self._settings = data
        settings = decode_settings(data) if data else Settings()
        self.timings, self.limits = timings, limits = settings.timings, settings.limits
        self._operator_log.log.info("runs under changed settings: %s", settings)
        self.node.config = node_config(self.folder.identity, timings, limits)
        self.snapshots.limits = self._trimmer.limits = limits
        self.config_changes.silence = 2 * timings.election_timeout

    def _recover(self) -> None:
        """Finish the recovery of a damaged state: hand over leadership, or note that the rebuild is complete."""
        if self._turn.state.lost:
            if self.is_leader:  # only because no other member could be elected
                self.node.hand_over()
        elif self.folder.serve_from and self._turn.state.applied_index >= self.folder.serve_from:
            self._turn.state.flush()
            self.folder.finish_rebuild()

    def _check_damage(self) -> None:
        damage = self._turn.state.damage
        if damage is None:
            return
        self.folder.mark_state_damaged(str(damage))
        raise StateDamaged(str(damage)) from damage

    # -- between turns ------------------------------------------------------------------------------------------------

    def next_wakeup(self) -> float:
        """The clock time by which :meth:`turn` must be called again, events or not."""
        if self._work_left:
            return self._last_tick
        # A follower counts time when it hears from its leader: only silence has to wake it.
        ticks = 2 if self.node.role == "follower" else 1
        wakeup = self._last_tick + ticks * self.timings.heartbeat_interval
        chunk_due = self.snapshots.next_due
        if chunk_due is not None:
            wakeup = min(wakeup, chunk_due)
        return min(wakeup, self._compaction.due, self._tell_commit_at, self._send_deferred_at)

    def stop(self, why: str) -> None:
        """Answer all waiting callers, and close the data. The replica cannot be used afterwards."""
        refused = Refused(Refusal.NOT_SERVING, message=why)
        lost = Refused(Refusal.LOST, message=why)
        self._drop_proposals(lost)
        self.reads.refuse_all(refused)
        self._compaction.refuse_all(refused)
        self.duties.stop()
        self.watches.close()
        self.folder.close()
