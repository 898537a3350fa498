"""One member in the process of its actor, whose class is in ``member_actor.py``.

It is called by many threads, in groups (``member_actor.MemberActor``). The constructor never creates data: Ray runs it
again whenever the process has died, and a member that lost its data must not come back as if it had never voted. Nor
does it raise, because Ray gives up an actor whose constructor raises: a member that may not serve stays up, refuses
requests, and says why.

A thread of its own opens the data: the previous process may still be dying, and holds the lock on the directory until
it is dead.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import ray

from ...errors import ClusterMismatch, KeeperError, NoSpace, Unavailable
from ...limits import (
    GIL_SWITCH_S,
    LOCK_PAUSE_S,
    MAX_FRAME_DEADLINE_S,
    MAX_LEFTOVERS,
    OPEN_MAX_PAUSE_S,
    OPEN_PAUSE_S,
    REQUEST_MARGIN_S,
    START_FREE_BYTES,
    STATUS_TIMEOUT_S,
    WATCH_POLL_S,
)
from ...schema.commands import COMMANDS_VERSION
from ...schema.frame_deadline import RelativeDeadline
from ...schema.frames import AsUser, Refusal, Refused, Request
from ...schema.operator_frames import AlarmStatus, AskStatus, MemberStatus, Status
from ...schema.replies import reply_bytes
from ...store.backup_file import Header
from ...store.data_copies import Served, note_served, read_served
from ...store.data_dir import DataDir, DataMissing, Identity, LogDamaged
from ...store.data_lock import member_disk, try_lock
from ...store.engine.files import free_bytes, is_folder
from ...store.engine.private_files import narrow
from ...telemetry import PROCESS
from ..leader_call import administer_as
from ..log_files import log_to_ray
from ..logs import MemberLog
from ..naming import GAVE_UP, NAMESPACE, MemberSpec, actor_name, decode_member_spec, member_name
from ..one_thread import NoThreadLeft, start_thread
from ..process import as_daemon
from ..ray_metrics import hand_to_ray
from ..transport.descriptors import raise_limit
from ..transport.lane import LaneOffer
from .announce import register_in_background
from .clock import member_clock
from .event_loop import EventLoop, die
from .event_recorder import lost_members
from .events import BackgroundDone, LeadershipTransfer
from .maintenance import Maintenance
from .wiring import ProcessLocation

_decode_request = msgspec.msgpack.Decoder(Request).decode


class Member:
    """One member of a cluster. Called, through its actor, by peers, by clients' hubs and by ``Cluster``.

    Args:
        spec: an encoded :class:`MemberSpec`.
    """

    def __init__(self, spec: bytes) -> None:
        as_daemon()
        self._spec = decode_member_spec(spec)
        log_to_ray(self._spec.cluster_name, self._spec.name)
        raise_limit()
        sys.setswitchinterval(GIL_SWITCH_S)
        self._log = MemberLog("member", self._spec.cluster_name, self._spec.name)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._loop: EventLoop | None = None
        self._maintenance: Maintenance | None = None
        self._role = GAVE_UP
        self._why = ""
        self._lost = self._missing = False
        self._opening = threading.Lock()
        self._opener = threading.Lock()
        """Guards whether there is a thread that opens the data: there is one at most."""
        self._opens = False
        self._open_now = threading.Event()
        """Ends the pause before it tries again."""
        self._lock_fd = -1
        self._opening_since: float | None = None
        self._noted: Served | None = None
        """The note in the folder, if an attempt has made it that then failed."""
        self._stopped = False
        self._start_opening()
        hand_to_ray(self._spec.cluster_name, self._spec.name, self._log)

    # -- clients ------------------------------------------------------------------------------------------------------

    def request(self, frame: bytes) -> bytes:
        """Answer one frame of a client's hub (``frames.Request``), always and within the frame's deadline."""
        return self._answer(frame, deadline_of(frame))

    def watch(self, frame: bytes) -> bytes:
        """Answer one poll of a client's watches (``frames.WatchPoll``), within its deadline and ``WATCH_POLL_S``."""
        return self._answer(frame, min(deadline_of(frame), WATCH_POLL_S))

    def _answer(self, frame: bytes, patience: float) -> bytes:
        """Submit a frame and make its reply on this thread, so that the loop makes none for actor calls. The wait is a
        little longer than the loop's own, so that its refusal arrives first."""
        loop = self._loop
        if loop is None:
            return self._answer_idle(frame)
        made: list[Callable[[], bytes]] = []
        ready = threading.Event()

        def done(make_reply: Callable[[], bytes]) -> None:
            made.append(make_reply)
            ready.set()

        loop.handler.handle_request(frame, done)
        if not ready.is_set() and not ready.wait(patience + REQUEST_MARGIN_S):
            return reply_bytes(Refused(Refusal.TIMED_OUT, message="the member's loop did not answer in time"))
        try:
            return made[0]()
        except Exception as error:
            if self._loop is loop:
                self._log.exception("a reply could not be made")
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

    def append_entries(self, frame: bytes) -> bytes:
        """AppendEntries RPC, responses and heartbeats (``peer_frames.PeerFrame``); the answer is a frame, or
        empty."""
        return self._receive(frame)

    def request_vote(self, frame: bytes) -> bytes:
        """RequestVote RPC: like ``append_entries``."""
        return self._receive(frame)

    def install_snapshot(self, frame: bytes) -> bytes:
        """InstallSnapshot RPC: like ``append_entries``."""
        return self._receive(frame)

    def _receive(self, frame: bytes) -> bytes:
        loop = self._loop
        return b"" if loop is None else loop.transport.receive(frame)

    # -- control ------------------------------------------------------------------------------------------------------

    def status(self) -> MemberStatus:
        """The member's status, whatever state it is in."""
        return self._status()

    def member_spec(self) -> MemberSpec:
        """The spec that the actor was started with."""
        return self._spec

    def identity(self) -> Identity | None:
        """The cluster and member that the data belongs to, and the first members; ``None`` if this one does not
        serve."""
        loop = self._loop
        return None if loop is None else loop.replica.folder.identity

    def lane(self, node: str, peer: bool = False) -> LaneOffer | None:
        """How a process on that Ray node (empty: on none) opens one lane to this member; ``None`` while it offers none,
        so that everything goes by actor calls. There is more room for peers than for clients."""
        loop = self._loop
        return None if loop is None else loop.lane(node, peer)

    def own_token(self) -> bytes:
        """A token of the cluster itself, for its supervisor; empty while users are not needed, or while this member
        does not serve."""
        loop = self._loop
        return b"" if loop is None else loop.handler.own_token()

    def counters(self) -> dict[str, int]:
        """How many messages to and from peers were sent, received, and dropped for which reason."""
        loop = self._loop
        return {} if loop is None else loop.transport.counters()

    def open(self) -> None:
        """If the member does not serve, try again to open the data; returns at once, with the status "starting". Raises
        ``NoThreadLeft`` if the system has no thread left."""
        self._stopped = False
        self._start_opening()

    def campaign(self) -> None:
        """Campaign now instead of after the election timeout, if the member serves and hears from no leader."""
        loop = self._loop
        if loop is not None:
            loop.inbox.put_own(BackgroundDone(loop.replica.node.campaign))

    def move_leader(self, target: int) -> None:
        """Hand leadership to a member (0: to the most up-to-date one). Returns once the transfer has begun.

        Raises:
            Unavailable: this member does not lead, or does not answer.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable(f"member {self._spec.name} does not serve: {self._why}")
        outcome: list[Refused | None] = []
        ready = threading.Event()

        def done(refused: Refused | None) -> None:
            outcome.append(refused)
            ready.set()

        loop.inbox.put_own(LeadershipTransfer(target, done))
        if not ready.wait(STATUS_TIMEOUT_S):
            raise Unavailable(f"member {self._spec.name} does not answer")
        if outcome[0] is not None:
            raise Unavailable(f"member {self._spec.name} is not the leader")

    def begin_backup(self, created: float, patience: float, token: bytes = b"") -> Header:
        """Make a snapshot of the present state, to be fetched with ``backup_chunk``.

        Args:
            created: Unix time, for the backup's header.
            patience: seconds in which the member must have applied all that was committed when this was called.
            token: of a user with the role root, while users are needed: a backup holds everything.

        Raises:
            AuthFailed, PermissionDenied: it is not.
            Unavailable: the member does not serve, is making another backup, or did not catch up in time.
            DataCorrupted: its state is damaged.
        """
        loop = self._loop
        if loop is None:
            raise Unavailable(f"member {self._spec.name} does not serve: {self._why}")
        loop.handler.check_root(token, "begin_backup")
        return loop.backups.begin_backup(loop, self._spec.cluster_name, created, patience)

    def backup_chunk(self, snapshot: str, offset: int, size: int) -> bytes:
        """Bytes of the snapshot with that id. Raises ``Unavailable`` if it is gone."""
        loop = self._loop
        if loop is None:
            raise Unavailable(f"member {self._spec.name} does not serve: {self._why}")
        return loop.backups.read_chunk(snapshot, offset, size)

    def end_backup(self, snapshot: str) -> None:
        """Remove the snapshot with that id."""
        loop = self._loop
        if loop is not None:
            loop.backups.end_backup(snapshot)

    def stop(self) -> None:
        """Stop serving and close the data; the actor stays up until it is killed."""
        self._stopped = True
        self._open_now.set()
        self._end("it was stopped", logging.INFO)

    def _end(self, why: str, level: int = logging.WARNING) -> None:
        """Stop serving and keep the reason for the status. Also called when the loop has ended by itself: if the
        process ended with it, Ray would start another that ends in the same way."""
        with self._opening:
            loop, self._loop = self._loop, None
            if self._maintenance is not None:
                self._maintenance.stop()
            if loop is not None:
                loop.stop(why)
            self._give_up(why, level)

    # -- opening the data ---------------------------------------------------------------------------------------------

    def _start_opening(self) -> None:
        with self._opener:
            if self._loop is not None or self._stopped:
                return
            if not self._opens:
                self._role, self._why, self._lost, self._missing = "starting", "it is starting", False, False
                try:
                    start_thread(threading.Thread(target=self._open, name="open data", daemon=True))
                except NoThreadLeft as error:
                    self._give_up(str(error))
                    raise
                self._opens = True
            else:
                self._role = "starting"  # the reason stays, which is logged once
                self._open_now.set()  # last: if an attempt ended just now, there is another, which tells how it ended

    def _open(self) -> None:
        """Try to open the data until it is clear whether that can be: while the disk or the system refuses, with
        growing pauses."""
        pause = OPEN_PAUSE_S
        while True:
            self._open_now.clear()
            refused = self._is_refused()
            if refused and not self._stopped:
                asked = self._open_now.wait(pause)
                pause = OPEN_PAUSE_S if asked else min(2 * pause, OPEN_MAX_PAUSE_S)
            with self._opener:
                again = refused or (self._open_now.is_set() and self._loop is None)
                if self._stopped or not again:
                    self._opens = False
                    return

    def _is_refused(self) -> bool:
        """Open the data and serve; True if the disk was full, or refused something, or the system had no thread or
        memory left, which may pass: a read that fails says nothing of what is on the disk. Every failure becomes the
        reason in the status, and sets what a supervisor needs to know: whether the data is lost, or only missing
        here."""
        self._opening.acquire()
        self._opening_since = time.monotonic()
        try:
            if self._loop is None and not self._stopped:
                self._lost = self._missing = False  # what the try before has found may be mended
                if self._lock_directory():
                    self._serve()
        except NoSpace as error:
            self._give_up(f"NoSpace: {error}")
            return True
        except KeeperError as error:
            # If another member's data is here, this one's may be elsewhere: hosts can swap their addresses.
            self._missing = isinstance(error, (DataMissing, ClusterMismatch))
            self._lost = self._missing or isinstance(error, LogDamaged)
            self._give_up(f"{type(error).__name__}: {error}")
        except OSError as error:
            self._give_up(f"its data directory cannot be used: {error}")
            return True
        except (NoThreadLeft, MemoryError) as error:
            self._give_up(f"{type(error).__name__}: {error}")
            return True
        except Exception as error:
            self._log.exception("the data could not be opened")
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            self._opening_since = None
            self._opening.release()
        return False

    def _give_up(self, why: str, level: int = logging.WARNING) -> None:
        if why != self._why:  # a full disk is tried again and again
            self._log.log(level, "does not serve: %s", why)
        self._role, self._why = GAVE_UP, why
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock_directory(self) -> bool:
        """Lock the data directory against every other process; False once stopped. The actor's name is not enough: Ray
        may start a second process while the first still runs, cut off from it."""
        base, name = os.path.split(self._spec.folder)
        if not is_folder(self._spec.folder):
            raise DataMissing(f"there is no data directory {self._spec.folder}")
        pause = threading.Event()
        while not self._stopped:
            fd = try_lock(base, name)
            if fd is not None:
                self._lock_fd = fd
                self._role = "starting"  # in each attempt; the reason stays, which is logged once
                return True
            self._why = f"another process holds the lock on {self._spec.folder}"
            pause.wait(LOCK_PAUSE_S)
        return False

    def _serve(self) -> None:
        """Open the data and start the loop, after checking that the data is this member's: a vote under another's id
        could elect two leaders. A start applies again what the log holds and the state has not on disk. If there were
        no room for that, the process would end and start again and again."""
        spec = self._spec
        self._narrow_folders()
        check_room(spec.folder, START_FREE_BYTES)
        folder = DataDir.open(member_disk(), spec.folder, rebuild=True)
        try:
            identity = folder.identity
            if (identity.cluster, identity.member) != (spec.cluster, spec.member):
                raise ClusterMismatch(
                    f"{spec.folder} holds {identity.name} of cluster {identity.cluster_name} "
                    f"(id {identity.cluster:x}), not {spec.name} of cluster {spec.cluster_name} (id {spec.cluster:x})"
                )
            check_room(spec.folder, START_FREE_BYTES + folder.log.size_bytes)
            host: str = _util.get_node_ip_address()
            loop = EventLoop(
                folder, self._lookup, self._status, ProcessLocation(self._node_id, host), self._end, PROCESS
            )
        except BaseException:
            folder.close()
            raise
        # What exists by now stays: the garbage collector need not visit it again.
        gc.collect()
        gc.freeze()
        try:
            self._note_served()
            self._loop = loop
            loop.start()
            administer_as(spec.cluster_name, lambda member: loop.handler.own_token())
            register_in_background(spec, loop.replica, lambda: self._loop is loop)
            self._maintenance = Maintenance(
                spec.cluster_name, spec.cluster, loop.replica, spec.folder, loop.backups.drop_idle
            )
        except BaseException as error:
            # The caller gives up the lock, so nothing may use the data any more.
            self._loop = None
            loop.stop(f"it could not be started: {error}")
            gc.unfreeze()  # what is left of it is garbage
            raise
        self._noted = None
        self._why = ""
        self._log.info("serves; its log ends at index %d, process %d", folder.log.last_index(), os.getpid())

    def _note_served(self) -> None:
        """Note that it starts to serve, once for all attempts until it serves: by this count the newest of several
        folders is known, so attempts that fail must not make an older one look newer."""
        before = read_served(self._spec.folder)
        if before != self._noted:
            note_served(self._spec.folder)
            after = read_served(self._spec.folder)
            self._noted = after if after != before else None  # the disk may be full

    def _narrow_folders(self) -> None:
        """Nobody but this process's user may read the data, or change it."""
        for folder, deep in ((os.path.dirname(self._spec.folder), False), (self._spec.folder, True)):
            if narrow(folder, deep=deep):
                self._log.warning("%s was open to other users of this machine; now it is not", folder)

    def _lookup(self, member: int) -> Any:
        return ray.get_actor(actor_name(self._spec.cluster_name, member_name(member)), namespace=NAMESPACE)

    # -- status -------------------------------------------------------------------------------------------------------

    def _status(self) -> MemberStatus:
        """Read outside the loop: each number is correct, but they may be of different moments."""
        spec, loop = self._spec, self._loop
        if loop is None:
            return self._status_not_serving()
        node, folder, maintenance = loop.replica.node, loop.replica.folder, self._maintenance
        state, log = folder.state, folder.log
        now, table = member_clock(), state.members.by_id
        leads, changes = loop.replica.is_leader, loop.replica.config_changes
        lacking_for, load = loop.replica.commit_times.lacking_for, loop.handler.load.total()
        alarms = [AlarmStatus(who, kind.name, said) for (who, kind), said in sorted(state.alarms.items())]
        return MemberStatus(
            cluster_name=spec.cluster_name,
            cluster=spec.cluster,
            member=spec.member,
            name=spec.name,
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
            db_size_in_use=state.size_in_use() + log.size_bytes,
            pid=os.getpid(),
            node=self._node_id,
            session_count=len(state.sessions),
            settings=state.settings,
            why_not_serving=loop.replica.why_not_serving,
            alarms=tuple(alarms),
            contents=loop.replica.hashing.results,
            contents_begin=loop.replica.hashing.begins,
            free_bytes=maintenance.free if maintenance is not None else 0,
            outgoing=node.configuration.outgoing,
            configuration_index=node.configuration.index,
            table=tuple(known for _, known in sorted(table.items()) if not known.removed),
            removed=tuple([known for _, known in sorted(table.items()) if known.removed][-MAX_LEFTOVERS:]),
            silent=changes.silent_for(now) if leads else {},
            leading_for=changes.leading_for(now) if leads else 0.0,
            caught_up=tuple(sorted(filter(changes.caught_up, node.configuration.members))) if leads else (),
            version=COMMANDS_VERSION,
            active_version=loop.replica.active_version,
            without_lane=loop.transport.without_lane(),
            clocks=loop.transport.clocks.offsets(),
            role_for=max(0.0, now - loop.replica.role_since),
            lost_since=lost_members(state.latest_events),
            stuck_for=loop.stuck_for(),
            lacking_for=(
                {
                    member: lacking_for(progress.match_index, now)
                    for member, progress in list(node.progress.items())
                    if member != node.id
                }
                if leads
                else {}
            ),
            puts=load.writes,
            gets=load.reads,
        )

    def _status_not_serving(self) -> MemberStatus:
        """Of a member without a loop: it says who it is, and why it does not serve."""
        spec, since = self._spec, self._opening_since
        return MemberStatus(
            cluster_name=spec.cluster_name,
            cluster=spec.cluster,
            member=spec.member,
            name=spec.name,
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
            stuck_for=0.0 if since is None else time.monotonic() - since,
            opening=since is not None and self._lock_fd >= 0,
        )


def host_member(spec: bytes) -> Member:
    """A member for its actor. Where the system has no thread or memory for it the process ends, and Ray starts another:
    an actor whose constructor raises it would give up."""
    try:
        return Member(spec)
    except (NoThreadLeft, MemoryError):
        time.sleep(OPEN_PAUSE_S)  # so that Ray is not kept busy
        known = decode_member_spec(spec)
        die(MemberLog("member", known.cluster_name, known.name), "it cannot be started")


def check_room(folder: str, needed: int) -> None:
    """Raise ``NoSpace`` unless so many bytes are free on a folder's disk."""
    free = free_bytes(folder)
    if free < needed:
        raise NoSpace(f"{free / 1e6:.1f} MB are free on the disk of {folder}, and a start needs {needed / 1e6:.1f} MB")


class _DeadlineOf(msgspec.Struct, array_like=True):
    """The first fields of every request that has a deadline."""

    kind: int
    cluster: int
    deadline: RelativeDeadline


class _DeadlineOfUser(msgspec.Struct, array_like=True):
    """The same of a request of a user."""

    kind: int
    token: bytes
    request: _DeadlineOf


_decode_deadline = msgspec.msgpack.Decoder(_DeadlineOf).decode
_decode_deadline_of_user = msgspec.msgpack.Decoder(_DeadlineOfUser).decode
_AS_USER = bytes([AsUser.__struct_config__.tag])  # type: ignore[list-item]
"""The tag of the request of a user, after the header of its fields."""


def deadline_of(frame: bytes) -> float:
    """The deadline of a request frame in seconds from its arrival; 0 for one that has none."""
    try:
        found = _decode_deadline_of_user(frame).request if frame[1:2] == _AS_USER else _decode_deadline(frame)
        return max(0.0, min(found.deadline, MAX_FRAME_DEADLINE_S))
    except (msgspec.MsgspecError, RecursionError):
        return 0.0


_util: Any = ray.util
