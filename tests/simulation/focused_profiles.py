"""Profiles that set the stage for one kind of trouble, and the list of all: each also runs without any mutant, and must
pass then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from raykeeper.limits import Compaction
from simulation.profiles import FAULTS, MIX, Profile, draw_limits, draw_small, draw_timings, mixed


def _focus(
    faults: dict[str, float], mix: dict[str, float] | None = None, limits: dict[str, int] | None = None, **more: object
) -> Callable[[random.Random], Profile]:
    def make(rng: random.Random) -> Profile:
        return Profile(
            faults=dict(faults),
            mix=MIX | (mix or {}),
            timings=draw_timings(rng, request_ttl=600.0),
            limits=draw_limits(rng, **(limits or {})),
            small=draw_small(rng),
            **more,  # type: ignore[arg-type]
        )

    return make


def _lease_reads(rng: random.Random) -> Profile:
    tenants = rng.choice((0, 0, 2))
    return Profile(
        faults={
            "isolate": 3,
            "split": 2,
            "one_way": 2,
            "pause": 2,
            "sleep": 5,
            "stall": 4,
            "forget": 3,
            "leap": 3,
            "crash": 2,
            "power": 2,
            "transfer": 3,
            "storm": 1,
            "configure": 4,
            "membership": 1,
        },
        mix=MIX | {"get": 40.0},
        fault_pause=0.5,
        think=0.12,
        seconds=16.0,
        workers=2 if tenants else 3,
        tenants=tenants,
        timings=draw_timings(rng, request_ttl=600.0, session_ttl=60.0),
        limits=draw_limits(rng),
        small=draw_small(rng),
        lease_reads=True,
        # With tenants the rates are closer than what leaders allow for, since clients allow for less.
        clock_drift=rng.choice((0.02, 0.1)),
        max_clock_step=rng.choice((0.9, 2.0)),
    )


def _lone_reads(rng: random.Random) -> Profile:
    """Leaders that are cut off from the other voters and not from their clients, which hardly ever write, and so go on
    to ask them; members that come and go, so that one of them is a learner, or no member any more."""
    return Profile(
        members=rng.choice((3, 5)),
        most_members=7,
        faults={
            "stale_leader": 6,
            "isolate": 2,
            "split": 4,
            "pause": 1,
            "crash": 1,
            "power": 1,
            "amnesia": 0.5,
            "transfer": 3,
            "slow_disk": 2,
            "storm": 3,
            "membership": 3,
        },
        mix=dict.fromkeys(MIX, 0.3) | {"get": 60.0, "put": 9.0, "swap": 3.0},
        fault_pause=0.5,
        faults_at_once=2,
        clients=4,
        workers=1,
        think=0.1,
        timings=draw_timings(rng, request_ttl=600.0),
        limits=draw_limits(rng),
        small=draw_small(rng),
        seconds=16.0,
    )


def _large_deletes(rng: random.Random) -> Profile:
    return Profile(
        faults={
            "crash": 3,
            "power": 4,
            "power_all": 1,
            "fuse": 6,
            "amnesia": 1,
            "storm": 2,
            "transfer": 2,
            "isolate": 2,
        },
        mix=MIX | {"fill": 20.0, "sweep": 20.0, "herd": 10.0, "stale_herd": 20.0},
        limits=draw_limits(rng, log_cut_entries=20, log_keep_entries=1, snapshot_chunk_bytes=4096),
        small=draw_small(rng)
        | {
            "DELETE_SLICE_KEYS": rng.choice((1, 2, 5)),
            "SCAN_SLICE": rng.choice((1, 3, 10)),
            "BATCH_SLICE_WRITES": rng.choice((3, 8)),
        },
        padding=(0, 1100),
        timings=draw_timings(rng, request_ttl=600.0),
        fault_pause=0.4,
        think=0.1,
        watchers=1,
        seconds=12.0,
        lose_all_at_the_end=True,
    )


PROFILES: dict[str, Callable[[random.Random], Profile]] = {
    "mixed": mixed,
    # Many leaders, many votes, little else.
    "elections": _focus(
        {"isolate": 3, "one_way": 2, "power": 3, "fuse": 2, "crash": 1, "transfer": 2}, fault_pause=0.4, seconds=12.0
    ),
    # Disks that forget, often, and logs that are cut often.
    "power": _focus(
        {"power": 4, "power_all": 2, "fuse": 4, "amnesia": 4, "storm": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1},
        lose_all_at_the_end=True,
        seconds=12.0,
    ),
    # Leaders that come and go with entries half replicated, in small appends.
    "figure 8": _focus(
        {"isolate": 3, "crash": 3, "one_way": 2, "flap": 3, "storm": 3, "bridge": 2, "transfer": 1},
        limits={"max_append_bytes": 1024, "max_append_messages_in_flight": 1},
        fault_pause=0.3,
        faults_at_once=3,
        seconds=12.0,
        think=0.1,
        padding=(0, 1100),
    ),
    # Leaders cut off from their followers but not from their clients.
    "partitions": _focus(
        {"stale_leader": 4, "isolate": 3, "split": 3, "bridge": 1, "pause": 1},
        mix={"get": 40.0},
        fault_pause=0.7,
        faults_at_once=1,
        think=0.12,
        seconds=12.0,
    ),
    # Answers that do not arrive, so that everything is asked twice.
    "retries": _focus(
        {"storm": 5, "clients_cut": 3, "crash": 2, "client_crash": 2, "transfer": 2}, mix={"add": 30.0}, seconds=12.0
    ),
    # Members that come, go, and take over in the midst of it.
    "membership": _focus(
        {"membership": 6, "transfer": 5, "slow_disk": 3, "pause": 2, "power": 1.5, "storm": 1},
        fault_pause=0.3,
        faults_at_once=3,
        seconds=15.0,
        most_members=8,
    ),
    # Followers that fall behind and are brought back by a snapshot.
    "snapshots": _focus(
        {"crash": 3, "isolate": 3, "fuse": 3, "power": 2, "storm": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1, "snapshot_chunk_bytes": 9000},
        fault_pause=0.8,
        think=0.12,
        seconds=12.0,
    ),
    # States that rot or are lost while their logs are intact, and syncs that fail.
    "rot": _focus(
        {"state_loss": 5, "rot": 3, "failing_sync": 1.5, "isolate": 1.5, "crash": 1, "power": 1, "storm": 1, "fuse": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1, "snapshot_chunk_bytes": 4096},
        fault_pause=0.6,
        think=0.12,
        lose_all_at_the_end=True,
        seconds=12.0,
    ),
    # Logs that rot, mostly in what was synced last: a member that has forgotten a promise must not serve again.
    "log rot": _focus(
        {"log_rot": 5, "crash": 2, "power": 3, "fuse": 2, "isolate": 2, "transfer": 1, "storm": 1},
        fault_pause=0.5,
        think=0.12,
        most_members=8,
        seconds=16.0,
        lose_all_at_the_end=True,
    ),
    # Disks that are full, in the midst of anything, and have room again.
    "full disks": _focus(
        {"full_disk": 6, "power": 2, "crash": 1, "state_loss": 1.5, "fuse": 1, "isolate": 2, "power_all": 0.5},
        limits={"log_cut_entries": 20, "log_keep_entries": 1, "snapshot_chunk_bytes": 4096},
        fault_pause=0.5,
        think=0.12,
        lose_all_at_the_end=True,
        seconds=12.0,
    ),
    # Disks that refuse reads, of members that start over logs of many segments and states that were cut short.
    "refused reads": _focus(
        {"refused_reads": 7, "crash": 2, "power": 2, "power_all": 0.5, "fuse": 1, "isolate": 2, "storm": 1},
        limits={"log_cut_entries": 60, "log_keep_entries": 5, "log_cache_bytes": 1024, "snapshot_chunk_bytes": 4096},
        fault_pause=0.5,
        think=0.12,
        lose_all_at_the_end=True,
        seconds=12.0,
    ),
    # Rot with few members, whose quorum may need one that has lost its state, and members that come and go.
    "rot and membership": _focus(
        {"state_loss": 5, "rot": 2, "membership": 4, "transfer": 3, "isolate": 1.5, "power": 1, "storm": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1, "snapshot_chunk_bytes": 4096},
        fault_pause=0.5,
        think=0.12,
        seconds=14.0,
    ),
    # Deletes that take many turns and are partly written ahead, on members that die and disks that forget meanwhile.
    "large deletes": _large_deletes,
    # Watches on members that die, fall behind, are cut off or replaced by a snapshot, under writes and compactions.
    "watches": _focus(
        {
            "crash": 3,
            "isolate": 2,
            "split": 1,
            "pause": 2,
            "power": 1,
            "storm": 3,
            "clients_cut": 3,
            "fuse": 1,
            "stop": 1,
        },
        mix={"put": 25.0, "pair": 8.0, "delete": 8.0, "compact": 3.0},
        limits={"log_cut_entries": 20, "log_keep_entries": 1},
        fault_pause=0.5,
        think=0.15,
        workers=2,
        watchers=4,
        seconds=14.0,
    ),
    # Alarms that stop puts and end again, contents hashed at any moment, history that the leaders forget by themselves.
    "care": _focus(
        {"alarm": 3, "hash": 6, "crash": 2, "isolate": 2, "power": 1.5, "storm": 2, "transfer": 1, "state_loss": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1},
        compaction=Compaction(mode="revisions", keep=20),
        fault_pause=0.3,
        faults_at_once=3,
        think=0.12,
        watchers=1,
        seconds=14.0,
    ),
    # Leaders that answer reads by their lease, and are cut off, stalled, put to sleep, restarted and replaced, under
    # clocks as far apart as is allowed, and timings that change.
    "lease reads": _lease_reads,
    # The same with machines that sleep for more than a minute.
    "minutes of sleep": _focus(
        {"sleep": 3, "isolate": 1},
        mix={"get": 60.0},
        fault_pause=3.0,
        faults_at_once=1,
        clients=2,
        workers=2,
        think=0.7,
        seconds=150.0,
        lease_reads=True,
    ),
    # A user whose right comes and goes.
    "users": _focus(dict(FAULTS), users=True),
    # Leases of processes that are cut off, die and sleep, while leaders come and go.
    "leases": _focus(
        {
            "storm": 3,
            "stale_leader": 3,
            "isolate": 3,
            "transfer": 3,
            "clients_cut": 3,
            "client_pause": 5,
            "client_crash": 1,
            "clock": 1,
        },
        fault_pause=0.5,
        workers=1,
        tenants=4,
        seconds=16.0,
    ),
    # Faults that last for minutes: machines that are gone, loops that hang, syncs that take seconds.
    "minutes": _focus(
        {
            "pause": 3,
            "hang": 4,
            "isolate": 2,
            "one_way": 1,
            "slow_disk": 2,
            "crash": 1,
            "client_pause": 2,
            "clients_cut": 1,
            "sleep": 1,
            "transfer": 1,
        },
        mix=MIX | {"compact": 3.0},
        limits={"log_cut_entries": 20, "log_keep_entries": 1},
        fault_pause=15.0,
        faults_at_once=2,
        longest=180.0,
        slowest_sync=5.0,
        stretch=10.0,
        clients=2,
        workers=2,
        think=2.0,
        tenants=1,
        watchers=1,
        seconds=400.0,
    ),
    # Clocks that jump as far as is believed, and run at any rate: nothing else may depend on them.
    "clocks": _focus(
        {"jump": 6, "clock": 3, "isolate": 2, "crash": 1, "power": 1, "transfer": 2, "storm": 1},
        fault_pause=0.4,
        faults_at_once=3,
        watchers=1,
        seconds=14.0,
    ),
    # Clients of etcd, through proxies that die, whose answers come in pages and whose transactions in two parts.
    "proxies": _focus(
        {
            "storm": 3,
            "clients_cut": 2,
            "crash": 2,
            "client_crash": 2,
            "client_pause": 1,
            "transfer": 2,
            "isolate": 2,
            "stale_leader": 2,
        },
        mix=MIX | {"pair_get": 10.0, "append": 15.0, "lists": 12.0, "fill": 5.0, "sweep": 4.0, "herd": 8.0},
        limits={"max_page_items": 4, "max_page_bytes": 1024},
        padding=(0, 0, 100),
        fault_pause=0.5,
        workers=0,
        proxied=3,
        proxied_tenants=2,
        seconds=14.0,
    ),
    # Commands at their extremes, among others that are well.
    "poison": _focus({"poison": 8, "crash": 2, "isolate": 2, "transfer": 1}, fault_pause=0.3, seconds=8.0),
    # Transactions over several lists, nearly nothing else.
    "lists": _focus(
        {"storm": 3, "clients_cut": 2, "crash": 2, "transfer": 2, "isolate": 2, "stale_leader": 2, "power": 1},
        mix=dict.fromkeys(MIX, 0.5) | {"append": 40.0, "lists": 15.0},
        fault_pause=0.5,
        think=0.1,
        seconds=12.0,
    ),
    # Timings and limits that are changed again and again, under everything else.
    "settings": _focus(
        {"settings": 6, "isolate": 2, "crash": 2, "power": 2, "transfer": 2, "storm": 1, "membership": 1, "hang": 1},
        limits={"log_cut_entries": 20, "log_keep_entries": 1},
        fault_pause=0.4,
        faults_at_once=3,
        think=0.12,
        watchers=1,
        lose_all_at_the_end=True,
        seconds=14.0,
    ),
    # Transactions as functions, which meet each other and are asked for twice.
    "functions": _focus(
        {"storm": 3, "clients_cut": 2, "crash": 2, "client_crash": 1, "transfer": 2, "isolate": 2, "power": 1},
        mix={"compact": 3.0},
        fault_pause=0.5,
        workers=1,
        movers=3,
        seconds=12.0,
    ),
    # Rates and semaphores, of processes that are cut off, die and sleep.
    "shares": _focus(
        {"storm": 3, "isolate": 2, "transfer": 2, "clients_cut": 4, "client_pause": 4, "client_crash": 2, "clock": 1},
        fault_pause=0.5,
        workers=1,
        spenders=2,
        porters=3,
        seconds=14.0,
    ),
    # Processes that die, and are noticed; that are paused, lose their lanes, and use the leases of others.
    "deaths": _focus(
        {"client_crash": 6, "client_pause": 3, "clients_cut": 2, "storm": 2, "transfer": 2, "isolate": 2, "crash": 2},
        fault_pause=0.3,
        faults_at_once=3,
        workers=1,
        tenants=4,
        contenders=1,
        seconds=14.0,
        deaths=True,
    ),
    # Reads that the leader answers at once, and the client confirms by asking a voter.
    "lone reads": _lone_reads,
    # Processes that sleep for half a lease, hardly in time for the next keep-alive, while leadership is handed on.
    "sleepers": _focus(
        {"transfer": 5, "client_pause": 9},
        fault_pause=0.25,
        faults_at_once=4,
        workers=1,
        tenants=5,
        seconds=12.0,
    ),
    # Locks and elections, likewise.
    "locks": _focus(
        {"isolate": 2, "crash": 2, "storm": 2, "transfer": 1, "clients_cut": 2, "client_pause": 4, "client_crash": 1},
        mix={"compact": 3.0},
        fault_pause=0.5,
        workers=1,
        contenders=3,
        candidates=1,
        seconds=16.0,
    ),
}


def reigns(rng: random.Random, scale: float = 1.0) -> Profile:
    """Leaders that live for a moment or for long, beside all that is to be forgotten or to end."""
    reign = scale * math.exp(rng.uniform(math.log(0.7), math.log(60.0)))
    restarts = rng.random() < 0.4
    compaction = Compaction(mode="age", keep=int(scale * rng.choice((5, 12, 40))))
    timings = draw_timings(
        rng,
        heartbeat_interval=0.1 * scale,
        election_timeout=scale * rng.choice((0.5, 0.6, 1.0)),
        session_ttl=scale * rng.choice((2.0, 6.0, 15.0)),
        request_ttl=scale * rng.choice((5.0, 15.0, 40.0)),
    )
    return Profile(
        clients=2,
        workers=2,
        tenants=2,
        think=0.4 * scale,
        seconds=3.0 * max(compaction.keep, timings.request_ttl, 2 * timings.session_ttl),
        mix=MIX | {"compact": 0.0, "past": 0.0},
        faults={"ousting" if restarts else "reign": 1.0 / reign, "client_crash": 0.15 / scale},
        fault_pause=1.0 / (1.0 / reign + 0.15 / scale),
        faults_at_once=3,
        timings=timings,
        limits=draw_limits(rng),
        compaction=compaction,
        ages=2.0 if restarts else 1.0,
        leader_changes=1,
        scale=scale,
    )


def hours(rng: random.Random) -> Profile:
    """One to three hours of the same, in which leaders live for half a minute to half an hour."""
    made = reigns(rng, scale=30.0)
    made.think *= 3
    made.seconds = max(made.seconds, rng.uniform(3600.0, 10800.0))
    return made


PROFILES["reigns"] = reigns
PROFILES["hours"] = hours

FOCUSED = tuple(name for name in PROFILES if name != "mixed")


def draw(rng: random.Random, name: str = "mixed") -> Profile:
    """The profile of that name for this seed."""
    profile = PROFILES[name](rng)
    profile.name = name
    return profile
