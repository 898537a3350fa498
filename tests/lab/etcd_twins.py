"""A real etcd and the proxy's services side by side: the same requests to both, and answers that can be compared.

The two stores live on from one sequence of requests to the next, at revisions of their own. So each sequence begins at
a *base*: both stores are emptied and compacted, and revisions are counted from there. In a request, a revision of
``RELATIVE + n`` stands for the base and n; answers are counted back in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from lab.etcd import Etcd, running_etcd
from lab.etcd_differences import difference
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.proxy.etcdpb import rpc_pb2
from raykeeper.actors.proxy.etcdpb.message_pool import methods

RELATIVE = 1_000_000
REVISIONS = {
    "revision",
    "create_revision",
    "mod_revision",
    "min_mod_revision",
    "max_mod_revision",
    "min_create_revision",
    "max_create_revision",
    "start_revision",
    "compact_revision",
    "rev",
}
OWN = {"cluster_id", "member_id", "raft_term"}
"""Of a header: each store has its own."""


class Apart(Exception):
    """From here on the two stores differ, for a reason that is known."""


class Server(Protocol):
    """What answers bytes with bytes, or with code and text."""

    def call(self, path: str, request: bytes) -> bytes | tuple[int, str]: ...

    def stream(self, path: str) -> Any: ...


class Side:
    """One of the two."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.base = 0

    def begin(self) -> None:
        """Empty the store, and count revisions from here on."""
        leases = self.ask("/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest())
        for lease in leases.leases:
            self.ask("/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease.ID))
        self.ask("/etcdserverpb.KV/Put", rpc_pb2.PutRequest(key=b"k"))
        all_keys = rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        self.base = self.ask("/etcdserverpb.KV/DeleteRange", all_keys).header.revision
        self.ask("/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest(revision=self.base))

    def ask(self, path: str, request: Message) -> Any:
        """The answer, as it is."""
        answer = self.server.call(path, request.SerializeToString())
        assert isinstance(answer, bytes), (path, request, answer)
        return methods()[path].response.FromString(answer)

    def relative(self, path: str, request: Message) -> Any:
        """The answer to a request, both with revisions from the base on; or code and text."""
        answer = self.server.call(path, self.absolute(request).SerializeToString())
        if not isinstance(answer, bytes):
            return answer
        return self.plain(methods()[path].response.FromString(answer))

    def absolute(self, request: Message) -> Message:
        """A request with this store's own revisions."""
        moved = type(request)()
        moved.CopyFrom(request)
        shift(moved, self.base - RELATIVE, RELATIVE // 2)
        return moved

    def plain(self, answer: Message) -> dict[str, Any]:
        """An answer's content, with relative revisions and without what is each store's own."""
        compacted = getattr(answer, "compact_revision", 0) > 0
        own(answer)
        shift(answer, -self.base, 1)
        content: dict[str, Any] = MessageToDict(answer, preserving_proto_field_name=True)
        if compacted:
            content.setdefault("compact_revision", "0")  # the base is a revision, too
        return content


def shift(message: Message, by: int, at_least: int) -> None:
    """Move all revisions that are not below a number."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                shift(each, by, at_least)
        elif field.name in REVISIONS and value >= at_least:
            setattr(message, field.name, value + by)


def own(message: Message) -> None:
    """Replace what is each store's own by whether it is there."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                own(each)
        elif field.name in OWN:
            setattr(message, field.name, 1)


class SideStream:
    """A stream to one of the two, with relative revisions."""

    def __init__(self, side: Side, path: str) -> None:
        self._side = side
        self._path = path
        self._stream = side.server.stream(path)

    def send(self, request: Message) -> None:
        self._stream.send(self._side.absolute(request).SerializeToString())

    def receive(self, timeout: float = PATIENCE) -> Any:
        answer = self._stream.receive(timeout)
        if not isinstance(answer, bytes):
            return answer
        return self._side.plain(methods()[self._path].response.FromString(answer))

    def finish(self) -> None:
        self._stream.finish()

    def close(self) -> None:
        self._stream.close()


class TwinStream:
    """A stream to both."""

    def __init__(self, sides: tuple[Side, Side], path: str) -> None:
        self.streams = [SideStream(side, path) for side in sides]

    def send(self, request: Message) -> None:
        for stream in self.streams:
            stream.send(request)

    def receive(self, timeout: float = PATIENCE) -> Any:
        """The next answer, which both give.

        Raises:
            AssertionError: they differ.
            queue.Empty: one of them gives none in time.
        """
        theirs, ours = (stream.receive(timeout) for stream in self.streams)
        assert ours == theirs, f"etcd:  {theirs}\nours:  {ours}"
        return ours

    def finish(self) -> None:
        for stream in self.streams:
            stream.finish()

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


class Twins:
    """Both, see the module."""

    def __init__(self, etcd: Etcd, proxy: LabProxy) -> None:
        self.etcd, self.proxy = etcd, proxy
        self.sides = Side(etcd), Side(proxy)

    def begin(self) -> None:
        """Begin a sequence of requests."""
        for side in self.sides:
            side.begin()

    @contextmanager
    def stream(self, path: str) -> Iterator[TwinStream]:
        """A stream to both."""
        stream = TwinStream(self.sides, path)
        try:
            yield stream
        finally:
            stream.close()

    def ask(self, path: str, request: Message) -> Any:
        """The answer that both give; ours, if they differ and may (``lab/etcd_differences.py``).

        Raises:
            AssertionError: they differ.
            Apart: they may, and the stores have become different by it.
        """
        theirs, ours = (side.relative(path, request) for side in self.sides)
        if theirs != ours:
            known = difference(request, theirs, ours)
            assert known is not None, f"{path}\n{request}\netcd:  {theirs}\nours:  {ours}"
            if known.apart:
                raise Apart(known.reason)
        return ours


@contextmanager
def twins() -> Iterator[Twins]:
    """The two, for some tests."""
    with running_etcd() as etcd, lab_proxy() as proxy:
        yield Twins(etcd, proxy)
