"""A member without Ray: one object that owns the consensus core and the state machine, and does one turn at a time.

A turn takes what has gathered: it steps the messages of peers, counts the clock, takes the events of the threads around
it, and then works off what the core has ready, in the order on which all safety rests:

    send what may go at once -> write entries and hard state, one fsync -> send promises -> apply, one write -> answer

No threads, no clock of its own, no randomness of its own: ``member.py`` runs it on a thread with real time, the
simulator runs the same code in an imagined world. Only the owner of the loop may call it; what other threads may read
is said at each property.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import takewhile

from ..errors import DataCorrupted
from ..limits import (
    COMPACTION_MOST,
    COMPACTION_PAUSE,
    MAX_PROMISE,
    MAX_READY_ROUNDS,
    TURN_SECONDS,
    Limits,
    Settings,
    Timings,
    decode_settings,
)
from ..store import commands
from ..store.commands import COMMANDS_VERSION, Answer, Command, LeaseGranted, SessionOpened, TxnAnswer
from ..store.folder import DataMissing, Identity, MemberFolder, StateDamaged
from ..store.state import State
from .clock import both_readings
from .compactor import Compactor
from .content_check import Hashing
from .events import (
    BackgroundDone,
    Event,
    LeadershipTransfer,
    LeaseRenewal,
    LeasesAsked,
    Proposal,
    ReadAsked,
    SessionRenewal,
    Unreachable,
)
from .lessor import Lessor
from .protocol import Refusal, Refused
from .raft import Entry, Node, NodeConfig, NotLeader, ProposalRefused
from .raft.messages import AppendEntries, Configuration, EntryKind, Message
from .reads import ReadRounds
from .reconfiguration import Reconfiguration
from .session_keeper import SessionKeeper
from .snapshots import Background, MemberStorage, Snapshots
from .timekeeper import ClusterTime
from .watches import Watches


class Server:
    """One member's consensus and state.

    Args:
        folder: the member's opened data; the server closes it.
        timings, limits: as the cluster runs with them.
        send: takes messages for peers; may lose, never block.
        clock: monotonic seconds that run on while the machine sleeps. Leader leases are counted on its upper reading
            (see ``clock``).
        rng: for election timeouts.
        background: runs slow work elsewhere and brings its end back as an event (see ``snapshots``).
        breathe: called by slow work after each slice; lets others run.
    """

    def __init__(
        self,
        *,
        folder: MemberFolder,
        timings: Timings,
        limits: Limits,
        send: Callable[[Sequence[Message]], None],
        clock: Callable[[], float],
        rng: random.Random,
        background: Background,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.timings = timings
        self.limits = limits
        self._settings = folder.state.settings
        self._send = send
        self._clock = clock
        self._look = both_readings(clock)
        self._snapshots = Snapshots(folder, limits, background, clock)
        self.node = Node(
            _node_config(folder.identity, timings, limits),
            MemberStorage(folder, self._snapshots),
            hard_state=folder.log.hard_state,
            configuration=folder.state.configuration,
            applied=folder.log.first_index() - 1 if folder.state.lost else folder.state.applied_index,
            rng=rng,
            needs_image=bool(folder.state.lost),
            now=clock(),
        )
        self._proposals: dict[int, tuple[int, Proposal]] = {}
        """By log index: the term it was proposed in, and who waits."""
        self._reads = ReadRounds()
        self._time = ClusterTime(lambda: self.state, self._propose_own, clock())
        self._sessions = SessionKeeper(lambda: self.state, self._propose_own, self._time)
        self._lessor = Lessor(lambda: self.state, self._propose_own, self._time)
        self._compactor = Compactor(lambda: self.state, self._propose_own, self._time)
        self._checked_at = clock()
        self.hashing = Hashing(background, breathe, folder.state.applied_index)
        self.watches = Watches(lambda: self.state, clock, lambda: self.is_cut_off)
        """Polls of watches; they may come on any thread."""
        self.reconfiguration = Reconfiguration(self.node, lambda: self.state, 2 * timings.election_timeout)
        self._proposing_term = 0
        """The term in which proposals were taken, 0 while this member does not lead."""
        self._leading_term = 0
        """The term in which this member leads and knows all that earlier leaders have committed."""
        self._last_tick = clock()
        self._next_sweep = self._last_tick
        self._compact_at: float | None = self._last_tick
        self._sliced_at = folder.state.revision
        """The revision when history was compacted last."""
        self._work_left = False
        self._cut_more = False

    # -- what other threads may read ----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state machine; its reads may run on any thread. A snapshot from the leader replaces it."""
        return self.folder.state

    @property
    def seconds_since_check(self) -> float:
        """How long ago a leader, whichever it was, last had the members compared; at least since this one started."""
        return self._clock() - self._checked_at

    @property
    def is_leader(self) -> bool:
        """Whether this member believes that it leads; only a confirmed read proves it."""
        return self.node.role == "leader"

    @property
    def leader(self) -> int:
        """The leader as far as this member knows, 0 if it knows of none."""
        return self.node.leader

    @property
    def active_version(self) -> int:
        """The newest version of commands that all members of the configuration know: newer ones are not proposed."""
        return min(COMMANDS_VERSION, self.state.members.version(self.state.configuration.members))

    @property
    def is_cut_off(self) -> bool:
        """Whether this member has heard of no leader for so long that what it knows may be old."""
        return self.node.ticks_without_leader >= 2 * self.node.config.election_ticks

    @property
    def why_not_serving(self) -> str:
        """Why this member takes part and yet answers no client: its state is being rebuilt. Empty if it serves."""
        state, serve_from = self.folder.state, self.folder.serve_from
        if state.lost:
            return f"its state is lost ({state.lost}); it waits for a snapshot, {self._snapshots.arrival}"
        if state.applied_index < serve_from:
            return f"its state is rebuilt from its log, and has come to {state.applied_index} of {serve_from}"
        return ""

    # -- the turn -----------------------------------------------------------------------------------------------------

    def turn(self, messages: Sequence[Message], events: Sequence[Event]) -> None:
        """Do one turn: take messages and events, then work off what became ready.

        Raises:
            StateDamaged: the state was found damaged, here or by a read on another thread. It is condemned: the
                process must end, and the next one rebuilds it.
            DataMissing: the data directory is gone. The process must end.
            CommandUnknown: the log goes on with what only a newer version of RayKeeper can do. This one must stop.
        """
        try:
            self._turn(messages, events)
        except DataCorrupted:
            self._look_for_damage()
            raise
        self._look_for_damage()

    def _look_for_damage(self) -> None:
        damage = self.folder.state.damage
        if damage is None:
            return
        self.folder.condemn_state(str(damage))
        raise StateDamaged(str(damage)) from damage

    def _turn(self, messages: Sequence[Message], events: Sequence[Event]) -> None:
        now, most = self._look()
        self.node.set_time(now, most)
        self._time.most = most
        self.reconfiguration.heard(messages, now)
        leads = self.is_leader
        if not leads:  # what has passed before a leader's word is no silence after it
            self._tick(now)
        full = self.state.lost and self.folder.log.size_bytes >= self.limits.log_hold_bytes
        for message in messages:
            if not self.state.members.is_removed(message.sender) and not (full and type(message) is AppendEntries):
                self.node.step(message)
        if leads:  # and answers that wait here show a leader that it has its quorum
            self._tick(now)
        self._take(events, now)
        self._reads.ask(self.node)
        if self._snapshots.due(now):
            self.node.snapshot_chunk_ready()
        self._work_off()
        self._follow_leadership(now)
        if self._leading_term:
            self._lead(now)
        if now >= self._next_sweep:
            self._follow_settings()
            self._next_sweep = now + self.timings.heartbeat_interval
            self._give_up_waits(now)
            self._snapshots.drop_idle()
            if not self.folder.is_there:
                raise DataMissing(f"{self.folder.path} is gone")
            self._cut_log()
            self._recover()
            self.watches.tick(now)
            self.folder.note_membership()
            if self._compact_at is None:
                self._compact_at = now
        self._compact(now)
        if self.node.has_ready():
            self._work_off()
            self._follow_leadership(now)
        self._work_left = self.node.has_ready()

    def next_wakeup(self) -> float:
        """The clock time by which :meth:`turn` must be called again, events or not."""
        if self._work_left:
            return self._last_tick
        # A follower counts time when it hears of its leader: only silence has to wake it.
        ticks = 2 if self.node.role == "follower" else 1
        wakeup = self._last_tick + ticks * self.timings.heartbeat_interval
        if self._compact_at is not None:
            wakeup = min(wakeup, self._compact_at)
        chunk_due = self._snapshots.next_due
        if chunk_due is not None:
            wakeup = min(wakeup, chunk_due)
        return wakeup

    def stop(self, why: str) -> None:
        """Answer everybody who waits, and close the data. The server is of no use afterwards."""
        refused = Refused(Refusal.NOT_SERVING, message=why)
        lost = Refused(Refusal.LOST, message=why)
        self._drop_proposals(lost)
        self._reads.refuse_all(refused)
        self._sessions.stop()
        self._lessor.stop()
        self.watches.close()
        self.folder.close()

    def _tick(self, now: float) -> None:
        """Tell the core how much time has passed.

        After a pause of this process a leader counts all of it, so that check-quorum sees it (up to one timeout beyond
        which nothing more can happen); others count little, because not having listened is no proof of silence.
        """
        interval = self.timings.heartbeat_interval
        ticks = int((now - self._last_tick) / interval)
        if ticks <= 0:
            return
        self._last_tick += ticks * interval
        most = 2 * self.node.config.election_ticks if self.is_leader else 3
        for _ in range(min(ticks, most)):
            self.node.tick()

    def _take(self, events: Sequence[Event], now: float) -> None:
        proposals: list[Proposal] = []
        for event in events:
            if isinstance(event, Proposal):
                if event.deadline > now:
                    proposals.append(event)
                else:  # nobody waits for it any more: under a flood, room in the log is for those who do
                    event.done(
                        Refused(Refusal.OVERLOADED, self.leader, "its time was over before it could be proposed")
                    )
            elif isinstance(event, ReadAsked):
                self._reads.add(event, self.state)
            elif isinstance(event, SessionRenewal):
                self._keep_session(event)
            elif isinstance(event, LeaseRenewal):
                self._keep_leases(event)
            elif isinstance(event, LeasesAsked):
                self._ask_leases(event)
            elif isinstance(event, BackgroundDone):
                event.then()
            elif isinstance(event, Unreachable):
                self.node.report_unreachable(event.member)
            elif isinstance(event, LeadershipTransfer):
                self._transfer(event)
            else:
                self.reconfiguration.ask(event, now)
        if proposals:
            self._propose(proposals)

    def _propose(self, proposals: list[Proposal]) -> None:
        try:
            index = self.node.propose([proposal.data for proposal in proposals])
        except NotLeader:
            self._refuse(proposals, self._not_leader())
            return
        except ProposalRefused as error:
            if len(proposals) > 1:  # what fits still goes
                for proposal in proposals:
                    self._propose([proposal])
                return
            self._refuse(proposals, Refused(Refusal.OVERLOADED, self.leader, str(error)))
            return
        term = self.node.term
        for proposal in proposals:
            self._proposals[index] = (term, proposal)
            index += 1

    @staticmethod
    def _refuse(proposals: Sequence[Proposal], refused: Refused) -> None:
        for proposal in proposals:
            proposal.done(refused)

    def _not_leader(self) -> Refused:
        return Refused(Refusal.NOT_LEADER, self.leader)

    def _confirmed(self, deadline: float, go_on: Callable[[], None], refuse: Callable[[Refused], None]) -> None:
        """Go on once a quorum confirmed, later than now, that this member leads: what a promise of time needs."""
        if not self.is_leader:
            refuse(self._not_leader())
            return

        def answered(refused: Refused | None) -> None:
            if refused is not None:
                refuse(refused)
            elif not self.is_leader:
                refuse(self._not_leader())
            else:
                go_on()

        self._reads.add(ReadAsked(deadline, answered), self.state)

    def _keep_session(self, event: SessionRenewal) -> None:
        def renewed(alive: bool | None) -> None:
            if alive is None:
                event.done(
                    Refused(Refusal.OVERLOADED, self.leader, "whether the session lives is not known: ask again")
                )
            else:
                event.done(alive)

        self._confirmed(event.deadline, lambda: self._sessions.keep(event.session, event.arrival, renewed), event.done)

    def _keep_leases(self, event: LeaseRenewal) -> None:
        self._confirmed(event.deadline, lambda: self._lessor.keep(event.leases, event.arrival, event.done), event.done)

    def _ask_leases(self, event: LeasesAsked) -> None:
        def answer() -> None:
            event.done(self._lessor.status(event.leases or sorted(self.state.leases), self._clock()))

        self._confirmed(event.deadline, answer, event.done)

    def _transfer(self, event: LeadershipTransfer) -> None:
        if not self.is_leader:
            event.done(self._not_leader())
            return
        target = event.target or self.node.most_up_to_date_peer()
        try:
            if target != self.node.id:
                self.node.transfer_leadership(target)
        except ProposalRefused as error:
            event.done(Refused(Refusal.INVALID, self.leader, str(error)))
            return
        event.done(None)

    # -- working off what is ready ------------------------------------------------------------------------------------

    def _work_off(self) -> None:
        started = self._clock()
        for _ in range(MAX_READY_ROUNDS):
            if not self.node.has_ready() or self._clock() - started >= TURN_SECONDS:
                return
            ready = self.node.ready()
            # With nothing to write, what was committed is answered before the followers hear of it: the clients wait.
            answer_first = bool(ready.committed) and not ready.must_sync
            if not answer_first:
                self._send(ready.messages)
            if ready.must_sync or ready.hard_state is not None:
                self.folder.log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
            self._send(ready.messages_after)
            if ready.committed:
                ready.committed = ready.committed[: self._apply(ready.committed)]
            self.node.advance(ready)
            if answer_first:
                self._send(ready.messages)
            if ready.chunk is not None:  # after applying: it may replace what was applied to
                self._snapshots.receive(ready.chunk, self.node, self._state_replaced)
            self._reads.answered(ready, self.state)
            if ready.rejected_snapshots:
                self._snapshots.rejected(ready.rejected_snapshots)

    def _apply(self, entries: Sequence[Entry]) -> int:
        """Apply the first of these entries: as many as there is time for in one round, and how many that was. What is
        left comes again with the next ``Ready``."""
        now = self._clock()
        configurations: dict[int, Configuration] = {}
        if self.state.lost:  # an image comes, and with it these entries once more
            for entry in entries:
                if entry.kind is EntryKind.CONFIGURATION:
                    self.node.apply_configuration(entry)
            return len(entries)
        if entries[0].kind is EntryKind.CONFIGURATION:
            entries = entries[:1]  # takes effect with all before it applied, and nothing behind it
            configurations[entries[0].index] = self.node.apply_configuration(entries[0])
        else:
            entries = list(takewhile(lambda entry: entry.kind is not EntryKind.CONFIGURATION, entries))
        try:
            applied = self.state.apply_some(entries, configurations)
        except DataCorrupted as error:
            self.state.report_damage(error)
            raise
        if not applied:
            return 0
        self._time.applied(now)
        for entry, answers in zip(entries, applied, strict=False):
            if self._leading_term:
                self._track(answers, now)
            waiting = self._proposals.pop(entry.index, None)
            if waiting is None:
                continue
            term, proposal = waiting
            if term != entry.term:
                proposal.done(Refused(Refusal.LOST, self.leader))
                continue
            if proposal.session:
                self._sessions.heard(proposal.session, proposal.arrival)
            proposal.done(answers)
        # Watches first: a watch that a read lets begin "now" begins behind what this has applied.
        self.watches.changed(self.state.take_changed(), self.state.revision)
        content = self.state.take_content()
        if content is not None:
            self.hashing.take(content, self.state.report_damage)
            if content.routine:
                self._checked_at = now
        self._reads.applied(self.state)
        self._sessions.applied()
        self._lessor.applied()
        self.reconfiguration.applied()
        return len(applied)

    def _track(self, answers: Sequence[Answer], now: float) -> None:
        """Count the time of what was opened or granted just now."""
        for answer in answers:
            if type(answer) is LeaseGranted:
                self._lessor.granted(answer.id, now)
            elif type(answer) is SessionOpened:
                self._sessions.opened(answer.session, now)
            elif type(answer) is TxnAnswer:
                self._track(answer.responses, now)

    def _state_replaced(self) -> None:
        """A snapshot took the place of the state: whatever waited for single entries will not see them applied."""
        self._drop_proposals(Refused(Refusal.LOST, self.leader))
        self.watches.replaced()
        self.hashing.state_replaced(self.state.applied_index)
        self._time.applied(self._clock())
        self._reads.applied(self.state)
        self._compact_at = self._clock()

    def _drop_proposals(self, refused: Refused) -> None:
        waiting, self._proposals = self._proposals, {}
        for _, proposal in waiting.values():
            proposal.done(refused)
        self.reconfiguration.drop(refused)

    # -- leading ------------------------------------------------------------------------------------------------------

    def _follow_leadership(self, now: float) -> None:
        node = self.node
        term = node.term if self.is_leader else 0
        if term != self._proposing_term:
            self._proposing_term = term
            self.reconfiguration.lead(now)
            self._drop_proposals(Refused(Refusal.LOST, self.leader))
        if term and self.state.applied_index < node.term_start:
            term = 0  # what earlier leaders have promised is not all known yet
        if term != self._leading_term:
            self._leading_term = term
            for keeper in (self._time, self._sessions, self._lessor, self._compactor):
                if term:
                    keeper.lead(term, now)
                else:
                    keeper.stop()

    def _lead(self, now: float) -> None:
        """What only a leader does, as time passes."""
        self._time.work(now, self.timings.heartbeat_interval)
        self._sessions.work(now, self.timings.heartbeat_interval)
        self._lessor.work(now, self.timings.heartbeat_interval)
        self._compactor.work(now)

    def _propose_own(self, command: Command) -> int:
        """Propose a command that nobody waits for; its index, or 0 if it was not taken."""
        if commands.version_of(command) > self.active_version:
            return 0
        try:
            return self.node.propose([commands.encode(command)])
        except (NotLeader, ProposalRefused):
            return 0

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def _give_up_waits(self, now: float) -> None:
        late = [index for index, (_, proposal) in self._proposals.items() if proposal.deadline <= now]
        for index in late:
            self._proposals.pop(index)[1].done(Refused(Refusal.TIMED_OUT, self.leader))
        self._reads.give_up(now)
        self.reconfiguration.give_up(now)

    def _follow_settings(self) -> None:
        """Take over the timings and limits that the cluster has changed to (``Configure``)."""
        data = self.state.settings
        if data == self._settings:
            return
        self._settings = data
        settings = decode_settings(data) if data else Settings()
        self.timings, self.limits = timings, limits = settings.timings, settings.limits
        self.node.config = _node_config(self.folder.identity, timings, limits)
        self._snapshots.limits = limits
        self.reconfiguration.silence = 2 * timings.election_timeout

    def _cut_log(self) -> None:
        """Cut the log behind what is applied. Rule of the disk: the state is synced past the cut before."""
        log = self.folder.log
        cut = self._where_to_cut()
        if cut >= log.first_index():
            self.state.sync()
            self._cut_more = log.cut(cut, self.state.configuration)
        elif self._cut_more:  # what was cut off leaves the disk in slices
            self._cut_more = log.cut(log.first_index() - 1)

    def _recover(self) -> None:
        """What is to be done about a state that was damaged."""
        if self.state.lost:
            if self.is_leader:  # which it is only because nobody else could be
                self.node.hand_over()
        elif self.folder.serve_from and self.state.applied_index >= self.folder.serve_from:
            self.state.sync()
            self.folder.rebuilt()

    def _where_to_cut(self) -> int:
        """The last index to cut off, 0 while the log is short enough."""
        log, limits, applied = self.folder.log, self.limits, self.state.applied_index
        first = log.first_index()
        size = log.size_bytes
        if applied - first + 1 < limits.log_cut_entries + limits.log_keep_entries and size < limits.log_cut_bytes:
            return 0
        mean = size / max(1, log.last_index() - first + 1)
        keep = min(limits.log_keep_entries, int(limits.log_cut_bytes / 2 / max(1.0, mean)))
        needed = self._snapshots.needed_from()
        return applied - keep if needed is None else min(applied - keep, needed)

    def _compact(self, now: float) -> None:
        """One slice of physical compaction now and then, so that it never holds up a turn for long.

        Slices are short, for the sake of whoever asks one thing at a time; but they keep pace with what is written.
        """
        if self._compact_at is None or now < self._compact_at:
            return
        least, written = self.limits.compaction_slice_keys, self.state.revision - self._sliced_at
        self._sliced_at = self.state.revision
        more = self.state.compact_slice(min(max(least, 2 * written), COMPACTION_MOST * least))
        self._compact_at = now + COMPACTION_PAUSE if more else None


def _node_config(identity: Identity, timings: Timings, limits: Limits) -> NodeConfig:
    """How the core runs under these settings; a tick is a heartbeat interval.

    Whether there are lease reads is decided when the cluster is made: every member knows that from its first moment.
    """
    return NodeConfig(
        id=identity.member,
        promise=min(timings.election_timeout, MAX_PROMISE) if identity.settings.lease_reads else 0.0,
        max_promise=MAX_PROMISE,
        clock_drift=identity.settings.clock_drift,
        election_ticks=max(2, round(timings.election_timeout / timings.heartbeat_interval)),
        heartbeat_ticks=1,
        max_append_bytes=limits.max_append_bytes,
        max_append_messages_in_flight=limits.max_append_messages_in_flight,
        max_append_bytes_in_flight=limits.max_append_bytes_in_flight,
        max_uncommitted_bytes=limits.max_uncommitted_bytes,
        max_apply_bytes=limits.max_apply_bytes,
        snapshot_chunk_bytes=limits.snapshot_chunk_bytes,
    )
