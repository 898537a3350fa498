"""What a campaign does to its cluster: each fault as a generator.

A fault begins, yields what it did, and when the campaign lets it go on it undoes itself and returns whether it *bit*:
whether it is seen to have done what it should (a process that is dead, frames that were lost, a clock that is off).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import ray

from lab.ray.faults import CLIENT, cut, rule
from lab.ray.tools import is_alive, is_stopped, start_of, wait_until
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.naming import NAMESPACE
from raykeeper.actors.transport.peer_frames import PeerFrame, encode_frame
from raykeeper.raft.messages import Heartbeat
from raykeeper.schema.frames import KeepAlive

from .disks import (
    damaged_image,
    damaged_log,
    damaged_state,
    deleted_folder,
    failing_fsync,
    full_disk,
    power_of_all,
    power_of_one,
    read_only_disk,
)
from .field import Fault, Field, NotNow, kill
from .worker import HEAD, flood

HOUR = 3600.0


# --- 1 processes killed ----------------------------------------------------------------------------------------------


def kill_leader(field: Field) -> Fault:
    member = field.leader()
    bit = kill(member.pid)
    yield f"SIGKILL of leader {member.name}"
    return bit


def kill_follower(field: Field) -> Fault:
    member = field.follower()
    bit = kill(member.pid)
    yield f"SIGKILL of {member.name}"
    return bit


def kill_all(field: Field) -> Fault:
    started = {member.pid: start_of(member.pid) for member in field.members()}
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    yield "SIGKILL of all members"
    wait_until(lambda: not any(is_alive(pid, start) for pid, start in started.items()))
    return True


def kill_client(field: Field) -> Fault:
    name = field.rng.choice(sorted(field.workers))
    bit = kill(field.workers[name][1])
    yield f"SIGKILL of client {name}"
    field.replace(name)
    return bit


def kill_supervisor(field: Field) -> Fault:
    """In the middle of whatever it does, also of a change that it has begun."""
    try:
        actor = ray.get_actor(supervisor_name(field.cluster.name), namespace=NAMESPACE)
    except ValueError as error:
        raise NotNow(str(error)) from None
    bit = kill(ray.get(actor.pid.remote(), timeout=10))
    yield "SIGKILL of the supervisor"
    return bit


def kill_proxy(field: Field) -> Fault:
    """Another one takes its place, at its port, when the fault is over."""
    proxies, endpoint = field.proxy()
    proxies.kill(endpoint)
    try:
        yield f"SIGKILL of the proxy at {endpoint}"
    finally:
        proxies.start(endpoint)
    return True


# --- 2 processes paused ----------------------------------------------------------------------------------------------


def _pause(pids: list[int], what: str) -> Fault:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all(map(is_stopped, pids)), 10, "processes stopped")
        yield what
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return True


def pause_leader(field: Field) -> Fault:
    member = field.leader()
    return (yield from _pause([member.pid], f"SIGSTOP of leader {member.name}"))


def pause_follower(field: Field) -> Fault:
    member = field.follower()
    return (yield from _pause([member.pid], f"SIGSTOP of {member.name}"))


def pause_all(field: Field) -> Fault:
    return (yield from _pause([member.pid for member in field.members()], "SIGSTOP of all members"))


def pause_client(field: Field) -> Fault:
    name = field.rng.choice(sorted(field.workers))
    return (yield from _pause([field.workers[name][1]], f"SIGSTOP of client {name}"))


def pause_proxy(field: Field) -> Fault:
    proxies, endpoint = field.proxy()
    return (yield from _pause([proxies.pid(endpoint)], f"SIGSTOP of the proxy at {endpoint}"))


# --- 3 partitions, and 8 messages ------------------------------------------------------------------------------------


def switched(field: Field, what: str, *rules: Any) -> Fault:
    """Frames are subject to these rules, for as long as the fault lasts."""
    before = field.faults.counts().total()
    field.faults.set(*rules)
    try:
        yield what
    finally:
        field.faults.heal()
    with suppress(AssertionError):  # then no frame was touched
        wait_until(lambda: field.faults.counts().total() > before, 5)
        return True
    return False


def how_cut(field: Field) -> str:
    """Frames of a cut are lost, or come late."""
    return field.rng.choice(("drop", "hold"))


def isolate_leader(field: Field) -> Fault:
    member, how = field.leader(), how_cut(field)
    return (
        yield from switched(
            field, f"leader {member.name} cut off ({how})", cut([member.id], [*field.others(member), CLIENT], how)
        )
    )


def leader_without_followers(field: Field) -> Fault:
    member, how = field.leader(), how_cut(field)
    rules = cut([member.id], field.others(member), how)
    return (yield from switched(field, f"leader {member.name} cut off from members only ({how})", rules))


def isolate_follower(field: Field) -> Fault:
    member, how = field.follower(), how_cut(field)
    rules = cut([member.id], [*field.others(member), CLIENT], how)
    return (yield from switched(field, f"{member.name} cut off ({how})", rules))


def one_way(field: Field) -> Fault:
    member, how = field.rng.choice([field.leader(), field.follower()]), how_cut(field)
    rules = [rule(how, member.id, other) for other in field.others(member)]
    if field.rng.random() < 0.5:
        rules = [{**each, "sender": each["to"], "to": each["sender"]} for each in rules]
        return (yield from switched(field, f"nothing arrives at {member.name} ({how})", rules))
    return (yield from switched(field, f"nothing of {member.name} arrives ({how})", rules))


def flapping(field: Field) -> Fault:
    member = field.rng.choice([field.leader(), field.follower()])
    period = [field.rng.uniform(0.2, 1.5), field.rng.uniform(0.2, 1.0)]
    rules = cut([member.id], field.others(member), "drop", flap=period, seconds=[0.1, 0.5])
    return (yield from switched(field, f"links of {member.name} flap", rules))


def clients_cut_off(field: Field) -> Fault:
    member, how = field.leader(), how_cut(field)
    return (
        yield from switched(
            field, f"clients cut off from leader {member.name} ({how})", cut([CLIENT], [member.id], how)
        )
    )


def noise(field: Field) -> Fault:
    rules = [
        rule("duplicate", share=0.3, seconds=[0.0, 2.0]),
        rule("delay", share=0.3, seconds=[0.0, 0.3]),
        rule("delay", share=0.02, seconds=[1.0, 4.0]),
        rule("drop", share=0.05, seconds=[0.1, 1.0]),
    ]
    return (yield from switched(field, "frames duplicated, delayed, reordered, lost", rules))


def damage(field: Field) -> Fault:
    """Of frames between members: these have a checksum, those of clients rely on what carries them."""
    ids = [member.id for member in field.members()]
    fault = field.rng.choice(("truncate", "garble"))
    rules = [rule(fault, a, b, share=0.2) for a in ids for b in ids if a != b]
    return (yield from switched(field, f"frames between members: {fault}", rules))


def foreign_frames(field: Field) -> Fault:
    """Frames that are not for this cluster, or not for anybody."""
    rng, replies = field.rng, []
    members = field.members()
    for member in members:
        for other in (0, 77, *(each.id for each in members)):
            beat = Heartbeat(other, member.id, 1 << 40, 1 << 40, 0)
            foreign = encode_frame(PeerFrame(field.cluster.id + 1, other, member.id, 1, 1, (beat,)))
            replies += [getattr(member.actor, method).remote(foreign) for method in ("append_entries", "request_vote")]
        for size in (0, 1, 30, 3000):
            garbage = rng.randbytes(size)
            replies += [
                getattr(member.actor, method).remote(garbage)
                for method in ("append_entries", "request_vote", "install_snapshot", "request", "watch")
            ]
        newer = msgspec.msgpack.encode((99, field.cluster.id, 1.0, "of a newer version"))
        foreign = msgspec.msgpack.encode(KeepAlive(field.cluster.id + 1, 1.0, 1))
        replies += [member.actor.request.remote(frame) for frame in (newer, foreign)]
    answered, _ = ray.wait(replies, num_returns=len(replies), timeout=10)
    yield f"{len(answered)} frames of unknown senders, garbage, and of a newer version"
    return len(answered) > len(replies) // 2


# --- 6 clocks, 7 load ---------------------------------------------------------------------------------------------


def clocks(field: Field) -> Fault:
    """One member's clocks jump; they stay as they are when the fault is over, which is the next jump."""
    member = field.rng.choice([field.leader(), field.follower()])
    wall, monotonic = (field.rng.choice((-1, 1)) * field.rng.uniform(1, 9) * HOUR for _ in range(2))
    before = ray.get(member.actor.__ray_call__.remote(wall_clock), timeout=10)
    field.faults.clock(member.pid, wall, monotonic)
    yield f"clocks of {member.name} jump: wall {wall / HOUR:+.1f} h, monotonic {monotonic / HOUR:+.1f} h"
    after = ray.get(member.actor.__ray_call__.remote(wall_clock), timeout=10)
    return abs(after - before) > HOUR / 2


def reads_clock(actor: Any) -> float:
    """By how much the clock that a member or a client counts on is off, by its own reading."""
    return float(ray.get(actor.__ray_call__.remote(clock_offset), timeout=10))


def clock_offset(_: Any) -> float:
    """The same, in its process."""
    import sys
    import time

    member = sys.modules.get("raykeeper.actors.member.clock")
    own = member.system_clock if member is not None else sys.modules["raykeeper.actors.client.hub"].clock
    return float(own() - time.clock_gettime(time.CLOCK_BOOTTIME))


def wall_clock(_: Any) -> float:
    """As a member sees it."""
    import time

    return time.time()


def overload(field: Field) -> Fault:
    size = field.rng.choice((100, 10_000))
    run: Any = ray.remote(num_cpus=0, resources=HEAD)(flood)
    running = run.remote(field.cluster.name, field.rng.uniform(3.0, 6.0), size)
    yield f"300 threads write {size} bytes each without a pause"
    done, refused = ray.get(running, timeout=60)
    return bool(done + refused > 300)


def move_leader(field: Field) -> Fault:
    target = field.follower()
    with suppress(Exception):  # no fault of the store if the member cannot take over: nothing is to break
        field.cluster.move_leader(target.id)
    yield f"leadership handed to {target.name}"
    return True


def change_members(field: Field) -> Fault:
    """A member joins and another one goes, the leader as a rule."""
    joins = field.cluster.add_member().name if len(field.members()) < 5 else "nobody"
    goes = field.leader().id if field.rng.random() < 0.6 else field.follower().id
    yield f"{joins} joins, m{goes} goes"
    field.cluster.remove_member(goes)
    return True


FAULTS: dict[Callable[[Field], Fault], tuple[int, float]] = {
    kill_leader: (1, 3),
    kill_follower: (1, 2),
    kill_all: (1, 1),
    kill_client: (1, 2),
    kill_supervisor: (1, 1),
    kill_proxy: (1, 2),
    pause_leader: (2, 3),
    pause_follower: (2, 1),
    pause_all: (2, 0.5),
    pause_client: (2, 2),
    pause_proxy: (2, 1),
    isolate_leader: (3, 3),
    leader_without_followers: (3, 2),
    isolate_follower: (3, 1),
    one_way: (3, 3),
    flapping: (3, 2),
    clients_cut_off: (3, 1),
    power_of_one: (5, 2),
    power_of_all: (5, 1),
    damaged_state: (5, 1),
    damaged_log: (5, 1),
    damaged_image: (5, 1),
    deleted_folder: (5, 1),
    failing_fsync: (5, 1),
    full_disk: (5, 1),
    read_only_disk: (5, 1),
    clocks: (6, 2),
    overload: (7, 1),
    noise: (8, 3),
    damage: (8, 2),
    foreign_frames: (8, 1),
    move_leader: (0, 1),
    change_members: (0, 1),
}
"""Each with its number among the kinds of faults (0: an operation, no fault), and how often it comes up."""

SPOILING = frozenset({damaged_state, damaged_log, damaged_image, deleted_folder, full_disk})
"""Those that cost a member its data, or move it: never two of them at once."""

OF_PROXIES = frozenset({kill_proxy, pause_proxy})
"""Those that need proxies."""
