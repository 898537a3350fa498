"""A whole cluster with its clients in one process and one thread, in imagined time, all of it decided by one seed.

The world is a queue of events by time. What is drawn at random comes from generators that are seeded by the seed and a
name, so that a run is the same wherever and whenever it is run again: no wall clock, no order of hashes.

    world = World(seed=7)
    report = world.run()        # raises nothing: report.failure says what broke
"""

from __future__ import annotations

import heapq
import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raykeeper.errors import DataCorrupted
from raykeeper.limits import Settings
from raykeeper.raft.messages import Message
from raykeeper.schema.operations import KeyRange, Range
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.state.mvcc import REVISION
from simulation.ages import Ages
from simulation.checker import (
    NEVER,
    Call,
    Observation,
    Seen,
    Violation,
    check_linearizable,
    check_revisions,
    counter,
    register,
)
from simulation.chronicle import Chronicle
from simulation.client import Client
from simulation.coordination import STRAY, Book, check_content
from simulation.coverage import Coverage
from simulation.deaths import Deaths
from simulation.dependency_cycles import check_transactions
from simulation.final_reads import read_all
from simulation.focused_profiles import draw
from simulation.history import COUNTERS, KEYS, History
from simulation.invariants import Observer
from simulation.member import DRIFT, FOLDER, Member
from simulation.nemesis import Nemesis
from simulation.network import Network
from simulation.profiles import Profile
from simulation.proxied_leases import populate
from simulation.proxy import Proxy, imagined
from simulation.scripts import replaced
from simulation.users import UserTender
from simulation.workload import Worker

SEGMENT_BYTES = 4 * 1024
"""Of the Raft logs: small, so that a run goes through many segments."""
CONVERGE_WITHIN = 20.0
"""Simulated seconds in which a healed cluster must have settled."""
CHECK_BUDGET = 400_000
"""States that the search for one object's order may look at."""


@dataclass
class Report:
    """What became of one run."""

    seed: int
    profile: str
    failure: str = ""
    """Empty if nothing broke."""
    weak: str = ""
    """Why the run does not count, though nothing broke: its faults did not bite, or nothing got done."""
    seconds: float = 0.0
    turns: int = 0
    operations: int = 0
    succeeded: int = 0
    unknown: int = 0
    leader_changes: int = 0
    snapshots: int = 0
    rebuilds: int = 0
    trims: int = 0
    states: int = 0
    """That the linearizability checker looked at."""
    digest: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    lost_frames: int = 0
    doubled_frames: int = 0
    watches: int = 0
    watched_events: int = 0
    leases: int = 0
    leases_expired: int = 0
    hand_overs: int = 0
    """Times that a lock or an election was won."""
    lease_turns: int = 0
    """Turns at whose end a leader held its lease for reads."""
    coverage: str = ""
    """Which kinds occurred together: ``Coverage.pairs``, in hexadecimal."""

    @property
    def counted(self) -> bool:
        return not self.failure and not self.weak


class World:
    """One run.

    Args:
        seed: decides everything.
        profile: the name of a profile, or one that is ready.
        verbose: gets every line of the trace.
    """

    def __init__(
        self, seed: int, profile: str | Profile = "mixed", *, verbose: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.now = 0.0
        self._verbose = verbose
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._events = 0
        self.turns = 0
        self.closing = False
        self.healed_at = 0.0
        self.profile = draw(self.random("profile"), profile) if isinstance(profile, str) else profile
        self.timings = self.profile.timings
        self.limits = self.profile.limits
        self.cluster = self.random("cluster").getrandbits(62)
        self.founders = tuple(range(1, self.profile.members + 1))
        self.network = Network(self.random("network"), self.after)
        self.observer = Observer(self)
        self.coverage = Coverage()
        self.history = History()
        self.chronicle = Chronicle(lambda: self.now)
        self.book = Book(self)
        self.ages = Ages(self)
        self.members: dict[int, Member] = {}
        self.nemesis = Nemesis(self, self.random("nemesis"))
        self.users = UserTender(self)
        self.deaths = Deaths(self)
        self.clients: list[Client] = []
        self.states = 0
        self.rebuilds = 0
        """States that were condemned or damaged, and so had to be rebuilt."""
        self._broken: Exception | None = None

    # --- time and chance ---------------------------------------------------------------------------------------------

    def random(self, *name: object) -> random.Random:
        """A generator of its own for everything that has a name."""
        return random.Random(f"{self.seed} {name}")

    def pace(self, member: int) -> float:
        """The rate of a member's clock while nothing is wrong with it: within the margin that all promises of time
        leave, or, if nobody lives by such a promise, as far apart from another as lease reads allow."""
        rng = self.random("pace", member)
        if self.profile.lease_reads and not self.profile.honest_clocks:
            slow = self.random("pace").choice((0, *self.founders))
            return 1.0 + self.profile.clock_drift * (rng.random() if not slow else float(member != slow))
        return 1.0 + rng.uniform(-DRIFT, DRIFT)

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call something at a time."""
        self._events += 1
        heapq.heappush(self._queue, (when, self._events, what, arguments))

    def after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call something this many seconds from now."""
        self.at(self.now + seconds, what, *arguments)

    def trace(self, line: str) -> None:
        """A line for those who read the trace."""
        if self._verbose is not None:
            self._verbose(f"{self.now:9.4f} {line}")

    def broke(self, error: Exception) -> None:
        """Something was found out in a place from which it cannot be raised."""
        self._broken = self._broken or error

    def _run_until(self, end: float, ready: Callable[[], bool] | None = None) -> bool:
        """Let time pass up to ``end``, or until ``ready`` (looked at every now and then)."""
        next_look = self.now
        between = 0.7 * self.profile.scale
        next_comparison = self.now + between
        while self._queue and self._queue[0][0] <= end:
            when, _, what, arguments = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            what(*arguments)
            if self._broken is not None:
                raise self._broken
            if self.now >= next_comparison:
                next_comparison = self.now + between
                self.observer.compare_content()
                self.ages.look()
            if ready is not None and self.now >= next_look:
                next_look = self.now + 0.05
                if ready():
                    return True
        self.now = end
        return False

    # --- who takes part ----------------------------------------------------------------------------------------------

    def member_ids(self) -> list[int]:
        """All members that clients may ask. Once all is well, those that were removed are no longer found."""
        leader = self.leader() if self.closing else None
        if leader is None or leader.process is None:
            return list(self.members)
        return sorted(leader.process.replica.node.configuration.members)

    def leader(self) -> Member | None:
        """Who leads the newest term, if anybody who lives does."""
        leaders = [
            (member.process.replica.node.term, member.id)
            for member in self.members.values()
            if member.process is not None and member.process.replica.is_leader
        ]
        return self.members[max(leaders)[1]] if leaders else None

    @property
    def leader_changes(self) -> int:
        """How often another leader, or the same in another term, was elected."""
        return max(0, len(self.observer.leaders) - 1)

    def deliver(self, receiver: int, messages: Sequence[Message]) -> None:
        """The network brings messages to a member."""
        member = self.members.get(receiver)
        if member is not None:
            member.receive(messages)

    def open_folder(self, member: Member) -> DataDir:
        """A member opens its data."""
        return DataDir.open(
            member.disk, FOLDER, cache_bytes=self.limits.log_cache_bytes, segment_bytes=SEGMENT_BYTES, rebuild=True
        )

    def _new_member(self, number: int, founders: Sequence[int]) -> Member:
        """A machine with a member's first data."""
        member = Member(self, number, self.random("member", number))
        identity = Identity(
            cluster_name="simulated",
            cluster=self.cluster,
            member=number,
            name=f"m{number}",
            members=tuple(FirstMember(founder, f"m{founder}") for founder in founders),
            settings=Settings(
                limits=self.limits,
                timings=self.timings,
                compaction=self.profile.compaction,
                lease_reads=self.profile.lease_reads,
                clock_drift=self.profile.clock_drift,
            ),
        )
        DataDir.create(
            member.disk,
            FOLDER,
            identity,
            cache_bytes=self.limits.log_cache_bytes,
            segment_bytes=SEGMENT_BYTES,
        ).close()
        self.members[number] = member
        return member

    def add_member(self) -> Member:
        """A machine for a new member. It begins as everybody once did, or knows nothing and needs an image."""
        number = max(self.members) + 1
        knows = self.random("joiner", number).random() < 0.7
        member = self._new_member(number, self.founders if knows else ())
        member.start()
        return member

    def burnt_out(self, member: Member) -> None:
        """A disk's fuse ended a process."""
        self.nemesis.burnt_out(member)

    def succeeded(self, began: float) -> None:
        """An operation that began then has succeeded."""
        self.nemesis.faults.operation(began)

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Found the cluster, torment it, heal it, and judge."""
        failure = ""
        try:
            with self.observer.watching(), replaced(self), imagined():
                self._found()
                self._run_until(self.profile.seconds)
                self._heal()
                self._settle()
                if self.profile.lose_all_at_the_end:
                    self.trace("all members lose their power, once all is well")
                    for member in self.members.values():
                        member.lose_power()
                    for member in self.members.values():
                        self.after(0.1, member.start)
                    self._settle()
                self._read_everything()
                self._settle()  # a frame that was held up may have brought one more write, which not all have applied
            self._judge()
        except Violation as violation:
            failure = str(violation) or "a violation"
        except Exception:
            failure = f"the simulator failed:\n{traceback.format_exc()}"
        with replaced(self):
            for client in self.clients:
                client.gone()
        return self._report(failure)

    def _found(self) -> None:
        for number in self.founders:
            self._new_member(number, self.founders)
        for member in self.members.values():
            self.after(member.rng.uniform(0.0, 0.1), member.start)
        for number in range(1, self.profile.clients + 1):
            client = Client(self, number)
            self.clients.append(client)
            client.workers = [Worker(client, n) for n in range(self.profile.workers)]
            client.workers += [Worker(client, n, Proxy(client)) for n in range(self.profile.proxied)]
            populate(client)
        self.nemesis.start()
        self.users.start()

    def _heal(self) -> None:
        self.trace("everything is healed")
        self.nemesis.stop()
        self.network.heal()
        self.closing = True
        self.healed_at = self.now
        for client in self.clients:
            client.resume()
        for member in self.members.values():
            member.disk.fuse = None
            member.disk.sync_fails = False
            member.disk.room = None
            member.disk.refuse_reads(0.0)
            member.slow_disk = 0.0
            member.clock.set(self.now, rate=member.pace)
            if member.paused or member.hanging:
                member.resume()
            member.clock_changed()
            if member.process is None:
                member.start()
            if member.process is not None:
                # What has rotted is found at the latest when somebody reads everything.
                with suppress(DataCorrupted):
                    member.process.replica.state.content_hash()
                member.schedule_turn()

    def _settled(self) -> bool:
        if not all(worker.idle for client in self.clients for worker in client.workers):
            return False
        if not all(script.background for client in self.clients for script in client.scripts):
            return False
        leader = self.leader()
        if leader is None or leader.process is None:
            return False
        node = leader.process.replica.node
        if node.configuration.joint:
            return False
        last = leader.process.folder.log.last_index()
        for number in node.configuration.members:
            process = self.members[number].process
            if process is None or process.replica.state.applied_index != last:
                return False
            if process.replica.state.damage is not None:  # found, but this process has not ended yet
                return False
        return self.book.settled and self.users.settled

    def _settle(self) -> None:
        patience = CONVERGE_WITHIN * self.profile.scale
        if not self._run_until(self.now + patience, self._settled):
            raise Violation(f"not settled {patience} s after everything was healed:\n" + self._describe())
        self.observer.compare_content()

    def _describe(self) -> str:
        lines = []
        for member in self.members.values():
            if member.process is None:
                lines.append(f"  {member!r} is down")
                continue
            node, log = member.process.replica.node, member.process.folder.log
            lines.append(
                f"  {member!r} {node.role} term {node.term} leader {node.leader} commit {node.commit_index} "
                f"applied {node.applied_index} log {log.first_index()}..{log.last_index()} {node.configuration}"
            )
        for client in self.clients:
            waiting = [worker.name for worker in client.workers if not worker.idle]
            if waiting:
                lines.append(f"  {client.name}: {waiting} wait")
            busy = sum(not script.background for script in client.scripts)
            if busy:
                lines.append(f"  {client.name}: {busy} scripts go on")
        lines += [f"  {seen} is not at {self.chronicle.revision}" for seen in self.book.live]
        if self.chronicle.leases:
            lines.append(f"  leases live: {[hex(lease) for lease in self.chronicle.leases]}")
        return "\n".join(lines)

    def _read_everything(self) -> None:
        """Final reads, by a client of its own."""
        before = self.history.succeeded
        wanted = read_all(Client(self, len(self.clients) + 1))
        patience = CONVERGE_WITHIN * self.profile.scale
        if not self._run_until(self.now + patience, lambda: self.history.succeeded == before + wanted):
            raise Violation("the final reads were not answered:\n" + self._describe())

    # --- the judgement -----------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        history = self.history
        self.book.judge(max(self.healed_at + STRAY, self.observer.elected_at))
        leader = self.leader()
        if leader is not None and leader.process is not None:
            content = leader.process.replica.state.range(
                Range(KeyRange(b"\0", b"")), page_items=1 << 20, page_bytes=1 << 30
            )
            check_content(self.chronicle, content.items)
        self._compare_end_states()
        check_revisions(history.observations, history.open_deletes)
        for seen in history.observations:
            for item in seen.reads:
                if item.value is not None and item.value in history.without_effect:
                    raise Violation(f"{history.without_effect[item.value]} had an effect after all: {seen}")
        self.states += check_transactions(history.transactions)
        for key in sorted(history.calls):
            calls: list[Call] = history.calls[key]
            counts = key in COUNTERS
            try:
                self.states += check_linearizable(
                    calls, counter if counts else register, 0 if counts else None, budget=CHECK_BUDGET
                )
            except Violation as violation:
                raise type(violation)(f"key {key!r}: {violation}") from None
        for key, before in history.increments.items():
            known = sorted(count for count in before if count is not None)
            calls = [call for call in history.calls.get(key, []) if call.client == "final" and call.returned != NEVER]
            final = [call.result for call in calls]
            if len(set(known)) != len(known) or any(not len(known) <= count <= len(before) for count in final):
                raise Violation(f"{len(before)} increments of {key!r}, {len(known)} known: {known} make {final}")
            unanswered = len(before) - len(known) - history.given_up[key]
            if self.timings.request_ttl > 60 and unanswered > 0:
                raise Violation(f"{unanswered} increments of {key!r} were never answered")

    def _compare_end_states(self) -> None:
        """What each member holds in the end is one more thing that the history must explain: the newest write to each
        key that is known, unless one of unknown outcome came after it."""
        history = self.history
        for member in [self.members[number] for number in self.member_ids()]:
            if member.process is None:
                continue
            state = member.process.replica.state
            content = state.range(Range(KeyRange(b"\0", b"")), page_items=1 << 20, page_bytes=1 << 30)
            there = {item.key: item for item in content.items}
            while state.compact_slice(1000):
                pass  # what it has not removed by now
            left = next(state._engine.iterate("history", b"", REVISION.pack(state.compact_revision)), None)
            if left is not None and state.compact_revision:
                raise Violation(f"{member!r} has compacted up to {state.compact_revision}, and keeps {left} forever")
            point = history.point()
            seen = Observation(repr(member), "the end state", point, point, content.revision)
            for key in KEYS:
                item = there.get(key)
                if item is None:
                    seen.reads.append(Seen(key, None))
                    continue
                if item.value not in history.offered:
                    raise Violation(f"{member!r} holds {item}, which nobody wrote")
                seen.reads.append(Seen(key, item.value, item.mod_revision, item.version, item.create_revision))
            history.observations.append(seen)

    def _report(self, failure: str) -> Report:
        history, observer, faults = self.history, self.observer, self.nemesis.faults
        leader_changes = self.leader_changes
        weak = ""
        if not failure:
            idle = [
                name
                for name, seconds in faults.seconds.items()
                if seconds >= 2.0 and not faults.succeeded[name] and name != "power loss of all"
            ]
            if leader_changes < self.profile.leader_changes:
                weak = f"only {leader_changes} leader changes"
            elif (answered := history.succeeded + history.denied) * 2 < history.started:
                weak = f"only {answered} of {history.started} operations were answered"
            elif idle:
                weak = f"no operation succeeded during {', '.join(idle)}"
        return Report(
            seed=self.seed,
            profile=self.profile.name,
            failure=failure,
            weak=weak,
            seconds=self.now,
            turns=self.turns,
            operations=history.started,
            succeeded=history.succeeded,
            unknown=history.unknown,
            leader_changes=leader_changes,
            snapshots=observer.snapshots,
            rebuilds=self.rebuilds,
            trims=observer.trims,
            states=self.states,
            digest=observer.digest,
            faults=dict(sorted(faults.times.items())),
            lost_frames=self.network.lost,
            doubled_frames=self.network.doubled,
            watches=len(self.book.watches),
            watched_events=self.book.watched_events,
            leases=len(self.book.leases),
            leases_expired=sum(ended.expired for ended in self.chronicle.ended.values()),
            hand_overs=self.book.hand_overs,
            lease_turns=observer.leases,
            coverage=f"{self.coverage.pairs():x}",
        )
