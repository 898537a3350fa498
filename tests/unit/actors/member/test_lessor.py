"""The leader's work on leases: never early whatever happens, not late on a quiet cluster, never forever.

Random runs play a cluster of which only the log, the one who leads and the members' readings of the cluster's clock are
real: entries are committed late or, when the leader changes, not at all; members apply them at different times, and
their clocks lose time; keep-alives come late, doubled, and are answered by the member that leads. Every promise that is
spoken is written down, and no lease may end before its last promise has.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from lab.store_model import FIRST, Hand
from lab.turns import turn_of
from raykeeper.actors.member.deadlines import ClusterTime, DeadlineQueue
from raykeeper.actors.member.lessor import Lessor
from raykeeper.raft.messages import Entry, EntryKind
from raykeeper.schema.answers import Answer, Failed, LeaseGranted
from raykeeper.schema.commands import (
    CheckpointLeases,
    Command,
    EndDeadSessions,
    ExpireLeases,
    PassTime,
    RenewLeases,
)
from raykeeper.schema.frames import Kept
from raykeeper.schema.operations import LeaseGrant, LeaseRevoke, Put, Txn
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

encode = msgspec.msgpack.Encoder().encode
HEARTBEAT = 0.1


class Member:
    """What of a member outlives its time as leader: how it reads the cluster's clock."""

    def __init__(self, cluster: Cluster) -> None:
        self.lost = 0.0
        """Seconds that its clock lacks. Its other reading, what may have passed at most, lacks none."""
        self.lag = 0.0
        """Seconds by which it applies later than others could, unless it comes to lead before."""
        self._applies_at = 0.0
        self._behind = False
        self._cluster = cluster
        self.restart()

    def restart(self) -> None:
        """It is started just now, and knows nothing of the time before."""
        self.time = ClusterTime(self._cluster.shared, self._cluster._propose, self.clock)

    @property
    def clock(self) -> float:
        return self._cluster.now - self.lost

    def committed(self) -> None:
        """There is something to apply."""
        if not self._behind:
            self._behind, self._applies_at = True, self._cluster.now + self.lag

    def follow(self, *, leads: bool = False) -> None:
        """It applies what it has to by now; one that comes to lead, all that is committed."""
        if self._behind and (leads or self._applies_at <= self._cluster.now):
            self._behind = False
            self.time.applied(self.clock)


class Cluster:
    """One leader after the other, of three members, over one log. Time is what the test says it is."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.rng = rng or random.Random(0)
        self.hand = Hand(State.create(SimDisk(), "state", FIRST))
        self.now = 100.0
        self.term = 1
        self.refuse = False
        self.log: list[tuple[int, Command | None]] = []
        """Terms and commands that are not committed yet."""
        self.proposed: list[Command] = []
        self.promised: dict[int, float] = {}
        """Until when each lease was promised to live."""
        self.ended: dict[int, float] = {}
        """When each lease has ended."""
        self.revoked: set[int] = set()
        self.shared = turn_of(lambda: self.hand.state)
        self.members = [Member(self) for _ in range(3)]
        self.leader = self.members[0]
        self.lead()

    @property
    def time(self) -> ClusterTime:
        return self.leader.time

    def _propose(self, command: Command) -> int:
        if self.refuse:
            return 0
        self.proposed.append(command)
        self.log.append((self.term, command))
        return self.hand.state.applied_index + len(self.log)

    # -- the log ------------------------------------------------------------------------------------------------------

    def commit(self, count: int = 1 << 30) -> list[tuple[Answer, ...]]:
        """Apply this many entries, in one go."""
        state = self.hand.state
        batch, self.log = self.log[:count], self.log[count:]
        first = state.applied_index + 1
        before = set(state.leases)
        answers = state.apply(
            [
                Entry(first + n, term, EntryKind.NORMAL, b"" if command is None else encode(command))
                for n, (term, command) in enumerate(batch)
            ]
        )
        for lease in before - set(state.leases):
            if lease not in self.revoked:
                assert self.now >= self.promised.get(lease, 0.0), f"lease {lease} ended early, at {self.now}"
            self.ended.setdefault(lease, self.now)
        for member in self.members:
            member.committed()
            member.follow()
        for answered in answers:
            for answer in answered:
                if type(answer) is LeaseGranted:
                    self.lessor.granted(answer.id, self.leader.clock)
        self.lessor.applied()
        return answers

    def change_leader(self, committed: int, gap: float = 0.0, *, restarted: bool = False) -> None:
        """The leader is deposed, and the next member leads; of what had been proposed, this many entries survive.

        Args:
            restarted: whether the next one was started just then, and knows nothing of the time before the gap.
        """
        self.commit(committed)
        self.lessor.stop()
        self.time.stop()
        self.log.clear()
        self.leader = self.members[(self.members.index(self.leader) + 1) % len(self.members)]
        if restarted:
            self.leader.restart()
        self.now += gap
        self.lead()

    def lead(self) -> None:
        self.term += 1
        self.hand.term = self.term
        self.log = [(self.term, None)]
        self.lessor = Lessor(self.shared, self._propose, self.time)
        self.commit()
        self.leader.follow(leads=True)
        self.leader.lag = 0.0
        self.time.lead(self.term, self.leader.clock)
        self.lessor.lead(self.term, self.leader.clock)
        self.work(0.001)  # so that it has a reading that differs from the last one

    # -- clients ------------------------------------------------------------------------------------------------------

    def grant(self, ttl: float, id: int = 0) -> int:
        asked_at = self.now
        self.log.append((self.term, self.hand.writes(LeaseGrant(id, ttl))))
        answer = self.commit()[-1][0]
        assert isinstance(answer, LeaseGranted)
        self.promised[answer.id] = asked_at + ttl
        self.ended.pop(answer.id, None)
        self.revoked.discard(answer.id)
        return answer.id

    def revoke(self, lease: int) -> None:
        self.revoked.add(lease)
        self.log.append((self.term, self.hand.writes(LeaseRevoke(lease))))
        self.commit()

    def keep(self, *leases: int, sent_at: float | None = None, arrival: float | None = None) -> list[tuple[Kept, ...]]:
        """A keep-alive whose arrival a quorum has just confirmed; what was answered so far."""
        sent = self.now if sent_at is None else sent_at
        answers: list[tuple[Kept, ...]] = []

        def done(kept: tuple[Kept, ...]) -> None:
            answers.append(kept)
            for lease, what in zip(leases, kept, strict=True):
                if what is Kept.ALIVE:
                    ttl = self.hand.state.leases[lease].ttl
                    self.promised[lease] = max(self.promised[lease], sent + ttl)
                elif what is Kept.GONE:
                    assert lease not in self.hand.state.leases

        self.lessor.keep_alive(leases, (sent if arrival is None else arrival) - self.leader.lost, done)
        return answers

    def work(self, seconds: float = 0.0, *, commit: bool = True) -> None:
        """The leader does its work as time passes, and (unless told otherwise) all it proposes is committed at once."""
        until = self.now + seconds
        while True:
            self.turn()
            if commit:
                self.commit()
            if self.now >= until:
                return
            self.now = min(until, self.now + HEARTBEAT)

    def turn(self) -> None:
        """The leader does its work once, and the others theirs."""
        for member in self.members:
            member.follow()
        self.shared.most = self.now
        self.time.work(self.leader.clock, HEARTBEAT)
        self.lessor.work(self.leader.clock, HEARTBEAT)

    def remaining(self, lease: int) -> float:
        ((_, _, left),) = self.lessor.status([lease], self.leader.clock)
        return left

    def alive(self, lease: int) -> bool:
        return lease in self.hand.state.leases

    def take(self, kind: type) -> list[Any]:
        """What was proposed of a kind since this was last asked for anything."""
        found = [command for command in self.proposed if isinstance(command, kind)]
        self.proposed.clear()
        return found


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- one thing at a time ---------------------------------------------------------------------------------------------


def test_a_lease_ends_with_its_ttl_and_takes_its_keys_along_in_one_revision(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    for key in (b"a", b"b", b"c"):
        cluster.hand.do(Put(key, b"v", lease))
    revision = cluster.hand.state.revision
    cluster.work(4.9)
    assert cluster.alive(lease)
    cluster.work(0.3)
    assert not cluster.alive(lease)
    assert cluster.hand.state.revision == revision + 1


def test_a_keep_alive_counts_from_its_arrival(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    cluster.work(2.0)
    assert cluster.keep(lease, arrival=cluster.now - 1.0) == [(Kept.ALIVE,)]
    assert cluster.remaining(lease) == pytest.approx(4.0)


def test_those_that_end_first_are_found_among_many(cluster: Cluster) -> None:
    leases = [cluster.grant(float(ttl)) for ttl in (50, 20, 40, 10, 30)]
    cluster.keep(leases[3])
    find = cluster.lessor.first_to_end(3, cluster.leader.clock)
    assert [(lease, ttl) for lease, ttl, _ in find()] == [(leases[3], 10.0), (leases[1], 20.0), (leases[4], 30.0)]
    cluster.work(5.0)
    cluster.keep(leases[3])
    assert [each[0] for each in cluster.lessor.first_to_end(2, cluster.leader.clock)()] == [leases[3], leases[1]]
    assert find()[0][2] == pytest.approx(10.0), "as it was when the loop was asked"
    cluster.hand.do(LeaseRevoke(leases[1]))  # the lessor learns of it later
    assert [each[0] for each in cluster.lessor.first_to_end(2, cluster.leader.clock)()] == [leases[3], leases[4]]


def test_an_older_keep_alive_never_shortens(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    cluster.work(2.0)
    cluster.keep(lease)
    cluster.keep(lease, arrival=cluster.now - 1.5)
    assert cluster.remaining(lease) == pytest.approx(5.0)


@pytest.mark.parametrize("exists", [True, False])
def test_a_lease_that_ended_is_gone(cluster: Cluster, exists: bool) -> None:
    lease = cluster.grant(5.0)
    if exists:
        cluster.revoke(lease)
    assert cluster.keep(lease if exists else 999) == [(Kept.GONE,)]


def test_while_its_expiry_is_in_the_log_nobody_can_tell(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    cluster.work(4.0)
    cluster.commit()
    cluster.work(1.05, commit=False)
    assert isinstance(cluster.proposed[-1], ExpireLeases)
    answers = cluster.keep(lease)
    assert answers in ([], [(Kept.ASK_AGAIN,)]), "no promise while the log may end it"
    cluster.commit()
    assert cluster.keep(lease) == [(Kept.GONE,)]


def test_when_half_has_passed_the_end_is_written_down_once(cluster: Cluster) -> None:
    lease = cluster.grant(10.0)
    cluster.work(4.9)
    assert cluster.take(CheckpointLeases) == []
    cluster.work(5.0)
    written = [each.seconds for command in cluster.take(CheckpointLeases) for each in command.leases]
    assert written == pytest.approx([cluster.time.reading(cluster.now) + 0.1], abs=0.1)
    assert cluster.hand.state.leases[lease].until == written[0]


def test_a_lease_that_is_kept_alive_is_never_written_down(cluster: Cluster) -> None:
    lease = cluster.grant(6.0)
    for _ in range(10):
        cluster.work(2.0)
        assert cluster.keep(lease) == [(Kept.ALIVE,)]
    assert cluster.take(CheckpointLeases) == []


def test_a_renewal_of_a_lease_that_was_written_down_replicates_the_reset_first(cluster: Cluster) -> None:
    lease = cluster.grant(10.0)
    cluster.work(6.0)
    cluster.take(RenewLeases)
    answers = cluster.keep(lease)
    assert answers == [], "the promise waits for the log"
    assert [command.leases for command in cluster.take(RenewLeases)] == [(lease,)]
    cluster.commit()
    assert answers == [(Kept.ALIVE,)]
    cluster.change_leader(0)
    assert cluster.remaining(lease) == pytest.approx(10.0, abs=0.01)


def test_a_renewal_while_a_checkpoint_is_on_its_way_replicates_the_reset_too(cluster: Cluster) -> None:
    lease = cluster.grant(10.0)
    cluster.work(4.95)
    cluster.take(CheckpointLeases)
    for _ in range(20):
        cluster.work(HEARTBEAT, commit=False)
        if cluster.take(CheckpointLeases):
            break
        cluster.commit()  # a reading of its own comes first
    else:
        pytest.fail("no checkpoint")
    answers = cluster.keep(lease)
    assert answers == []
    upto = 1 + next(at for at, (_, what) in enumerate(cluster.log) if isinstance(what, CheckpointLeases))
    cluster.change_leader(upto)  # the checkpoint survives, the reset does not
    assert answers == [(Kept.ASK_AGAIN,)]
    assert cluster.remaining(lease) == pytest.approx(5.0, abs=0.2)


def test_no_checkpoint_undoes_a_reset_that_is_on_its_way(cluster: Cluster) -> None:
    lease = cluster.grant(10.0)
    cluster.work(6.0)
    answers = cluster.keep(lease)
    cluster.work(4.5, commit=False)
    cluster.commit()
    cluster.work()
    assert answers == [(Kept.ALIVE,)]
    assert cluster.alive(lease), "it was kept alive in time"
    assert cluster.hand.state.leases[lease].until is None


def test_a_new_leader_counts_from_what_was_written_down(cluster: Cluster) -> None:
    lease = cluster.grant(10.0)
    cluster.work(7.1)
    cluster.change_leader(0)
    assert cluster.remaining(lease) == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("lost", [0.0, 0.9, 1.5, 3.0], ids=lambda lost: f"{lost} s lost")
@pytest.mark.parametrize("lag", [0.5, 4.0], ids=lambda lag: f"{lag} s behind")
def test_a_next_leader_whose_reading_is_ahead_ends_nothing_early(cluster: Cluster, lag: float, lost: float) -> None:
    """The old leader was busy, and applied the last reading of the cluster's clock later than others; and its clock
    loses time after the reading by which it is about to write a lease's end down."""
    behind, ahead, _ = cluster.members
    behind.lag = lag
    gone = cluster.grant(4.0)
    cluster.work(2.0)  # a reading stands in the log
    cluster.revoke(gone)
    cluster.work(lag)
    behind.lag = 0.0
    lease = cluster.grant(10.0)
    cluster.work(4.5)
    assert ahead.time.reading(ahead.clock) > behind.time.reading(behind.clock) + 0.3
    cluster.take(PassTime)
    while not cluster.take(PassTime):
        assert not cluster.take(CheckpointLeases)
        cluster.now += HEARTBEAT
        cluster.commit()
        cluster.turn()
    cluster.commit()
    cluster.now += lost
    cluster.leader.lost += lost
    while cluster.hand.state.leases[lease].until is None:
        assert cluster.remaining(lease) > 4.0, "its end is not written down"
        cluster.work(HEARTBEAT)
    cluster.change_leader(0)
    assert cluster.remaining(lease) >= cluster.promised[lease] - cluster.now
    cluster.work(cluster.remaining(lease) + 0.5)  # it is checked at its end that it does not come before its time
    assert not cluster.alive(lease)


@pytest.mark.parametrize("lag", [0.5, 3.0])
def test_silence_begins_for_one_who_was_ahead_when_it_began(cluster: Cluster, lag: float) -> None:
    """A leader applies the last reading when it comes to lead, and lets all silence begin in the same moment."""
    _, behind, ahead = cluster.members
    behind.lag = 100.0
    cluster.grant(2.0)
    lease = cluster.grant(10.0)
    cluster.work(1.2)  # a reading stands in the log
    for _ in range(5):
        cluster.work(lag / 5)
        assert cluster.keep(lease) == [(Kept.ALIVE,)]
    cluster.change_leader(0)
    cluster.work(0.1)
    cluster.change_leader(0)
    assert cluster.leader is ahead
    assert cluster.remaining(lease) >= cluster.promised[lease] - cluster.now


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("life", [0.1, 0.3, 1.0, 3.0, 9.0, 14.0])
def test_leaders_that_change_again_and_again_cannot_keep_a_dead_lease_alive(
    cluster: Cluster, life: float, restarted: bool
) -> None:
    """However short they live, and even if none of them knows how long those before it did."""
    gap = 0.5
    lease = cluster.grant(10.0)
    cluster.work(1.0)
    cluster.keep(lease)
    silent_since = cluster.now
    while cluster.alive(lease):
        cluster.work(life)
        cluster.change_leader(0, gap, restarted=restarted)
        lost = (life + gap) / gap if restarted and life < 1.0 else 2.0 if restarted else 1.0
        most = (1.5 * 10.0 + 2 * (gap + life)) * lost + 1.0
        assert cluster.now - silent_since < most, f"{cluster.remaining(lease)} left after {most:.1f} s of silence"


def test_a_lease_that_is_kept_alive_lives_under_leaders_of_a_moment(cluster: Cluster) -> None:
    lease = cluster.grant(3.0)
    for _ in range(60):
        cluster.work(0.2)
        answers = cluster.keep(lease)
        cluster.commit()
        assert answers == [(Kept.ALIVE,)]
        cluster.work(0.2)
        cluster.change_leader(0, gap=0.5)
    assert cluster.alive(lease)


def test_a_proposal_that_is_not_taken_is_made_again(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    cluster.refuse = True
    cluster.work(7.0)
    assert cluster.alive(lease)
    assert cluster.keep(lease) == [(Kept.ASK_AGAIN,)] or cluster.remaining(lease) > 0
    cluster.refuse = False
    cluster.work(7.0)
    assert not cluster.alive(lease)


def test_an_id_that_is_granted_anew_is_counted_anew(cluster: Cluster) -> None:
    cluster.grant(5.0, id=77)
    cluster.work(4.0)
    cluster.revoke(77)
    cluster.grant(5.0, id=77)
    cluster.work(2.0)
    assert cluster.alive(77)
    assert cluster.remaining(77) == pytest.approx(3.0, abs=0.2)


def test_who_does_not_lead_promises_nothing(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    cluster.lessor.stop()
    assert cluster.keep(lease) == [(Kept.ASK_AGAIN,)]


def test_many_leases_end_in_slices(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.member.lessor.MAX_LEASES_AT_ONCE", 3)
    leases = [cluster.grant(2.0) for _ in range(10)]
    cluster.work(3.0)
    assert not any(map(cluster.alive, leases))
    assert max(len(command.leases) for command in cluster.take(ExpireLeases)) == 3


def books(lessor: Lessor) -> dict[str, int]:
    """How much the lessor's tables hold, those of its countdowns too."""
    found = {}
    for owner in (lessor, lessor._ends, lessor._checkpoints):
        for name, table in vars(owner).items():
            if isinstance(table, (dict, list, set, deque)):
                found[f"{type(owner).__name__}.{name}"] = len(table)
    return found


@pytest.mark.parametrize("how", ["revoked", "revoked in a transaction", "kept alive and revoked", "expired"])
def test_the_books_hold_what_lives_and_nothing_else(cluster: Cluster, how: str) -> None:
    """Locks take and give back leases of a day thousands of times an hour."""
    for _ in range(400):
        lease = cluster.grant(1.0 if how == "expired" else 86_400.0)
        if how == "kept alive and revoked":
            assert cluster.keep(lease) == [(Kept.ALIVE,)]
        if how == "revoked in a transaction":
            cluster.log.append((cluster.term, cluster.hand.writes(Txn((), (LeaseRevoke(lease),)))))
            cluster.revoked.add(lease)
            cluster.commit()
        elif how != "expired":
            cluster.revoke(lease)
        cluster.work(0.01)
    cluster.work(2.0)
    assert not cluster.hand.state.leases
    assert max(books(cluster.lessor).values()) <= 2 * DeadlineQueue.SPARE, books(cluster.lessor)


def test_a_transaction_that_fails_ends_no_lease_in_the_books(cluster: Cluster) -> None:
    lease = cluster.grant(5.0)
    missing = Put(b"k", b"v", lease=999)
    cluster.log.append((cluster.term, cluster.hand.writes(Txn((), (LeaseRevoke(lease), missing)))))
    assert isinstance(cluster.commit()[-1][0], Failed)
    cluster.work(4.9)
    assert cluster.alive(lease)
    cluster.work(0.3)
    assert not cluster.alive(lease)


# --- everything at once ----------------------------------------------------------------------------------------------


class Client:
    """A client that keeps a lease alive until it dies."""

    def __init__(self, lease: int, ttl: float, dies_at: float) -> None:
        self.lease = lease
        self.ttl = ttl
        self.dies_at = dies_at
        self.next = 0.0


Delivery = tuple[float, Callable[[], None]]


@pytest.mark.parametrize("seed", range(150))
def test_never_early_and_never_forever(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(rng)
    clients: list[Client] = []
    deliveries: list[Delivery] = []
    stormy = rng.choice((0.0, 0.02, 0.05))
    slow = rng.choice((0.0, 0.3, 0.7))
    lagging, losing = rng.choice((0.0, 0.5, 3.0)), rng.choice((0.0, 0.02))
    for _ in range(400):
        cluster.now += rng.uniform(0.0, 0.2)
        if len(clients) < 12 and rng.random() < 0.2:
            ttl = rng.choice((1.0, 2.0, 5.0, 10.0))
            wish = rng.choice((0, 0, 1, 2))
            cluster.commit()
            lease = cluster.grant(ttl, 0 if cluster.alive(wish) else wish)
            clients.append(Client(lease, ttl, cluster.now + rng.uniform(0.0, 40.0)))
        for client in clients:
            if client.next <= cluster.now < client.dies_at:
                client.next = cluster.now + client.ttl * rng.uniform(0.2, 0.4)
                _send(cluster, client, deliveries, rng)
        for delivery in [each for each in deliveries if each[0] <= cluster.now]:
            deliveries.remove(delivery)
            delivery[1]()
        cluster.refuse = rng.random() < 0.05
        if rng.random() < losing:
            rng.choice(cluster.members).lost += rng.uniform(0.0, 2.0)
        for member in cluster.members:
            member.lag = 0.0 if member is cluster.leader else rng.uniform(0.0, lagging)
        cluster.turn()
        if rng.random() >= slow:
            cluster.commit(rng.randrange(1, 5))
        if rng.random() < stormy:
            survivors, restarted = rng.randrange(len(cluster.log) + 1), rng.random() < 0.3
            cluster.change_leader(survivors, rng.choice((0.0, 0.5, 3.0)), restarted=restarted)
        if clients and rng.random() < 0.01:
            lease = rng.choice(clients).lease
            if cluster.alive(lease):
                cluster.revoke(lease)
    # Silence. What was promised is kept, and then everything ends, at most a second late.
    cluster.refuse = False
    cluster.commit()
    silent_since = cluster.now
    cluster.work(11.0)
    assert not cluster.hand.state.leases
    for lease, at in cluster.ended.items():
        if at > silent_since and lease not in cluster.revoked:
            assert at <= max(silent_since, cluster.promised[lease]) + 10.0 + 1.0


def _send(cluster: Cluster, client: Client, deliveries: list[Delivery], rng: random.Random) -> None:
    """A keep-alive on its way: it arrives, and is confirmed by a quorum some time after that; or twice, or never."""
    sent_at = cluster.now
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2))):
        arrival = sent_at + rng.expovariate(10.0)
        confirmed = arrival + rng.expovariate(10.0)

        def arrive(arrival: float = arrival) -> None:
            cluster.keep(client.lease, sent_at=sent_at, arrival=min(arrival, cluster.now))

        deliveries.append((confirmed, arrive))


@pytest.mark.parametrize("ttl", [1.0, 5.0, 30.0])
def test_on_a_quiet_cluster_a_lease_ends_within_a_second_of_its_promise(ttl: float) -> None:
    cluster = Cluster()
    leases: Sequence[int] = [cluster.grant(ttl) for _ in range(50)]
    for _ in range(4):
        cluster.work(ttl / 3)
        assert cluster.keep(*leases) == [(Kept.ALIVE,) * 50]
    cluster.work(ttl + 1.0)
    for lease in leases:
        assert cluster.promised[lease] <= cluster.ended[lease] <= cluster.promised[lease] + 1.0


def test_a_deposed_leader_promises_nothing_that_waited_for_the_log(cluster: Cluster) -> None:
    """Its answer to a frame of several leases is for none of them that they live: none of it stands in the log."""
    old, new = cluster.grant(10.0), cluster.grant(60.0)
    cluster.work(6.0)  # the end of the first stands in the log
    answers: list[tuple[Kept, ...]] = []
    cluster.lessor.keep_alive((new, old), cluster.now, answers.append)
    assert answers == []
    cluster.change_leader(0)
    assert answers == [(Kept.ASK_AGAIN, Kept.ASK_AGAIN)]


def test_a_keep_alive_of_a_lease_that_another_session_owns_waits_for_the_log(cluster: Cluster) -> None:
    """From there on, the death of the owner does not end it. The owner's own keep-alives, and all later ones, do not
    go through the log."""
    owner = cluster.hand.session
    answer = cluster.hand.do(LeaseGrant(5, 30.0, owned=True))
    assert isinstance(answer, LeaseGranted)
    cluster.lessor.granted(5, cluster.now)
    answers: list[tuple[Kept, ...]] = []
    cluster.proposed.clear()
    cluster.lessor.keep_alive((5,), cluster.now, answers.append, owner)
    assert answers == [(Kept.ALIVE,)]
    assert cluster.proposed == []
    cluster.lessor.keep_alive((5,), cluster.now, answers.append, owner + 1)
    cluster.lessor.keep_alive((5,), cluster.now, answers.append)
    assert answers == [(Kept.ALIVE,)]
    assert [type(command) for command in cluster.proposed] == [RenewLeases, RenewLeases]
    cluster.commit()
    assert answers == [(Kept.ALIVE,)] * 3
    assert cluster.hand.state.leases[5].owner == 0
    cluster.lessor.keep_alive((5,), cluster.now, answers.append, owner + 1)
    assert answers == [(Kept.ALIVE,)] * 4
    assert len(cluster.proposed) == 2


def test_a_keep_alive_that_a_death_has_overtaken_is_told_so(cluster: Cluster) -> None:
    cluster.hand.do(LeaseGrant(5, 30.0, owned=True))
    cluster.lessor.granted(5, cluster.now)
    cluster.hand.apply(EndDeadSessions((cluster.hand.session,)))
    answers: list[tuple[Kept, ...]] = []
    cluster.lessor.keep_alive((5,), cluster.now, answers.append, cluster.hand.session + 1)
    assert answers == [(Kept.GONE,)]
