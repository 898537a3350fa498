"""Wrong versions of what counts time: leases for reads, the cluster's clock, and silence over changes of the leader."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

from raykeeper.actors.member.clock import SteadyClock
from raykeeper.actors.member.deadlines import ClusterTime
from raykeeper.actors.member.lessor import Lessor
from raykeeper.actors.member.replica import Replica
from raykeeper.raft import Node
from raykeeper.raft.leader_lease import Promise, PromiseRounds
from raykeeper.store.state.cluster_clock import ClusterClock
from raykeeper.store.state.lease_table import LeaseRecord
from simulation.mutants.registry import mutant, patched, together


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
