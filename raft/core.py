"""The state of a node and the transitions that all its layers share.

``Node`` is built in layers. Each is a class that adds one subject and calls only the layers above it in this list:

    Core              term, vote, role, timers, outbox          (this file)
    SnapshotTransfer  snapshots, on both sides                  install_snapshot.py
    Replication       log and commit index, on both sides       replication.py
    HeartbeatRounds   confirmed leadership: reads, leases       heartbeats.py
    Reconfiguration   changing and applying configurations      reconfiguration.py
    Elections         pre-vote, vote, transfer, check-quorum    elections.py
    Node              the public face: step, tick, ready        node.py
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final, Literal

from .leader_lease import Promise, PromiseRounds
from .log import Log, Storage
from .messages import Configuration, HardState, InstallSnapshot, Message, SnapshotMeta
from .progress import Inflights, Progress
from .quorum import has_quorum
from .read_queue import ReadQueue
from .ready import NodeConfig

Role = Literal["follower", "pre-candidate", "candidate", "leader"]
FOLLOWER: Final = "follower"
PRE_CANDIDATE: Final = "pre-candidate"
CANDIDATE: Final = "candidate"
LEADER: Final = "leader"


STATELESS_TIMEOUT_FACTOR = 4
"""A node that has lost its state waits this many times longer before it campaigns, so that nodes that can serve go
first."""


class NotLeader(Exception):
    """Only the leader can do this.

    Attributes:
        leader: the leader as far as this node knows; 0 if unknown.
    """

    def __init__(self, leader: int) -> None:
        super().__init__(f"not the leader, which is {leader or 'unknown'}")
        self.leader = leader


class ProposalRefused(Exception):
    """The leader refuses this, for now or for good; the message says why. It had no effect."""


class InvalidProposal(ProposalRefused):
    """The leader will never accept this: it is not valid on the configuration in effect."""


class Core:
    """Term, vote, role, timers and outbox of a node. See ``Node`` for the arguments."""

    def __init__(
        self,
        config: NodeConfig,
        storage: Storage,
        *,
        hard_state: HardState,
        configuration: Configuration,
        applied: int,
        rng: random.Random,
        needs_snapshot: bool = False,
        now: float = 0.0,
    ) -> None:
        self.config = config
        self.needs_snapshot = needs_snapshot
        """The state machine is lost, the log is not. This node keeps all its promises: it votes, appends, acknowledges
        and follows the configuration, which the log contains. But it lacks the effect of the entries that the log no
        longer holds. So it asks the leader for a snapshot, and leads only if no other voter can, until it finds one to
        hand over to."""
        self.id = config.id
        self.log = Log(storage, hard_state.commit, applied)
        self.configuration = configuration
        """The configuration in effect: the newest that was applied."""
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.leader = 0
        """The leader of ``term``, 0 if unknown."""
        self.role: Role = FOLLOWER
        self.progress: dict[int, Progress] = {}
        """Leader: every member of the configuration, itself included. Empty in other roles."""
        self.transfer_target = 0
        """Leader: the member that is to lead next; 0 for none."""
        self.taking_over = False
        """Candidate: the leader before has asked it to campaign."""

        self._storage = storage
        self._rng = rng
        self._saved = hard_state
        """The hard state as last handed out to be written."""
        self._synced_commit = 0
        """A commit index synced by this object; the one found at its start may not have been synced."""
        self._votes: dict[int, bool] = {}
        self._earliest = self._latest = now
        """The owner's clock: the least time that has passed, and the most that may have passed (``set_time``)."""
        self._promise = Promise(hard_state.promise, now)
        self._election_elapsed = 0
        """Ticks since a leader was heard or an election began; on a leader, since it last checked its quorum."""
        self._election_timeout = 0
        """Ticks of silence after which a follower campaigns; random, and drawn again each time (paper, 5.2)."""
        self._heartbeat_elapsed = 0
        self._leader_elapsed = config.election_ticks
        """Ticks since a leader was heard. Unlike ``leader`` it outlives a change of term (see ``_is_sticky``)."""
        self._transfer_elapsed = 0

        self._messages: list[Message] = []
        self._messages_after: list[Message] = []
        self._sends_due = False
        """Leader: some follower may need a message; decided once, when ``ready`` is built."""
        self.commit_untold = False
        """Leader: some follower does not know the commit index, and nothing that carries it is on its way. The next
        entries or heartbeat will tell it; an owner that does not want to wait for these calls ``Node.tell_commit``."""
        self.sends_deferred = False
        """Leader: some follower was not sent entries or a heartbeat, since others make up a quorum. The owner calls
        ``Node.send_deferred`` a little later."""
        self._wants_commits = True
        self._chunk: InstallSnapshot | None = None
        self._rejected_snapshots: list[SnapshotMeta] = []

        self._term_start = 0
        """Leader: index of the no-op that opened its term."""
        self._last_change = 0
        """Leader: the log may hold unapplied configuration changes up to this index."""
        self._uncommitted: deque[tuple[int, int]] = deque()
        """Leader: (last index, bytes) of each of its own appends that is not committed."""
        self._uncommitted_bytes = 0
        self._retiring = 0
        """Leader: index of the configuration that removed it as a voter; 0 while it is one."""

        self._reads = ReadQueue()
        # Random, so that a late answer to a read from before a restart is not taken for an answer to a new one.
        self._reads.batch = rng.getrandbits(62)
        self._round = 0
        """Leader: number of the last heartbeat round."""
        self._rounds = PromiseRounds()
        """Leader with lease reads: the promises that its rounds asked for."""
        self._lease_until = -math.inf
        """Leader: until when a quorum has promised to elect no other."""
        self._lease_dropped = False
        """Leader: it has handed over, so it counts on no promise and asks for none."""

        self._draw_timeout()

    # -- queries for the owner -----------------------------------------------------------------------------------

    @property
    def commit_index(self) -> int:
        """The last index known to be committed."""
        return self.log.commit_index

    @property
    def applied_index(self) -> int:
        """The last index that the owner has reported as applied."""
        return self.log.applied_index

    @property
    def last_index(self) -> int:
        """The last index of the log, including entries not yet on disk."""
        return self.log.last_index

    @property
    def is_learner(self) -> bool:
        """Whether this node receives the log without a vote."""
        return self.id in self.configuration.learners

    @property
    def is_voter(self) -> bool:
        """Whether this node's vote counts in the configuration in effect."""
        return self.id in self.configuration.voters or self.id in self.configuration.outgoing

    @property
    def committed_in_term(self) -> bool:
        """Whether this node leads and has committed an entry of its own term. Only then does it know everything that
        is committed (paper, section 8)."""
        return self.role == LEADER and self.log.commit_index >= self._term_start

    @property
    def term_start(self) -> int:
        """Leader: the index of the entry that opened its term. A member that has applied it knows everything that
        earlier leaders committed."""
        return self._term_start

    @property
    def ticks_without_leader(self) -> int:
        """Ticks since this node led, or heard from a leader; 0 for a leader."""
        return 0 if self.role == LEADER else self._leader_elapsed

    # -- inputs from the owner ----------------------------------------------------------------------------------------

    def set_time(self, least: float, most: float) -> None:
        """Set the time, before each input or before all inputs of one turn. The owner reads its clock after those
        inputs have arrived. Only lease reads depend on it (see ``leader_lease``); everything else counts ticks.

        Args:
            least: seconds that have passed for certain since some fixed point.
            most: seconds that may have passed since then.
        """
        self._earliest, self._latest = least, most

    # -- transitions --------------------------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: int) -> None:
        """Enter a newer term, or become a follower in this one."""
        if term > self.term:
            self.term = term
            self.vote = 0
        if self.role == LEADER:
            self._leave_leadership()
        elif self.leader and self.leader != leader:
            self._reads.fail_all()
        self.role = FOLLOWER
        self.leader = leader
        self._votes = {}
        self._election_elapsed = 0
        self._draw_timeout()

    def _leave_leadership(self) -> None:
        """Drop everything that only a leader keeps. Reads fail: none of them can be confirmed any more."""
        self._reads.fail_all()
        self.progress = {}
        self.transfer_target = 0
        self._sends_due = self.commit_untold = self.sends_deferred = False
        self._retiring = 0
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        # Not sticky: its own leadership is over, so there is no leader to stand by.
        self._leader_elapsed = self.config.election_ticks

    def _hear_leader(self, sender: int) -> None:
        """A message from the leader of our term has arrived."""
        if self.role != FOLLOWER or self.leader != sender:
            self._become_follower(self.term, sender)
        self._election_elapsed = 0
        self._leader_elapsed = 0

    def _is_sticky(self) -> bool:
        """Whether this node refuses votes to candidates because it has heard from a leader within the shortest election
        timeout (thesis, section 4.2.3), or because a promise to a leader still runs. The term does not matter."""
        if self.role == LEADER:
            return True  # check-quorum would have made it step down otherwise
        return self._leader_elapsed < self.config.election_ticks or self._promise.holds(self._earliest)

    def _draw_timeout(self) -> None:
        ticks = self.config.election_ticks * (STATELESS_TIMEOUT_FACTOR if self.needs_snapshot else 1)
        self._election_timeout = ticks + self._rng.randrange(ticks)

    def _new_progress(self) -> Progress:
        config = self.config
        window = Inflights(config.max_append_messages_in_flight, config.max_append_bytes_in_flight)
        return Progress(self.log.last_index + 1, window)

    def _is_quorum_active(self) -> bool:
        """Whether a quorum, this node included, has been heard from since the last check."""
        active = {member for member, progress in self.progress.items() if progress.recent_active or member == self.id}
        return has_quorum(self.configuration, active)
