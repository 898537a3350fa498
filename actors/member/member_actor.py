"""The Ray actor class of a member, as light as a client needs it.

Ray loads the class of an actor in every process that looks the actor up, to learn its methods. Each client looks up the
members, and must not load RocksDB and the state machine for that. So this class imports the member only where it is
made, in the actor's own process. What its methods do is documented in ``actor.Member``.

The actor is threaded, and its threads are in groups, so that waiting clients can never lock out the peers or the
control calls that would release them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from ...limits import CLIENT_THREADS, CONTROL_THREADS, PEER_THREADS, WATCH_THREADS

if TYPE_CHECKING:
    from ...schema.operator_frames import MemberStatus
    from ...store.backup_file import Header
    from ...store.data_dir import Identity
    from ..naming import MemberSpec
    from ..transport.lane import LaneOffer


class MemberHost:
    """Receives a member's calls. Started by ``launch``.

    Args:
        spec: an encoded ``naming.MemberSpec``.
    """

    def __init__(self, spec: bytes) -> None:
        from .actor import host_member

        self.member = host_member(spec)

    @ray.method(concurrency_group="client")
    def request(self, frame: bytes) -> bytes:
        """See ``Member``."""
        return self.member.request(frame)

    @ray.method(concurrency_group="watch")
    def watch(self, frame: bytes) -> bytes:
        """See ``Member``."""
        return self.member.watch(frame)

    @ray.method(concurrency_group="peer")
    def append_entries(self, frame: bytes) -> bytes:
        """See ``Member``."""
        return self.member.append_entries(frame)

    @ray.method(concurrency_group="peer")
    def request_vote(self, frame: bytes) -> bytes:
        """See ``Member``."""
        return self.member.request_vote(frame)

    @ray.method(concurrency_group="peer")
    def install_snapshot(self, frame: bytes) -> bytes:
        """See ``Member``."""
        return self.member.install_snapshot(frame)

    @ray.method(concurrency_group="control")
    def status(self) -> MemberStatus:
        """See ``Member``."""
        return self.member.status()

    @ray.method(concurrency_group="control")
    def member_spec(self) -> MemberSpec:
        """See ``Member``."""
        return self.member.member_spec()

    @ray.method(concurrency_group="control")
    def identity(self) -> Identity | None:
        """See ``Member``."""
        return self.member.identity()

    @ray.method(concurrency_group="control")
    def lane(self, node: str, peer: bool = False) -> LaneOffer | None:
        """See ``Member``."""
        return self.member.lane(node, peer)

    @ray.method(concurrency_group="control")
    def own_token(self) -> bytes:
        """See ``Member``."""
        return self.member.own_token()

    @ray.method(concurrency_group="control")
    def counters(self) -> dict[str, int]:
        """See ``Member``."""
        return self.member.counters()

    @ray.method(concurrency_group="control")
    def open(self) -> None:
        """See ``Member``."""
        self.member.open()

    @ray.method(concurrency_group="control")
    def campaign(self) -> None:
        """See ``Member``."""
        self.member.campaign()

    @ray.method(concurrency_group="control")
    def move_leader(self, target: int) -> None:
        """See ``Member``."""
        self.member.move_leader(target)

    @ray.method(concurrency_group="control")
    def begin_backup(self, created: float, patience: float, token: bytes = b"") -> Header:
        """See ``Member``."""
        return self.member.begin_backup(created, patience, token)

    @ray.method(concurrency_group="control")
    def backup_chunk(self, snapshot: str, offset: int, size: int) -> bytes:
        """See ``Member``."""
        return self.member.backup_chunk(snapshot, offset, size)

    @ray.method(concurrency_group="control")
    def end_backup(self, snapshot: str) -> None:
        """See ``Member``."""
        self.member.end_backup(snapshot)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """See ``Member``."""
        self.member.stop()


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
)(MemberHost)
"""The actor class. ``spawn.start_actor`` names, pins and detaches its actors."""
