"""What a run is made of: how many members, which faults and how many, what the clients do. Drawn from the seed.

``draw`` makes the mixed profile that ordinary seeds run. ``focused`` profiles set the stage for one kind of trouble;
they are run without any mutant too, and must pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from raykeeper.limits import MAX_CLOCK_STEP_S, Compaction, Limits, Timings

MIX = {
    "get": 22.0,
    "stale": 9.0,
    "all": 3.0,
    "past": 3.0,
    "put": 14.0,
    "swap": 10.0,
    "delete": 5.0,
    "cas": 14.0,
    "pair": 5.0,
    "pair_get": 5.0,
    "count": 3.0,
    "add": 12.0,
    "compact": 1.5,
}

FAULTS = {
    "isolate": 3.0,
    "split": 3.0,
    "one_way": 2.0,
    "bridge": 1.5,
    "stale_leader": 1.0,
    "flap": 1.5,
    "clients_cut": 1.5,
    "storm": 3.0,
    "crash": 2.5,
    "stop": 0.7,
    "power": 2.5,
    "power_all": 0.7,
    "fuse": 3.0,
    "amnesia": 1.0,
    "pause": 2.5,
    "clock": 2.0,
    "slow_disk": 1.0,
    "full_disk": 1.0,
    "client_crash": 1.0,
    "client_pause": 1.0,
    "transfer": 1.5,
    "membership": 2.0,
}


@dataclass
class Profile:
    """One kind of run. Times are simulated seconds."""

    name: str = "mixed"
    members: int = 3
    most_members: int = 6
    """Machines there may ever be: membership changes add some."""
    clients: int = 3
    workers: int = 3
    """For each client."""
    think: float = 0.2
    """Mean seconds between two operations of a worker."""
    watchers: int = 0
    """For each client, as are the other lodgers..."""
    tenants: int = 0
    """... with leases..."""
    contenders: int = 0
    """... for locks..."""
    candidates: int = 0
    """... and in an election."""
    seconds: float = 20.0
    padding: tuple[int, ...] = (0, 0, 0, 40)
    """Bytes that are added to values."""
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    faults: dict[str, float] = field(default_factory=lambda: dict(FAULTS))
    fault_pause: float = 0.6
    """Mean seconds from one fault's beginning to the next one's."""
    faults_at_once: int = 2
    timings: Timings = field(default_factory=Timings)
    limits: Limits = field(default_factory=Limits)
    compaction: Compaction = field(default_factory=Compaction)
    ages: float = 0.0
    """Whether what is to be forgotten must be so in time, and what ends, ended; times this, as processes that are
    restarted know little of the time before."""
    lease_reads: bool = False
    """Clocks may then sleep, and leap ahead so far that it shows, but else must be healthy."""
    clock_drift: float = 0.1
    """How far their rates may be apart, for lease reads."""
    max_clock_step: float = MAX_CLOCK_STEP_S
    """What a member believes of one step of its clock; smaller, and sleep need not last for minutes to go beyond."""
    leader_changes: int = 2
    """A run with fewer does not count."""
    small: dict[str, float] = field(default_factory=dict)
    """Bounds that are smaller than the product's, so that they are met: names of constants."""
    deaths: bool = False
    """Whether members notice the death of clients' processes; tenants then also use the leases of others."""
    users: bool = False
    """Whether all clients call as a user, whose right to anything comes and goes."""
    lose_all_at_the_end: bool = False
    """Once all is well, all members lose their power, and what was acknowledged must still be there."""

    @property
    def honest_clocks(self) -> bool:
        """Whether clocks may be slow or stand still, but neither fast nor jump: what promises of time rest on."""
        return self.tenants + self.contenders + self.candidates > 0


def _limits(rng: random.Random, **more: int) -> Limits:
    """Small, so that logs are trimmed, windows fill and snapshots take several chunks within one run."""
    chosen: dict[str, int] = {
        "log_cut_entries": rng.choice((20, 60, 150)),
        "log_keep_entries": rng.choice((1, 5, 20)),
        "snapshot_chunk_bytes": rng.choice((1024, 4096, 16384)),
        "snapshot_bytes_per_second": rng.choice((1 << 15, 1 << 20, 1 << 26)),
        "max_append_bytes": rng.choice((1024, 4096, 1 << 20)),
        "max_append_messages_in_flight": rng.choice((1, 4, 64)),
        "max_apply_bytes": rng.choice((1024, 1024, 1 << 20)),
        "log_cache_bytes": rng.choice((1024, 1 << 20)),
        "compaction_slice_keys": rng.choice((5, 50)),
        "max_calls_in_flight": rng.choice((1, 4)),
    }
    chosen.update(more)
    return Limits(**chosen)


def _timings(rng: random.Random, **more: float) -> Timings:
    heartbeat = 0.1
    chosen = {
        "heartbeat_interval": heartbeat,
        "election_timeout": heartbeat * rng.choice((5, 6, 10)),
        "session_ttl": rng.choice((2.0, 5.0, 60.0)),
        "request_ttl": rng.choice((4.0, 600.0, 600.0)),
    }
    chosen.update(more)
    return Timings(**chosen)


def _small(rng: random.Random) -> dict[str, float]:
    """Buffers that fill, readings that stop half-way."""
    return {
        "WATCH_POLL_S": rng.choice((1.0, 1.0, 5.0)),
        "WATCH_BUFFER_EVENTS": rng.choice((3, 10, 10_000)),
        "WATCH_SCAN_CHANGES": rng.choice((1, 5, 5000)),
        "WATCH_BATCH_BYTES": rng.choice((300, 2000, 512 * 1024)),
        "WATCH_REPLY_BYTES": rng.choice((600, 5000, 2 * 1024 * 1024)),
    }


def mixed(rng: random.Random) -> Profile:
    """Everything, in proportions that differ from seed to seed; some faults are missing from each."""
    faults = {name: weight * rng.choice((0.0, 0.5, 1.0, 1.0, 2.0)) for name, weight in FAULTS.items()}
    if sum(faults.values()) < 8:
        faults = dict(FAULTS)
    timings = _timings(rng)
    lodgers = rng.choice(("tenants", "contenders", "candidates", "", "", ""))
    if timings.request_ttl < 60:  # a promise of time, which no clock that jumps can keep
        faults["clock"] = faults["stale_leader"] = 0.0
    members = rng.choice((3, 3, 3, 5))
    if members > 3:
        lodgers = ""  # they are many already
    lease_reads = rng.random() < 0.3
    if lease_reads:
        faults["clock"] = faults["stale_leader"] = 0.0
        faults |= {"sleep": 2.0, "stall": 2.0, "forget": 1.0, "leap": 1.0, "configure": 1.0}
    return Profile(
        members=members,
        watchers=rng.choice((0, 1, 1)),
        tenants=int(lodgers == "tenants"),
        contenders=int(lodgers == "contenders"),
        candidates=int(lodgers == "candidates"),
        small=_small(rng),
        faults={name: weight for name, weight in faults.items() if weight},
        fault_pause=rng.choice((0.4, 0.6, 1.0)),
        faults_at_once=rng.choice((1, 2, 2, 3)),
        timings=timings,
        limits=_limits(rng),
        lose_all_at_the_end=rng.random() < 0.5,
        lease_reads=lease_reads,
        max_clock_step=2.0 if lease_reads else MAX_CLOCK_STEP_S,
    )


def _focus(
    faults: dict[str, float], mix: dict[str, float] | None = None, limits: dict[str, int] | None = None, **more: object
) -> Callable[[random.Random], Profile]:
    def make(rng: random.Random) -> Profile:
        return Profile(
            faults=dict(faults),
            mix=MIX | (mix or {}),
            timings=_timings(rng, request_ttl=600.0),
            limits=_limits(rng, **(limits or {})),
            small=_small(rng),
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
        timings=_timings(rng, request_ttl=600.0, session_ttl=60.0),
        limits=_limits(rng),
        small=_small(rng),
        lease_reads=True,
        # With tenants the rates are closer than what leaders allow for, since clients allow for less.
        clock_drift=rng.choice((0.02, 0.1)),
        max_clock_step=rng.choice((0.9, 2.0)),
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
        limits=_limits(rng, log_cut_entries=20, log_keep_entries=1, snapshot_chunk_bytes=4096),
        small=_small(rng)
        | {
            "DELETE_SLICE_KEYS": rng.choice((1, 2, 5)),
            "SCAN_SLICE": rng.choice((1, 3, 10)),
            "BATCH_SLICE_WRITES": rng.choice((3, 8)),
        },
        padding=(0, 1100),
        timings=_timings(rng, request_ttl=600.0),
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
    # Disks that are full, in the midst of anything, and have room again.
    "full disks": _focus(
        {"full_disk": 6, "power": 2, "crash": 1, "state_loss": 1.5, "fuse": 1, "isolate": 2, "power_all": 0.5},
        limits={"log_cut_entries": 20, "log_keep_entries": 1, "snapshot_chunk_bytes": 4096},
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
    # Leases of processes that are cut off, die and sleep, while leaders come and go.
    "users": _focus(dict(FAULTS), users=True),
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


def reigns(rng: random.Random) -> Profile:
    """Leaders that live for a moment or for long, beside all that is to be forgotten or to end."""
    reign = math.exp(rng.uniform(math.log(0.7), math.log(60.0)))
    restarts = rng.random() < 0.4
    compaction = Compaction(mode="age", keep=rng.choice((5, 12, 40)))
    timings = _timings(rng, session_ttl=rng.choice((2.0, 6.0, 15.0)), request_ttl=rng.choice((5.0, 15.0, 40.0)))
    return Profile(
        clients=2,
        workers=2,
        tenants=2,
        think=0.4,
        seconds=3.0 * max(compaction.keep, timings.request_ttl, 2 * timings.session_ttl),
        mix=MIX | {"compact": 0.0, "past": 0.0},
        faults={"ousting" if restarts else "reign": 1.0 / reign, "client_crash": 0.15},
        fault_pause=1.0 / (1.0 / reign + 0.15),
        faults_at_once=3,
        timings=timings,
        limits=_limits(rng),
        compaction=compaction,
        ages=2.0 if restarts else 1.0,
        leader_changes=1,
    )


PROFILES["reigns"] = reigns

FOCUSED = tuple(name for name in PROFILES if name != "mixed")


def draw(rng: random.Random, name: str = "mixed") -> Profile:
    """The profile of that name for this seed."""
    profile = PROFILES[name](rng)
    profile.name = name
    return profile
