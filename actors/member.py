"""The Ray actor around one member.

Threaded, with its threads in groups, so that clients who wait can never lock out the peers or the control calls that
would release them. The constructor only reads: it never makes data, because Ray runs it again whenever the process
died, and a member that lost its data must not come back as if it had never voted. Nor does it fail, because an actor
whose constructor raises is dead for good: a member that may not serve stays up, refuses requests, and says why.

Opening the data happens on a thread of its own: the process before this one may still be about to die, and holds the
lock on the directory for as long as it takes.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import ray

from ..errors import ClusterMismatch, KeeperError, NoSpace, Unavailable
from ..limits import (
    CLIENT_THREADS,
    CONTROL_THREADS,
    GIL_SWITCH,
    LOCK_PAUSE,
    MAX_FRAME_DEADLINE,
    MAX_LEFTOVERS,
    NO_SPACE_PAUSE,
    PEER_THREADS,
    REQUEST_MARGIN,
    STATUS_TIMEOUT,
    WATCH_POLL,
    WATCH_THREADS,
)
from ..store.backup import Header
from ..store.commands import COMMANDS_VERSION
from ..store.folder import DataMissing, Identity, LogDamaged, MemberFolder
from .backup import Images
from .care import Caretaker
from .clock import member_clock
from .copies import note_served
from .events import BackgroundDone, LeadershipTransfer
from .loop import Loop, Spot
from .priority import as_daemon
from .protocol import AlarmStatus, AskStatus, MemberStatus, Patience, Refusal, Refused, Request, Status
from .registration import register_in_background
from .seat import NAMESPACE, Seat, actor_name, decode_seat, member_name
from .service import reply_bytes
from .sites import member_disk, try_lock
from .transport.descriptors import raise_limit
from .transport.lane_frames import LaneOffer

_decode_request = msgspec.msgpack.Decoder(Request).decode


class Member:
    """One member of a cluster. Made by ``launch``, called by peers, by clients' hubs and by ``Cluster``.

    Args:
        seat: an encoded :class:`Seat`.
    """

    def __init__(self, seat: bytes) -> None:
        as_daemon()
        raise_limit()
        sys.setswitchinterval(GIL_SWITCH)
        self._seat = decode_seat(seat)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._loop: Loop | None = None
        self._care: Caretaker | None = None
        self._images = Images()
        self._role = "not serving"
        self._why = ""
        self._lost = self._missing = False
        self._opening = threading.Lock()
        self._lock_fd = -1
        self._stopped = False
        self._start_opening()

    # -- clients ------------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="client")
    def request(self, frame: bytes) -> bytes:
        """Answer one frame of a client's hub (``protocol.Request``); always answers, within the frame's deadline."""
        return self._answer(frame, deadline_of(frame))

    @ray.method(concurrency_group="watch")
    def watch(self, frame: bytes) -> bytes:
        """Answer one poll of a client's watches (``protocol.WatchPoll``), within its deadline and ``WATCH_POLL``."""
        return self._answer(frame, min(deadline_of(frame), WATCH_POLL))

    def _answer(self, frame: bytes, patience: float) -> bytes:
        loop = self._loop
        if loop is None:
            return self._answer_idle(frame)
        made: list[Callable[[], bytes]] = []
        ready = threading.Event()

        def done(make_reply: Callable[[], bytes]) -> None:
            made.append(make_reply)
            ready.set()

        loop.service.submit(frame, done)
        if not ready.is_set() and not ready.wait(patience + REQUEST_MARGIN):
            return reply_bytes(Refused(Refusal.TIMED_OUT, message="the member's loop did not answer in time"))
        try:
            return made[0]()
        except Exception as error:
            if self._loop is loop:
                traceback.print_exc()
            return reply_bytes(Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}"))

    def _answer_idle(self, frame: bytes) -> bytes:
        try:
            request = _decode_request(frame)
        except (msgspec.MsgspecError, RecursionError) as error:
            return reply_bytes(Refused(Refusal.INVALID, message=str(error)))
        if isinstance(request, AskStatus):
            return reply_bytes(Status(self._status()))
        return reply_bytes(Refused(Refusal.NOT_SERVING, message=self._why))

    # -- peers --------------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="peer")
    def append_entries(self, frame: bytes) -> bytes:
        """AppendEntries RPC, responses and heartbeats (``transport.seam.Frame``); the answer is a frame, or nothing."""
        return self._receive(frame)

    @ray.method(concurrency_group="peer")
    def request_vote(self, frame: bytes) -> bytes:
        """RequestVote RPC: like ``append_entries``."""
        return self._receive(frame)

    @ray.method(concurrency_group="peer")
    def install_snapshot(self, frame: bytes) -> bytes:
        """InstallSnapshot RPC: like ``append_entries``."""
        return self._receive(frame)

    def _receive(self, frame: bytes) -> bytes:
        loop = self._loop
        return b"" if loop is None else loop.transport.receive(frame)

    # -- control ------------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="control")
    def status(self) -> MemberStatus:
        """How the member is; answers whatever state it is in."""
        return self._status()

    @ray.method(concurrency_group="control")
    def seat(self) -> Seat:
        """What the actor was started with."""
        return self._seat

    @ray.method(concurrency_group="control")
    def identity(self) -> Identity | None:
        """Who the data belongs to, and how its cluster began; ``None`` from a member that does not serve."""
        loop = self._loop
        return None if loop is None else loop.server.folder.identity

    @ray.method(concurrency_group="control")
    def lane(self, peer: bool = False) -> LaneOffer | None:
        """How to open a lane to this member, once; ``None`` while there is none, or no room for one, and all goes by
        calls. There is more room for peers than for clients."""
        loop = self._loop
        return None if loop is None else loop.lane(peer)

    @ray.method(concurrency_group="control")
    def counters(self) -> dict[str, int]:
        """What became of messages to and from peers, for whoever looks for a fault."""
        loop = self._loop
        return {} if loop is None else loop.transport.counters()

    @ray.method(concurrency_group="control")
    def open(self) -> None:
        """Try again to open the data, if the member does not serve; comes back at once, with the status "starting"."""
        self._stopped = False
        self._start_opening()

    @ray.method(concurrency_group="control")
    def campaign(self) -> None:
        """Campaign now, if the member serves and hears from no leader, instead of after its election timeout."""
        loop = self._loop
        if loop is not None:
            loop.inbox.put_own(BackgroundDone(loop.server.node.campaign))

    @ray.method(concurrency_group="control")
    def move_leader(self, target: int) -> None:
        """Hand leadership to a member (0: to whoever is most up to date). Returns once that has begun.

        Raises:
            Unavailable: this member does not lead, or does not answer.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable(f"member {self._seat.name} does not serve: {self._why}")
        outcome: list[Refused | None] = []
        ready = threading.Event()

        def done(refused: Refused | None) -> None:
            outcome.append(refused)
            ready.set()

        loop.inbox.put_own(LeadershipTransfer(target, done))
        if not ready.wait(STATUS_TIMEOUT):
            raise Unavailable(f"member {self._seat.name} does not answer")
        if outcome[0] is not None:
            raise Unavailable(f"member {self._seat.name} is not the leader")

    @ray.method(concurrency_group="control")
    def begin_backup(self, created: float, patience: float) -> Header:
        """Make an image of the state as of now, to be fetched with ``backup_chunk``; ``created`` is for its header.

        Raises:
            Unavailable: the member does not serve, another backup is taken from it, or within ``patience`` seconds it
                has not applied all that was committed when this was called.
            DataCorrupted: its state is damaged.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable(f"member {self._seat.name} does not serve: {self._why}")
        return self._images.begin(loop, self._seat.cluster_name, created, patience)

    @ray.method(concurrency_group="control")
    def backup_chunk(self, image: str, offset: int, size: int) -> bytes:
        """Bytes of the image of that id. Raises ``Unavailable`` if it is gone."""
        return self._images.chunk(image, offset, size)

    @ray.method(concurrency_group="control")
    def end_backup(self, image: str) -> None:
        """Remove the image of that id."""
        self._images.end(image)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Close the data and serve no more; the actor stays up until it is killed."""
        self._stopped = True
        self._end("it was stopped")

    def _end(self, why: str) -> None:
        """Serve no more, and say why. Also where the loop has ended by itself: a process that ended with it would only
        be followed by others that end alike."""
        with self._opening:
            loop, self._loop = self._loop, None
            if self._care is not None:
                self._care.stop()
            if loop is not None:
                loop.stop(why)
            self._give_up(why)

    # -- opening the data ---------------------------------------------------------------------------------------------

    def _start_opening(self) -> None:
        if self._loop is None and not self._stopped and not self._opening.locked():
            self._role, self._why, self._lost, self._missing = "starting", "it is starting", False, False
            threading.Thread(target=self._open, name="open data", daemon=True).start()

    def _open(self) -> None:
        pause = threading.Event()
        while self._lacks_space_to_open() and not self._stopped:
            pause.wait(NO_SPACE_PAUSE)

    def _lacks_space_to_open(self) -> bool:
        """Open the data and serve; True if only room on the disk was missing, which may come back."""
        if not self._opening.acquire(blocking=False):
            return False  # somebody is at it
        try:
            if self._loop is None and not self._stopped and self._lock_directory():
                self._serve()
        except NoSpace as error:
            self._give_up(f"NoSpace: {error}")
            return True
        except KeeperError as error:
            # Where somebody else's data lies, its own may be elsewhere: hosts can swap their addresses.
            self._missing = isinstance(error, (DataMissing, ClusterMismatch))
            self._lost = self._missing or isinstance(error, LogDamaged)
            self._give_up(f"{type(error).__name__}: {error}")
        except OSError as error:
            self._give_up(f"its data directory cannot be used: {error}")
        except Exception as error:
            traceback.print_exc()
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            self._opening.release()
        return False

    def _give_up(self, why: str) -> None:
        self._role, self._why = "not serving", why
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock_directory(self) -> bool:
        """Lock the data directory against every other process: a name is no fence, this is. False once stopped."""
        base, name = os.path.split(self._seat.folder)
        if not os.path.isdir(self._seat.folder):
            raise DataMissing(f"there is no data directory {self._seat.folder}")
        pause = threading.Event()
        while not self._stopped:
            fd = try_lock(base, name)
            if fd is not None:
                self._lock_fd = fd
                return True
            self._why = f"another process holds the lock on {self._seat.folder}"
            pause.wait(LOCK_PAUSE)
        return False

    def _serve(self) -> None:
        seat = self._seat
        folder = MemberFolder.open(member_disk(), seat.folder, rebuild=True)
        identity = folder.identity
        if (identity.cluster, identity.member) != (seat.cluster, seat.member):
            folder.close()
            raise ClusterMismatch(
                f"{seat.folder} holds {identity.name} of cluster {identity.cluster_name} (id {identity.cluster:x}), "
                f"not {seat.name} of cluster {seat.cluster_name} (id {seat.cluster:x})"
            )
        note_served(seat.folder)
        host: str = _util.get_node_ip_address()
        loop = Loop(folder, self._lookup, self._status, Spot(self._node_id, host), self._end)
        # What lives by now lives for ever: the collector need not walk over it again and again.
        gc.collect()
        gc.freeze()
        self._loop = loop
        self._why = ""
        loop.start()
        register_in_background(seat, loop.server, lambda: self._loop is loop)
        self._care = Caretaker(seat.cluster_name, seat.cluster, loop.server, seat.folder, self._images.drop_idle)

    def _lookup(self, member: int) -> Any:
        return ray.get_actor(actor_name(self._seat.cluster_name, member_name(member)), namespace=NAMESPACE)

    # -- status -------------------------------------------------------------------------------------------------------

    def _status(self) -> MemberStatus:
        """Read from outside the loop: each number is right, but they may be of different moments."""
        seat, loop = self._seat, self._loop
        if loop is None:
            return MemberStatus(
                cluster_name=seat.cluster_name,
                cluster=seat.cluster,
                member=seat.member,
                name=seat.name,
                role=self._role,
                term=0,
                leader=0,
                commit_index=0,
                applied_index=0,
                last_log_index=0,
                first_log_index=0,
                revision=0,
                compact_revision=0,
                voters=(),
                learners=(),
                db_size=0,
                pid=os.getpid(),
                node=self._node_id,
                why_not_serving=self._why or "it is starting",
                lost=self._lost,
                missing=self._missing,
                version=COMMANDS_VERSION,
            )
        node, folder, care = loop.server.node, loop.server.folder, self._care
        state, log = folder.state, folder.log
        now, table = member_clock(), state.members.by_id
        leads, others = loop.server.is_leader, loop.server.reconfiguration
        alarms = [AlarmStatus(who, kind.name, said) for (who, kind), said in sorted(state.alarms.items())]
        return MemberStatus(
            cluster_name=seat.cluster_name,
            cluster=seat.cluster,
            member=seat.member,
            name=seat.name,
            role="learner" if node.is_learner else node.role,
            term=node.term,
            leader=node.leader,
            commit_index=node.commit_index,
            applied_index=state.applied_index,
            last_log_index=log.last_index(),
            first_log_index=log.first_index(),
            revision=state.revision,
            compact_revision=state.compact_revision,
            voters=node.configuration.voters,
            learners=node.configuration.learners,
            db_size=state.size() + log.size_bytes,
            pid=os.getpid(),
            node=self._node_id,
            session_count=len(state.sessions),
            settings=state.settings,
            why_not_serving=loop.server.why_not_serving,
            alarms=tuple(alarms),
            contents=loop.server.hashing.results,
            contents_begin=loop.server.hashing.begins,
            free_bytes=care.free if care is not None else 0,
            outgoing=node.configuration.outgoing,
            configuration_index=node.configuration.index,
            table=tuple(known for _, known in sorted(table.items()) if not known.removed),
            removed=tuple([known for _, known in sorted(table.items()) if known.removed][-MAX_LEFTOVERS:]),
            silent=others.silent(now) if leads else {},
            leading_for=others.leading_for(now) if leads else 0.0,
            caught_up=tuple(sorted(filter(others.caught_up, node.configuration.members))) if leads else (),
            version=COMMANDS_VERSION,
            active_version=loop.server.active_version,
        )


class _DeadlineOf(msgspec.Struct, array_like=True):
    """The beginning of every request that waits."""

    kind: int
    cluster: int
    deadline: Patience


_decode_deadline = msgspec.msgpack.Decoder(_DeadlineOf).decode


def deadline_of(frame: bytes) -> float:
    """The deadline of a request frame in seconds from its arrival; 0 for one that has none."""
    try:
        return max(0.0, min(_decode_deadline(frame).deadline, MAX_FRAME_DEADLINE))
    except (msgspec.MsgspecError, RecursionError):
        return 0.0


_util: Any = ray.util
_remote: Any = ray.remote  # whose type does not know of concurrency groups
MemberActor: Any = _remote(
    num_cpus=0,
    max_restarts=-1,
    max_task_retries=0,
    concurrency_groups={
        "client": CLIENT_THREADS,
        "watch": WATCH_THREADS,
        "peer": PEER_THREADS,
        "control": CONTROL_THREADS,
    },
)(Member)
"""The actor class. ``launch`` names, pins and detaches its actors."""
