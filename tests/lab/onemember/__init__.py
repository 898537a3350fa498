"""A cluster of one real member inside the test's own process: real replica, store, watches and leases; no Ray, no disk.

What it is for: tests of what stands on the client, at the speed of a unit test. Clients can be cut off from it.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import msgspec

from lab.lanes import LaneHost
from lab.patience import PATIENCE, until
from raykeeper import Client
from raykeeper.actors.client import hub_pool
from raykeeper.actors.member.event_loop import EventLoop
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.client_transport import OnOwnThreads
from raykeeper.actors.transport.lane import LaneOffer
from raykeeper.limits import Settings, Timings, encode_settings
from raykeeper.schema.frames import Reply, Request
from raykeeper.schema.operator_frames import AlarmStatus, MemberStatus
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.interface import Disk
from simulation.disk import SimDisk

_numbers = itertools.count(1)
SETTINGS = Settings(timings=Timings(heartbeat_interval=0.02, election_timeout=0.1))

Done = Callable[[bytes | Exception], None]
Answered = Callable[[Callable[[], bytes]], None]


class OneMember(OnOwnThreads):
    """The member, and the transport to it. Its data lies in memory, unless another disk is given.

    Args:
        by_lane: clients reach it by real lanes.
    """

    def __init__(self, disk: Disk | None = None, path: str = "data", *, by_lane: bool = False) -> None:
        self.name = f"one-{next(_numbers)}"
        self.node = ""
        self.cluster = 1000 + next(_numbers)
        identity = Identity(
            cluster_name=self.name,
            cluster=self.cluster,
            member=1,
            name="m1",
            members=(FirstMember(1, "m1", ""),),
            settings=SETTINGS,
        )
        folder = DataDir.create(SimDisk() if disk is None else disk, path, identity)
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="answers")
        self._arriving: SimpleQueue[tuple[bytes, Answered] | None] = SimpleQueue()
        """What clients have sent. No code of the member runs on their threads, as none does where it is another
        process: a signal may not interrupt it there, whose handler sends again. Such a queue may be interrupted."""
        self.gave_up: list[str] = []
        self.loop = EventLoop(folder, lambda member: None, self._status, gave_up=self.gave_up.append)
        self.loop.start()
        self._closed = False
        self._arriver = threading.Thread(target=self._arrive, name="answers to come", daemon=True)
        self._arriver.start()
        self.cut = False
        self.lanes = LaneHost(submit=self.loop.handler.handle_request) if by_lane else None

    def wait_until_it_leads(self) -> None:
        """Calls of a test that have little time are not to wait for an election."""
        until(lambda: self.loop.replica.is_leader and self.loop.replica.duties.term, what="a leader")

    # -- what the registry of hubs asks of a transport ----------------------------------------------------------------

    def members(self) -> dict[int, str]:
        return {1: "m1"}

    def refresh(self) -> None:
        pass

    def valid(self) -> bool:
        return True

    def send(self, member: int, frame: bytes, done: Done) -> None:
        if self._closed:
            raise ConnectionError("the member is gone")
        if self.cut:
            return  # as over a network that swallows everything: no answer, ever

        def answer(make: Callable[[], bytes]) -> None:
            self._threads.submit(self._finish, make, done)

        self._arriving.put((frame, answer))

    poll = send

    def _arrive(self) -> None:
        while (arrived := self._arriving.get()) is not None:
            self.loop.handler.handle_request(*arrived)

    def _finish(self, make: Callable[[], bytes], done: Done) -> None:
        try:
            reply: bytes | Exception = make()
        except Exception as error:
            reply = error
        if not self.cut:
            done(reply)

    def _status(self) -> MemberStatus:
        node, folder = self.loop.replica.node, self.loop.replica.folder
        state = folder.state
        return MemberStatus(
            cluster_name=self.name,
            cluster=self.cluster,
            member=1,
            name="m1",
            role=node.role,
            term=node.term,
            leader=node.leader,
            commit_index=node.commit_index,
            applied_index=state.applied_index,
            last_log_index=0,
            first_log_index=0,
            revision=state.revision,
            compact_revision=state.compact_revision,
            voters=node.configuration.voters,
            learners=node.configuration.learners,
            db_size=state.size() + folder.log.size_bytes,
            db_size_in_use=state.size_in_use() + folder.log.size_bytes,
            pid=os.getpid(),
            node="",
            why_not_serving="",
            settings=encode_settings(SETTINGS),
            contents=self.loop.replica.hashing.results,
            contents_begin=self.loop.replica.hashing.begins,
            alarms=tuple([AlarmStatus(member, kind.name, why) for (member, kind), why in state.alarms.items()]),
        )

    # -- what tests ask -----------------------------------------------------------------------------------------------

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """See ``ActorCalls``."""
        future: Future[LaneOffer | None] = Future()
        future.set_result(None if self.lanes is None else self.lanes.lanes.offer_lane(""))
        return future

    def client(self) -> Client:
        """A handle of this process's hub."""
        share = hub_pool.open_hub(self.name, PATIENCE, self.cluster)
        return Client(self.name, self.cluster, timeout=PATIENCE, share=share)

    def ask(self, request: Request) -> Any:
        """The reply to a frame."""
        got: list[bytes | Exception] = []
        ready = threading.Event()

        def done(reply: bytes | Exception) -> None:
            got.append(reply)
            ready.set()

        self.send(1, msgspec.msgpack.encode(request), done)
        assert ready.wait(PATIENCE)
        assert isinstance(got[0], bytes), got
        return msgspec.msgpack.decode(got[0], type=Reply)

    def thread_count(self) -> int:
        """The threads of this process but for those that stand for the network here."""
        return sum(not thread.name.startswith("answers") for thread in threading.enumerate())

    @property
    def leases(self) -> set[int]:
        """The ids of all leases that there are. Those of earlier tests may end at any moment, so look at the others."""
        return set(self.loop.replica.folder.state.leases)

    @property
    def watches(self) -> int:
        """How many watches the process has."""
        share = hub_pool.open_hub(self.name, PATIENCE, self.cluster)
        return (
            sum(1 for each in share.hub.watch_core._watches.values())
            if hasattr(share.hub.watch_core, "_watches")
            else -1
        )

    def close(self) -> None:
        if self.lanes is not None:
            self.lanes.close()
        self._closed = True
        self._arriving.put(None)
        self._arriver.join(PATIENCE)
        self.loop.stop("the test is over")
        self._threads.shutdown(wait=False)


class _Way:
    """A hub's transport to the member, which is not closed with it."""

    def __init__(self, member: OneMember) -> None:
        self._member = member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def close(self) -> None:
        pass


@contextmanager
def one_member(disk: Disk | None = None, path: str = "data", *, by_lane: bool = False) -> Iterator[OneMember]:
    """A member for one test or many."""
    before = hub_pool.make_transport
    made: dict[str, OneMember] = {}

    def transport(name: str) -> Any:
        way: Any = _Way(made[name])
        return LaneTransport(way) if by_lane else way

    hub_pool.make_transport = transport
    member = OneMember(disk, path, by_lane=by_lane)
    made[member.name] = member
    try:
        member.wait_until_it_leads()
        yield member
    finally:
        hub_pool.make_transport = before
        member.close()


def in_thread(work: Callable[[], Any]) -> Background:
    """Run something beside the test."""
    return Background(work)


class Background:
    """A thread with a result."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []
        self._error: list[BaseException] = []

        def run() -> None:
            try:
                self._outcome.append(work())
            except BaseException as error:
                self._error.append(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, seconds: float = PATIENCE) -> Any:
        self.thread.join(seconds)
        assert self.done, f"not finished within {seconds} s"
        if self._error:
            raise self._error[0]
        return self._outcome[0]
