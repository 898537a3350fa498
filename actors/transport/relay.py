"""A client's frames by way of a proxy on its node, for shells: attaching to Ray takes a second, this a millisecond.

The proxy listens on a Unix socket that only its own user can reach, and hands on what comes: a frame for a member, a
question for a lane to one, a question that only Ray can answer. So a shell has the same handles, over the same lanes,
as a process of Ray's, and its lanes lead to the members themselves. If the proxy ends meanwhile, or does not answer in
time, the process attaches to Ray after all, when the hub next looks for the members; what was under way fails then, and
the hub sends it again.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import select
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from ...errors import ReentrantCall, Unavailable
from ...limits import (
    MAX_RELAY_FRAME_BYTES,
    RELAY_MOVE_LEADER_S,
    RELAY_RAY_VIEW_S,
    RELAY_SEND_TIMEOUT_S,
    RELAY_TIMEOUT_S,
)
from .. import finalizer_guard
from ..deadline import at_most
from ..ray_view import RayView, decode_ray_view
from .client_transport import OnOwnThreads, ReplyReceiver

if TYPE_CHECKING:  # a shell that opens no lane loads neither, nor asyncio and TLS
    from .client_lanes import ActorCalls
    from .lane import LaneOffer

LENGTH = struct.Struct(">I")
"""What stands before each message."""


class RelayKind(enum.IntEnum):
    """What a request is for."""

    MEMBERS = 0
    """The members, as the proxy last looked them up: answered with ``RelayMembers``."""
    REQUEST = 1
    """A frame for a member."""
    POLL = 2
    """A poll of watches for a member."""
    LANE = 3
    """An offer of a lane to a member: answered with ``LaneOffer``, or with no bytes."""
    REFRESH = 4
    """As ``MEMBERS``, after the proxy has looked them up again; as it knows them, if Ray takes too long."""
    RAY_VIEW = 5
    """What Ray knows around the members: answered with ``RayView``."""
    MOVE_LEADER = 6
    """The member is to hand leadership to the one whose id is the frame, in decimal digits: answered once it has begun
    to, with no bytes."""


class RelayRequest(msgspec.Struct, frozen=True, array_like=True):
    """What a shell asks of a proxy."""

    number: int
    """Chosen by the shell; the answer has it."""
    kind: RelayKind
    member: int = 0
    frame: bytes = b""


class RelayReply(msgspec.Struct, frozen=True, array_like=True):
    """The proxy's answer."""

    number: int
    data: bytes = b""
    error: str = ""
    """Why there is no answer; empty if there is one."""


class RelayMembers(msgspec.Struct, frozen=True, array_like=True):
    """Who can be reached."""

    node: str
    """Id of the Ray node of the proxy, and so of the shell."""
    names: dict[int, str]
    """Names of the members, by id."""


_encode = msgspec.msgpack.Encoder().encode
_decode_reply = msgspec.msgpack.Decoder(RelayReply).decode
_decode_members = msgspec.msgpack.Decoder(RelayMembers).decode


class RelayCalls(OnOwnThreads):
    """In the place of the transport by actor calls (``ActorCalls``).

    Args:
        path: the proxy's socket.
        by_ray: attaches this process to Ray, and makes the transport by actor calls; if the proxy ends or hangs.

    Raises:
        OSError: nobody listens there, or too many wait to be accepted.
        Unavailable: the proxy does not answer before the deadline of the present call.
    """

    def __init__(self, path: str, by_ray: Callable[[], ActorCalls]) -> None:
        self._make_by_ray = by_ray
        self._by_ray: ActorCalls | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, ReplyReceiver] = {}
        """Who waits for an answer, by the request's number. There is no lock: who takes an entry out calls it."""
        self._broken = self._closed = False
        self._sending = threading.RLock()  # never taken twice by a thread; an RLock, because it knows its owner
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(RELAY_SEND_TIMEOUT_S)
            self._socket.connect(path)  # with a timeout, it never waits: a full backlog refuses
        except BaseException:
            self._socket.close()
            raise
        self._reader = threading.Thread(target=self._read, name="raykeeper-relay", daemon=True)
        self._reader.start()
        try:
            self._members = self._look(RelayKind.MEMBERS)
        except BaseException:
            self.close()
            raise

    @property
    def node(self) -> str:
        """See ``ClientTransport``."""
        return self._members.node

    def members(self) -> dict[int, str]:
        """See ``ClientTransport``."""
        return dict(self._members.names) if self._by_ray is None else self._by_ray.members()

    def refresh(self) -> None:
        """See ``ClientTransport``; attaches to Ray if the proxy has ended, or does not answer in time.

        Raises:
            KeeperError: neither the proxy nor Ray answers in time.
        """
        if self._by_ray is not None:
            self._by_ray.refresh()
            return
        if not self._broken or self._closed:
            try:
                self._members = self._look(RelayKind.REFRESH)
                return
            except Unavailable:
                if not self._broken or self._closed:
                    raise
        self._by_ray = self._make_by_ray()

    def valid(self) -> bool:
        """See ``ClientTransport``."""
        return not self._closed and (self._by_ray is None or self._by_ray.valid())

    @property
    def goes_by_ray(self) -> bool:
        """Whether this process has attached to Ray, because the proxy has ended or did not answer."""
        return self._by_ray is not None

    def ray_view(self) -> RayView | None:
        """What Ray knows around the members, by the proxy's word; ``None`` if this process has attached to Ray, because
        the proxy has ended or does not answer.

        Raises:
            KeeperError: neither the proxy nor Ray answers in time, or the proxy could not look.
        """
        if self._by_ray is None and (not self._broken or self._closed):
            try:
                return decode_ray_view(self._question(RelayKind.RAY_VIEW, RELAY_RAY_VIEW_S))
            except Unavailable:
                if not self._broken or self._closed:
                    raise
        self.refresh()
        return None

    def move_leader(self, leader: int, target: int) -> bool:
        """Have the leader hand leadership to another member; whether it has begun to."""
        try:
            self._question(RelayKind.MOVE_LEADER, RELAY_MOVE_LEADER_S, leader, b"%d" % target)
        except Unavailable:
            return False
        return True

    def send(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """See ``ClientTransport``; it blocks while the proxy does not read, ``RELAY_SEND_TIMEOUT_S`` at most."""
        if self._by_ray is not None:
            self._by_ray.send(member, frame, done)
        else:
            self._ask(RelayKind.REQUEST, member, frame, done)

    def poll(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """See ``ClientTransport``."""
        if self._by_ray is not None:
            self._by_ray.poll(member, frame, done)
        else:
            self._ask(RelayKind.POLL, member, frame, done)

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """See ``ActorCalls``."""
        if self._by_ray is not None:
            return self._by_ray.ask_for_lane(member)
        from .lane import LaneOffer

        future: Future[LaneOffer | None] = Future()

        def done(reply: bytes | Exception) -> None:
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(msgspec.msgpack.decode(reply, type=LaneOffer) if reply else None)

        self._ask(RelayKind.LANE, member, b"", done)
        return future

    def is_held_here(self) -> bool:
        """See ``ClientTransport``."""
        by_ray = self._by_ray
        return finalizer_guard.held_by_this_thread(self._sending) or (by_ray is not None and by_ray.is_held_here())

    def close(self) -> None:
        """See ``ClientTransport``."""
        self._closed = True
        self._end(ConnectionError("it was closed"))
        if self._by_ray is not None:
            self._by_ray.close()

    # -- the socket ---------------------------------------------------------------------------------------------------

    def _look(self, kind: RelayKind) -> RelayMembers:
        return _decode_members(self._question(kind, RELAY_TIMEOUT_S))

    def _question(self, kind: RelayKind, longest: float, member: int = 0, frame: bytes = b"") -> bytes:
        """The answer to a question for the proxy itself; one that takes ``longest`` seconds counts as hanging.

        Raises:
            Unavailable: it has none.
        """
        ready = threading.Event()
        got: list[bytes | Exception] = []

        def done(reply: bytes | Exception) -> None:
            got.append(reply)
            ready.set()

        patience = at_most(longest)
        number = self._ask(kind, member, frame, done)
        try:
            if not ready.wait(patience):
                if patience >= longest:  # not merely a caller with little time
                    self._end(ConnectionError("the proxy on this node does not answer"))
                raise Unavailable("the proxy on this node does not answer", applied=False)
        finally:
            self._waiting.pop(number, None)
        if isinstance(got[0], Exception):
            raise Unavailable(f"the proxy on this node does not answer: {got[0]}", applied=False)
        return got[0]

    def _ask(self, kind: RelayKind, member: int, frame: bytes, done: ReplyReceiver) -> int:
        """Send a request, and return its number. Half of it may be on the stream if that fails, or if a signal handler
        raises meanwhile: either ends the connection."""
        if finalizer_guard.held_by_this_thread(self._sending):  # this is a signal handler, in the middle of sending
            done(ReentrantCall())
            return 0
        number = next(self._numbers)
        data = _encode(RelayRequest(number, kind, member, frame))
        try:
            self._waiting[number] = done  # first: if the connection ends from here on, this or `_end` takes it out
            if self._broken:
                raise ConnectionError("the proxy on this node has ended")
            with finalizer_guard.gc_deferred, self._sending:
                self._socket.sendall(LENGTH.pack(len(data)) + data)
        except OSError as error:
            self._end(error)
        except BaseException:
            self._waiting.pop(number, None)  # the caller is told by the exception
            self._end(ConnectionError("the connection to the proxy on this node was interrupted"))
            raise
        return number

    def _read(self) -> None:
        thread = finalizer_guard.ServiceThread()
        readable = select.poll()  # where `recv` would raise now and then, since sending has a timeout
        problem: Exception = ConnectionError("the proxy on this node has ended")
        try:
            readable.register(self._socket, select.POLLIN)
            while True:
                (length,) = LENGTH.unpack(self._receive(LENGTH.size, thread, readable))
                if length > MAX_RELAY_FRAME_BYTES:
                    raise ConnectionError("the proxy on this node sent something else")
                data = self._receive(length, thread, readable)
                reply = _decode_reply(data)
                done = self._waiting.pop(reply.number, None)
                if done is not None:
                    done(ConnectionError(reply.error) if reply.error else reply.data)
        except (OSError, msgspec.MsgspecError) as error:
            problem = error
        finally:
            self._end(problem)
            thread.close()

    def _receive(self, size: int, thread: finalizer_guard.ServiceThread, readable: select.poll) -> bytes:
        """So many bytes; the thread is idle while it waits for them.

        Raises:
            OSError: the connection has ended.
        """
        data = bytearray()
        while len(data) < size:
            thread.idle()
            readable.poll()
            thread.busy()
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionError("the proxy on this node has ended")
            data += part
        return bytes(data)

    def _end(self, error: Exception) -> None:
        """The connection is of no more use: what waits for an answer gets none."""
        self._broken = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        if threading.current_thread() is self._reader:
            self._socket.close()
        while self._waiting:
            try:
                _, done = self._waiting.popitem()
            except KeyError:  # another thread has taken the last one out
                return
            done(error)
