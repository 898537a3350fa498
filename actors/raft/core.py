"""The state of a node, and the transitions that every other part shares.

``Node`` is built in layers, each a class that adds one subject and calls only downwards:

    Core              term, vote, role, timers, outbox          (this file)
    SnapshotTransfer  images, on both sides                     snapshots.py
    Replication       log and commit index, on both sides       replication.py
    Confirmation      heartbeat rounds, reads, leases           confirmation.py
    Membership        changing and applying configurations      membership.py
    Elections         pre-vote, vote, transfer, check-quorum    elections.py
    Node              the public face: step, tick, ready        node.py
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final, Literal

from .lease import Promise, Rounds
from .log import Log, Storage
from .messages import Configuration, HardState, InstallSnapshot, Message, SnapshotMeta
from .progress import Inflights, Progress
from .quorum import has_quorum
from .reads import ReadQueue
from .ready import NodeConfig

Role = Literal["follower", "pre-candidate", "candidate", "leader"]
FOLLOWER: Final = "follower"
PRE_CANDIDATE: Final = "pre-candidate"
CANDIDATE: Final = "candidate"
LEADER: Final = "leader"


RELUCTANCE = 4
"""A node without its state waits this many times longer before it campaigns: those who could serve go first."""


class NotLeader(Exception):
    """Only the leader can do this.

    Attributes:
        leader: who leads as far as this node knows, 0 if it does not.
    """

    def __init__(self, leader: int) -> None:
        super().__init__(f"not the leader, which is {leader or 'unknown'}")
        self.leader = leader


class ProposalRefused(Exception):
    """The leader does not take this now, or ever; the message says why. Nothing has happened."""


class InvalidProposal(ProposalRefused):
    """The leader will never take this: it makes no sense on the configuration in effect."""


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
        needs_image: bool = False,
        now: float = 0.0,
    ) -> None:
        self.config = config
        self.needs_image = needs_image
        """The state machine is lost, the log is not. This node keeps all its promises: it votes, appends and
        acknowledges, and follows the configuration, which the log tells. But it can answer for nothing that the log
        no longer holds, so it asks the leader for an image of what was cut off, and leads only if nobody else can,
        until it has found somebody to hand over to."""
        self.id = config.id
        self.log = Log(storage, hard_state.commit, applied)
        self.configuration = configuration
        """The one in effect: the newest that was applied."""
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.leader = 0
        """Who leads in ``term``, 0 if unknown."""
        self.role: Role = FOLLOWER
        self.progress: dict[int, Progress] = {}
        """Leader: every member of the configuration, itself included. Empty in other roles."""
        self.transfer_target = 0
        """Leader: who is to lead next, 0 for nobody."""

        self._storage = storage
        self._rng = rng
        self._saved = hard_state
        """As last handed out to be written."""
        self._synced_commit = 0
        """A commit index synced in this life of the node; what it found at its start may not have been synced."""
        self._votes: dict[int, bool] = {}
        self._least = self._most = now
        """What the owner's clock shows: what has passed at least, and what may have passed at most."""
        self._promise = Promise(hard_state.promise, now)
        self._election_elapsed = 0
        self._election_timeout = 0
        self._heartbeat_elapsed = 0
        self._leader_elapsed = config.election_ticks
        """Ticks since a leader was heard. Unlike ``leader`` it outlives a change of term (see ``_is_sticky``)."""
        self._transfer_elapsed = 0

        self._messages: list[Message] = []
        self._messages_after: list[Message] = []
        self._sends_due = False
        """Leader: some follower may have to be sent something; looked at once, when ``ready`` is built."""
        self._chunk: InstallSnapshot | None = None
        self._rejected_snapshots: list[SnapshotMeta] = []

        self._term_start = 0
        """Leader: index of the no-op that opened its term."""
        self._last_change = 0
        """Leader: index up to which the log may hold configuration changes that are not applied."""
        self._uncommitted: deque[tuple[int, int]] = deque()
        """Leader: (last index, bytes) of each append of its own that is not committed."""
        self._uncommitted_bytes = 0
        self._retiring = 0
        """Leader: index of the configuration that no longer has it as a voter, 0 if it has."""

        self._reads = ReadQueue()
        # Answers to reads of an earlier life of this node must not be taken for answers to new ones.
        self._reads.batch = rng.getrandbits(62)
        self._round = 0
        """Leader: number of the last heartbeat round."""
        self._rounds = Rounds()
        """Leader with lease reads: what the rounds have asked for."""
        self._lease_until = -math.inf
        """Leader: until when a quorum is to be counted on."""
        self._lease_dropped = False

        self._draw_timeout()

    # -- what the owner may look at -----------------------------------------------------------------------------------

    @property
    def commit_index(self) -> int:
        """The last index known to be committed."""
        return self.log.commit_index

    @property
    def applied_index(self) -> int:
        """The last index reported as applied."""
        return self.log.applied_index

    @property
    def last_index(self) -> int:
        """The end of the log, what is not yet on disk included."""
        return self.log.last_index

    @property
    def is_learner(self) -> bool:
        """Whether this node takes part without a vote."""
        return self.id in self.configuration.learners

    @property
    def is_voter(self) -> bool:
        """Whether this node's vote counts in the configuration in effect."""
        return self.id in self.configuration.voters or self.id in self.configuration.outgoing

    @property
    def committed_in_term(self) -> bool:
        """Whether this node leads and has committed an entry of its term: only then does it know all that is
        committed (paper, section 8)."""
        return self.role == LEADER and self.log.commit_index >= self._term_start

    @property
    def term_start(self) -> int:
        """Leader: the index of the entry that opened its term. Whoever has applied it knows all that earlier leaders
        have committed."""
        return self._term_start

    @property
    def ticks_without_leader(self) -> int:
        """Ticks since this node led, or heard from a leader; 0 for a leader."""
        return 0 if self.role == LEADER else self._leader_elapsed

    # -- what the owner says ------------------------------------------------------------------------------------------

    def set_time(self, least: float, most: float) -> None:
        """What the owner's clock shows, read when all that is now handed in had arrived; before every input, or before
        a turn's. Lease reads rest on it (see ``lease``); all else counts ticks.

        Args:
            least, most: seconds that have passed since some moment at least, and that may have passed at most.
        """
        self._least, self._most = least, most

    # -- transitions --------------------------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: int) -> None:
        """Enter a term, or go back to following in the present one."""
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
        self._reads.fail_all()
        self.progress = {}
        self.transfer_target = 0
        self._sends_due = False
        self._retiring = 0
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        # It has no leader to be loyal to: its own leadership is over.
        self._leader_elapsed = self.config.election_ticks

    def _hear_leader(self, sender: int) -> None:
        """A message of the leader of our term has come."""
        if self.role != FOLLOWER or self.leader != sender:
            self._become_follower(self.term, sender)
        self._election_elapsed = 0
        self._leader_elapsed = 0

    def _is_sticky(self) -> bool:
        """Whether this node has heard from a leader within the shortest election timeout, and so helps nobody to
        depose it (thesis, section 4.2.3), or has promised to stand by one that it has heard, whatever the term."""
        if self.role == LEADER:
            return True  # or it would have stepped down by check-quorum
        return self._leader_elapsed < self.config.election_ticks or self._promise.runs(self._least)

    def _draw_timeout(self) -> None:
        ticks = self.config.election_ticks * (RELUCTANCE if self.needs_image else 1)
        self._election_timeout = ticks + self._rng.randrange(ticks)

    def _new_progress(self) -> Progress:
        config = self.config
        window = Inflights(config.max_append_messages_in_flight, config.max_append_bytes_in_flight)
        return Progress(self.log.last_index + 1, window)

    def _is_quorum_active(self) -> bool:
        """Whether a quorum, ourselves included, has been heard of since the last check."""
        active = {member for member, progress in self.progress.items() if progress.recent_active or member == self.id}
        return has_quorum(self.configuration, active)
