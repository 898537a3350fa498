"""A proxy's port on the loop of a test, whose connections the test makes: what the tests of new connections share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcMethods

Address = tuple[str, int]
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
ELSEWHERE = "127.0.0.2"


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[ProxyListener, Address]]:
    """A port whose sweeps only the test makes, so that no deadline passes by itself."""
    listener = ProxyListener(RpcMethods(), MemberLog("proxy", "test", "proxy"))
    address = await listener.listen("127.0.0.1", 0)
    assert listener._sweeper is not None
    listener._sweeper.cancel()
    try:
        yield listener, address
    finally:
        await listener.close(0.0)


def connect(address: Address, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """A connection, and what it says; the kernel takes both, though the port's loop stands still meanwhile."""
    sock = socket.create_connection(address, PATIENCE, (source, 0))
    sock.sendall(data)
    return sock


def arrived(sock: socket.socket) -> bool:
    """Whether what the other side has said is here."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Run the loop until a condition holds."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE)


async def answer(sock: socket.socket) -> bytes:
    """What the port says, up to 100 bytes; empty if it has closed the connection."""
    sock.setblocking(False)
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), PATIENCE)
    except ConnectionError:
        return b""


def run(test: Callable[[], object]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]
