"""A busy client of a proxy does not hold up a quiet one: what one pass of the loop reads of each."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

import pytest

from lab.http2.listening import REQUEST, answer, connect, listening, run
from lab.http2.wire import HELLO
from raykeeper.actors.proxy.http1_protocol import Http1Protocol
from raykeeper.actors.proxy.http2_frames import PING, pack_frame
from raykeeper.actors.proxy.http2_protocol import Http2Protocol
from raykeeper.limits import PROXY_LEAST_READ_BYTES, PROXY_PASS_BYTES, PROXY_READ_BYTES

QUIET = 9
PLAIN, FRAMES = b"plain", b"frames"
"""Which HTTP the noisy client speaks."""


def endless(kind: bytes) -> bytes:
    """Far more than one pass reads, and nothing wrong with it."""
    return REQUEST * 20_000 if kind == PLAIN else pack_frame(PING, 0, 0, bytes(8)) * 30_000


def fill(sock: socket.socket, data: bytes) -> int:
    """Send what the kernel takes; how much that is."""
    sock.setblocking(False)
    sent = 0
    try:
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65_536])
    except BlockingIOError:
        pass
    return sent


async def served(sock: socket.socket) -> bool:
    """Whether the port answers a request, and all of its answer has come."""
    data = b""
    while part := await answer(sock):
        data += part
        if data.startswith(b"HTTP/1.1 404") and data.endswith(b"ound\n"):
            return True
    return False


@pytest.mark.parametrize("kind", [PLAIN, FRAMES], ids=str)
def test_nine_quiet_clients_beside_one_that_sends_without_end(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    """All have said something before the loop looks: each quiet one is read before the noisy one a second time, and of
    that one no more than its part."""
    steps: list[tuple[int, int]] = []
    for protocol in (Http1Protocol, Http2Protocol):

        def receive(self: object, data: bytes, real: Callable[[object, bytes], None] = protocol.data_received) -> None:
            peer = self._transport.get_extra_info("peername")[1]  # type: ignore[attr-defined]
            steps.append((peer, len(data)))
            real(self, data)

        monkeypatch.setattr(protocol, "data_received", receive)

    async def test() -> None:
        async with listening() as (listener, address):
            noisy = connect(address, HELLO if kind == FRAMES else REQUEST)
            quiet = [connect(address, REQUEST) for _ in range(QUIET)]
            assert await answer(noisy)
            for sock in quiet:
                assert await served(sock)
            listener.context.share_passes(0.0)
            part = PROXY_PASS_BYTES // (QUIET + 1)
            assert listener.context.read_bytes == part
            steps.clear()
            assert fill(noisy, endless(kind)) > 20 * part
            for sock in quiet:
                sock.setblocking(False)
                sock.send(REQUEST)
            for sock in quiet:
                assert await served(sock)
            own = noisy.getsockname()[1]
            reads = [size for peer, size in steps if peer == own]
            assert max(reads) <= part
            last = max(index for index, (peer, _) in enumerate(steps) if peer != own)
            assert sum(peer == own for peer, _ in steps[:last]) <= 2
            for sock in (noisy, *quiet):
                sock.close()

    run(test)


def test_the_part_of_each_follows_how_many_are_busy() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            context = listener.context
            assert context.read_bytes == PROXY_READ_BYTES
            socks = [connect(address, REQUEST) for _ in range(4)]
            for sock in socks:
                assert await answer(sock)
            transports = [each._transport for each in context.connections()]  # type: ignore[attr-defined]

            def sizes() -> set[int]:
                return {each.max_size for each in transports}

            context.share_passes(0.0)
            assert sizes() == {PROXY_PASS_BYTES // 4}
            socks.append(connect(address, REQUEST))
            assert await answer(socks[-1])
            newest = context.connections()[-1]._transport  # type: ignore[attr-defined]
            assert newest.max_size == PROXY_PASS_BYTES // 4, "one that is new has it from its beginning"
            since = asyncio.get_running_loop().time() + 1
            context.share_passes(since)
            assert sizes() == {PROXY_READ_BYTES}, "nobody is busy any more"
            crowd = [_Busy() for _ in range(100)]
            for each in crowd:
                context.add(each)  # type: ignore[arg-type]
            context.share_passes(0.0)
            assert sizes() == {PROXY_LEAST_READ_BYTES}
            assert crowd[0].size == PROXY_LEAST_READ_BYTES
            for each in crowd:
                context.discard(each)  # type: ignore[arg-type]
            for sock in socks:
                sock.close()

    run(test)


class _Busy:
    """A connection that always has something to say."""

    size = 0

    def heard_at(self) -> float:
        return math.inf

    def set_read_bytes(self, size: int) -> None:
        self.size = size
