"""The connection of a command to the proxy on its node. What this file imports counts: no hub, no lanes, no asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..actors.transport.relay import RelayCalls
from ..proxy_notices import ProxyNotice

if TYPE_CHECKING:
    from ..actors.transport.client_lanes import ActorCalls


def relay_calls(notice: ProxyNotice, join: Callable[[], None]) -> RelayCalls:
    """A connection to the proxy that has left the notice.

    Args:
        join: attaches this process to Ray; called if the proxy ends while the connection is in use.

    Raises:
        OSError, Unavailable: it has just ended, or does not answer.
    """

    def attach_to_ray() -> ActorCalls:
        join()
        from ..actors.transport.client_actor import ActorTransport

        return ActorTransport(notice.cluster)

    return RelayCalls(notice.relay, attach_to_ray)
