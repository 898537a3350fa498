"""New connections: the kernel keeps many, and one pass of a proxy's loop takes a few."""

from __future__ import annotations

import asyncio
import socket

from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcMethods
from raykeeper.limits import PROXY_PASS_ACCEPTS

CONNECTIONS = 4 * PROXY_PASS_ACCEPTS


def test_one_pass_of_the_loop_accepts_a_few() -> None:
    async def connect() -> list[int]:
        listener = ProxyListener(RpcMethods(), MemberLog("proxy", "test", "proxy"))
        address = await listener.listen("127.0.0.1", 0)
        # The loop stands still meanwhile, so all of them wait in the kernel.
        socks = [socket.create_connection(address, PATIENCE) for _ in range(CONNECTIONS)]
        by_pass: list[int] = []
        while (before := listener.context.accepted) < CONNECTIONS:
            await asyncio.sleep(0)
            by_pass.append(listener.context.accepted - before)
        for sock in socks:
            sock.close()
        await listener.close(0.0)
        return by_pass

    by_pass = asyncio.run(asyncio.wait_for(connect(), 12 * PATIENCE))
    assert sum(by_pass) == CONNECTIONS
    assert max(by_pass) <= 2 * PROXY_PASS_ACCEPTS, "asyncio may take one more than it is told"
