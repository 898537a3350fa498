"""`raykeeper proxy`: etcd's API on a port, for as long as the command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from ..actors.handles import Client
from ..errors import KeeperError
from .options import beginning_option, common_of_streams, open_client, open_cluster, options, whole_number
from .render import CommandResult, show
from .streaming import StreamingCommand, run_streaming

if TYPE_CHECKING:
    from ..cluster import Cluster

T = TypeVar("T")


def listen_address(text: str) -> tuple[str, int]:
    """Type of an argument: where to listen, as ``HOST:PORT``; an IPv6 address stands in brackets."""
    host, colon, digits = text.rpartition(":")
    port = whole_number(digits)
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or port is None or port > 65535 or (":" in host and not text.startswith("[")):
        raise click.BadParameter(f"{text!r} is not an address to listen on: HOST:PORT, such as 127.0.0.1:2379")
    return host, port


@click.command()
@options(common_of_streams, beginning_option)
@click.option(
    "--listen",
    type=listen_address,
    default="127.0.0.1:2379",
    show_default=True,
    help="HOST:PORT to listen on. Port 0 is any free one.",
)
def proxy(cluster: str, address: str | None, output: str, timeout: float, listen: tuple[str, int]) -> None:
    """Serve etcd's v3 API, over gRPC and as JSON, to clients of etcd until a signal comes.

    The address is printed once the port is open. --timeout is for starting only. There are no users and no TLS yet:
    any process that reaches the port may do everything: listen on an address that only trusted ones reach.
    """
    with open_client(cluster, address, timeout) as kv:
        found = open_cluster(cluster, address)
        run_streaming(lambda command: _serve(command, kv, found, listen, output))


async def _serve(command: StreamingCommand, kv: Client, cluster: Cluster, listen: tuple[str, int], output: str) -> int:
    from ..actors.logs import MemberLog
    from ..actors.proxy.etcd_proxy import EtcdProxy, url_of

    # Its answers name a member that they come from, as etcd's do: the first.
    member = min(info.id for info in await asyncio.to_thread(cluster.members))
    server = EtcdProxy(kv.aio, member, _Operations(cluster), MemberLog("proxy", cluster.name, "proxy"))
    try:
        address = await server.start(*listen)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {url_of(*listen)}: {error.strerror or error}") from error
    try:
        url = url_of(*address)
        command.write(lambda: show(CommandResult({"url": url}, [f"etcd's API is served on {url}"]), output))
        await asyncio.Event().wait()
    finally:
        command.start_release()
        await server.close()
    return 0


class _Operations:
    """Changes of the members; each blocks, so it has a thread."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def add_member(self, learner: bool) -> int:
        """Add a member anywhere; its id, once it has caught up."""
        info = await self._on_a_thread(lambda: self._cluster.add_member(promote=not learner))
        return info.id

    async def remove_member(self, member: int) -> None:
        """Remove a member for good."""
        await self._on_a_thread(lambda: self._cluster.remove_member(member))

    async def move_leader(self, member: int) -> None:
        """Hand leadership to a member."""
        await self._on_a_thread(lambda: self._cluster.move_leader(member))

    async def _on_a_thread(self, change: Callable[[], T]) -> T:
        from ..actors.proxy.etcd_errors import from_keeper_error

        try:
            return await asyncio.to_thread(change)
        except KeeperError as error:
            raise from_keeper_error(error) from error
