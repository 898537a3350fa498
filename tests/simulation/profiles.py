"""What a run is made of: how many members, which faults and how many, what the clients do. Drawn from the seed.

Ordinary seeds run the mixed profile; ``focused_profiles`` has those that set the stage for one kind of trouble.
"""

from __future__ import annotations

import random
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
    "append": 7.0,
    "lists": 3.0,
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
    "hang": 1.0,
    "settings": 0.5,
    "poison": 0.5,
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
    """For each client..."""
    proxied: int = 0
    """... and of those that go through a proxy, as clients of etcd..."""
    proxied_tenants: int = 0
    """... and of those that have leases there."""
    think: float = 0.2
    """Mean seconds between two operations of a worker."""
    watchers: int = 0
    """For each client, as are the other lodgers..."""
    tenants: int = 0
    """... with leases..."""
    contenders: int = 0
    """... for locks..."""
    candidates: int = 0
    """... and in an election..."""
    movers: int = 0
    """... that run transactions as functions..."""
    spenders: int = 0
    """... take tokens of a rate..."""
    porters: int = 0
    """... and slots of a semaphore, by weight."""
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
    slowest_sync: float = 0.15
    """Of a slow disk, in seconds."""
    longest: float = 3.0
    """Of pauses and of hanging loops, in seconds."""
    stretch: float = 1.0
    """By how much longer faults last than they are drawn."""
    scale: float = 1.0
    """By how much slower everything is than in a cluster with the default timings: TTLs, timeouts, what counts as
    prompt. Hours of such a cluster cost no more than minutes of another."""
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
        living_by = (self.tenants, self.proxied_tenants, self.contenders, self.candidates, self.spenders, self.porters)
        return sum(living_by) > 0


def draw_limits(rng: random.Random, **more: int) -> Limits:
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


def draw_timings(rng: random.Random, **more: float) -> Timings:
    heartbeat = 0.1
    chosen = {
        "heartbeat_interval": heartbeat,
        "election_timeout": heartbeat * rng.choice((5, 6, 10)),
        "session_ttl": rng.choice((2.0, 5.0, 60.0)),
        "request_ttl": rng.choice((4.0, 600.0, 600.0)),
    }
    chosen.update(more)
    return Timings(**chosen)


def draw_small(rng: random.Random) -> dict[str, float]:
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
    timings = draw_timings(rng)
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
        small=draw_small(rng),
        faults={name: weight for name, weight in faults.items() if weight},
        fault_pause=rng.choice((0.4, 0.6, 1.0)),
        faults_at_once=rng.choice((1, 2, 2, 3)),
        timings=timings,
        limits=draw_limits(rng),
        lose_all_at_the_end=rng.random() < 0.5,
        lease_reads=lease_reads,
        max_clock_step=2.0 if lease_reads else MAX_CLOCK_STEP_S,
        slowest_sync=rng.choice((0.15, 0.15, 1.0, 5.0)),
        longest=rng.choice((3.0, 3.0, 10.0)),
    )
