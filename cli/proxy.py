"""`raykeeper proxy`: etcd's API on a port, for as long as the command runs."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import click

from ..actors.handles import Client
from ..limits import ProxyTls
from ..proxy_address import (
    AdvertisedAddress,
    ListenAddress,
    is_origin,
    read_advertised_address,
    read_listen_address,
)
from .options import beginning_option, common_of_streams, open_client, open_cluster, options
from .render import CommandResult, show
from .streaming import StreamingCommand, run_streaming

if TYPE_CHECKING:
    from ..cluster import Cluster


def listen_address(text: str) -> ListenAddress:
    """Type of an argument: where to listen."""
    address = read_listen_address(text)
    if address is None:
        raise click.BadParameter(
            f"{text!r} is not an address to listen on: HOST:PORT, such as 127.0.0.1:2379, or HOST:FIRST-LAST"
        )
    return address


def advertised_address(text: str) -> AdvertisedAddress:
    """Type of an argument: what clients are told."""
    address = read_advertised_address(text)
    if address is None:
        raise click.BadParameter(f"{text!r} is not an address for clients: HOST, or HOST:PORT")
    return address


def origin(text: str) -> str:
    """Type of an argument: where a web page comes from, or ``*``."""
    if not is_origin(text):
        raise click.BadParameter(f"{text!r} is not an origin: * or SCHEME://HOST[:PORT], without a path")
    return text


@click.command()
@options(common_of_streams, beginning_option)
@click.option(
    "--listen",
    type=listen_address,
    default="127.0.0.1:2379",
    show_default=True,
    help="HOST:PORT to listen on, or HOST:FIRST-LAST for the first free port of a range. Port 0 is any free one.",
)
@click.option(
    "--advertise",
    type=advertised_address,
    help="HOST or HOST:PORT that clients are told, in the list of members. By default where it listens, or, if that is "
    "all addresses of the machine, the address of its Ray node.",
)
@click.option("--no-register", is_flag=True, help="Stay out of the list of members that other proxies give.")
@click.option(
    "--cors",
    type=origin,
    multiple=True,
    help="An origin whose web pages may ask by HTTP, such as https://host; * for all. May be given several times.",
)
@click.option(
    "--console",
    type=click.Choice(["off", "read", "act"]),
    default="off",
    show_default=True,
    help="Serve the console, a web page at /console: to look, or also to act.",
)
@click.option(
    "--cert-file", type=click.Path(), default="", help="The certificate for TLS (PEM). Without one there is no TLS."
)
@click.option("--key-file", type=click.Path(), default="", help="Its key.")
@click.option(
    "--trusted-ca-file", type=click.Path(), default="", help="The authority whose certificates clients may show."
)
@click.option(
    "--client-cert-auth", is_flag=True, help="Clients must show a certificate; its common name is their user."
)
def proxy(cluster: str, address: str | None, output: str, timeout: float, **given: Any) -> None:
    """Serve etcd's v3 API, over gRPC and as JSON, to clients of etcd until a signal comes.

    The address is printed once the port is open. --timeout is for starting only. Without users, any process that
    reaches the port may do everything: listen on an address that only trusted ones reach, or ask for certificates.

    The list of members names this proxy to clients, as long as it runs. `proxy` in the spec has the cluster start such
    proxies by itself.
    """
    with open_client(cluster, address, timeout, by_ray=True) as kv:
        found = open_cluster(cluster, address)
        run_streaming(lambda command: _serve(command, kv, found, output, **given))


async def _serve(
    command: StreamingCommand,
    kv: Client,
    cluster: Cluster,
    output: str,
    listen: ListenAddress,
    advertise: AdvertisedAddress | None,
    no_register: bool,
    cors: tuple[str, ...],
    console: str,
    cert_file: str,
    key_file: str,
    trusted_ca_file: str,
    client_cert_auth: bool,
) -> int:
    from ..actors.actor_access import cluster_token
    from ..actors.logs import MemberLog
    from ..actors.proxy.etcd_proxy import EtcdProxy
    from ..actors.proxy.large_blocks import give_back_large_blocks
    from ..actors.proxy.membership_tasks import MembershipTasks
    from ..actors.proxy.proxy_place import proxy_place
    from ..telemetry import PROCESS

    tls = ProxyTls(cert_file, key_file, trusted_ca_file, client_cert_auth)
    if bool(cert_file) != bool(key_file) or (trusted_ca_file and not cert_file):
        raise click.UsageError("--cert-file and --key-file belong together, and --trusted-ca-file needs them")
    if client_cert_auth and not trusted_ca_file:
        raise click.UsageError("--client-cert-auth needs --trusted-ca-file")
    give_back_large_blocks()
    log = MemberLog("proxy", cluster.name, "proxy")
    server = EtcdProxy(
        kv.aio,
        MembershipTasks(cluster.name, log),
        log,
        proxy_place(),
        registered=not no_register,
        cors=cors,
        console=console,
        cluster_token=lambda: cluster_token(cluster.name),
        telemetry=PROCESS,
    )
    # What exists by now stays: the garbage collector need not visit it again.
    gc.collect()
    gc.freeze()
    try:
        await server.start(listen, advertise, tls)
    except OSError as error:
        await server.close()
        raise click.ClickException(f"cannot listen on {listen}: {error.strerror or error}") from error
    try:
        url = server.url
        command.write(lambda: show(CommandResult({"url": url}, [f"etcd's API is served on {url}"]), output))
        await asyncio.Event().wait()
    finally:
        command.start_release()
        await server.close()
    return 0
