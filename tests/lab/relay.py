"""A proxy's relay for shells, over one member, on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading

from lab.onemember import OneMember
from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.relay_server import RelayServer


class Served:
    """The relay; it serves until ``end``.

    Args:
        member: that frames go to.
        path: of the socket.
    """

    def __init__(self, member: OneMember, path: str) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = RelayServer(member, MemberLog("proxy", member.name, "proxy"))
        asyncio.run_coroutine_threadsafe(self.server.start(self.path), self.loop).result(PATIENCE)

    def end(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(PATIENCE)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()
