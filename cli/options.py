"""What the commands share: their options, and how they connect to the cluster.

An option that several commands have is defined once, here, so that it has the same name and meaning everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ..actors.client.results import END
from ..actors.deadline import covering
from ..actors.ray_local import host_and_port, noted_here
from ..errors import InvalidArgument, Unavailable
from ..limits import DEFAULT_TIMEOUT_S, HEAD_START_TIMEOUT_S
from ..proxy_notices import ProxyNotice, find_notice
from .ray_head import RayHead
from .ray_messages import keep_ray_messages
from .stdio import tell

if TYPE_CHECKING:
    from ..actors.handles import Client
    from ..cluster import Cluster
    from ..spec import ClusterSpec
    from .etcd_gateway import Endpoint, GatewayTls
    from .gateway_client import GatewayClient
    from .near_cluster import NearCluster

T = TypeVar("T")

LOCK_NAME, LOCK_KEY, LOCK_TOKEN = "RAYKEEPER_LOCK_NAME", "RAYKEEPER_LOCK_KEY", "RAYKEEPER_LOCK_TOKEN"
"""Environment of a command that runs under a lock. The key is the area of the reserved space, a slash, and the key."""

# --- options ---------------------------------------------------------------------------------------------------------


BYTES = os.fsencode
"""Type of an argument: the bytes that the shell passed."""


MAX_NUMBER = (1 << 63) - 1
"""The greatest revision, and the greatest number that the store counts with."""


def whole_number(text: str, base: int = 10) -> int | None:
    """The number, 0 to ``MAX_NUMBER``, of a text of digits alone; ``None`` for any other text. Python itself also
    accepts signs, underscores and the digits of all scripts, and fails on too many digits."""
    text = text.strip(" ")
    if not _DIGITS[base].fullmatch(text) or len(text) > 100:
        return None
    number = int(text, base)
    return number if number <= MAX_NUMBER else None


_DECIMAL = re.compile(r" *[+-]?[0-9.]+([eE][+-]?[0-9]+)? *")
_DIGITS = {10: re.compile("[0-9]+"), 16: re.compile("(0[xX])?[0-9a-fA-F]+")}


class WholeNumber(click.IntRange):
    """Type of an argument: a whole number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; called by Click."""
        if isinstance(value, str) and whole_number(value) is None:
            self.fail(f"{value!r} is not a whole number of up to 63 bits.", param, ctx)
        return super().convert(value, param, ctx)


def lease_id(text: str) -> int:
    """Type of an argument: a lease id in hexadecimal, as everywhere that ids are text."""
    number = whole_number(text, 16)
    if not number:
        raise click.BadParameter(f"{text!r} is not a lease id: hexadecimal digits, as `lease grant` prints them")
    return number


def cluster_id(text: str) -> int:
    """Type of an argument: a cluster id in hexadecimal, as statuses and errors print it."""
    number = whole_number(text, 16)
    if not number:
        raise click.BadParameter(f"{text!r} is not a cluster id: hexadecimal digits, as `status` prints them")
    return number


def member_id(text: str) -> int:
    """Type of an argument: a member, by its name or its id."""
    number = whole_number(text.removeprefix("m"))
    if not number:
        raise click.BadParameter(f"{text!r} is not a member: give its name, such as m2, or its id")
    return number


def seconds(text: str | float) -> float:
    """Type of an argument: a positive time that can be waited for."""
    time = seconds_or_none(text)
    if not time > 0:
        raise click.BadParameter(f"{text} is not a time: a positive number of seconds")
    return time


def seconds_or_none(text: str | float) -> float:
    """Type of an argument: a time that can be waited for, or 0. As with whole numbers, not all that Python accepts."""
    try:
        time = math.nan if isinstance(text, str) and not _DECIMAL.fullmatch(text) else float(text)
    except ValueError:
        time = math.nan
    if not 0 <= time <= threading.TIMEOUT_MAX:
        raise click.BadParameter(f"{text} is not a time: a number of seconds")
    return time


def options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def output_as(*forms: str) -> Callable[[Any], Any]:
    """The option that says how to print, in one of these forms; the first is the default."""
    return click.option("-o", "--output", type=click.Choice(forms), default=forms[0], help="How to print.")


address_option = click.option(
    "--address", envvar="RAY_ADDRESS", help="Ray cluster to attach to (default: the one that runs)."
)
output_option = output_as("simple", "json", "table")
_USER, _PASSWORD_FILE, _PASSWORD = "raykeeper.user", "raykeeper.password_file", "raykeeper.password"
_ENDPOINT, _CA, _CERT, _KEY = "raykeeper.endpoint", "raykeeper.ca", "raykeeper.cert", "raykeeper.key"
BY_RAY = "ray"
"""As the endpoint: do not look for a proxy."""


def _keep(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Keeps an option's value for ``open_client`` and ``open_cluster``, whatever the command is."""

    def keep(ctx: click.Context, option: click.Parameter, given: Any) -> Any:
        ctx.meta[key] = given
        return given

    return keep


user_options = options(
    click.option(
        "--user", envvar="RAYKEEPER_USER", expose_value=False, callback=_keep(_USER), help="User, if calls need one."
    ),
    click.option(
        "--password-file",
        envvar="RAYKEEPER_PASSWORD_FILE",
        type=click.Path(exists=True, dir_okay=False),
        expose_value=False,
        callback=_keep(_PASSWORD_FILE),
        help="Where the user's password is; without it, it is asked for.",
    ),
)
cluster_option = options(
    click.option(
        "--cluster", envvar="RAYKEEPER_CLUSTER", default="default", show_default=True, help="Name of the cluster."
    ),
    user_options,
)

_pem = click.Path(exists=True, dir_okay=False)
tls_option = options(
    click.option(
        "--cacert",
        envvar="RAYKEEPER_CACERT",
        type=_pem,
        expose_value=False,
        callback=_keep(_CA),
        help="Authorities that may vouch for the endpoint (PEM).",
    ),
    click.option(
        "--cert",
        envvar="RAYKEEPER_CERT",
        type=_pem,
        expose_value=False,
        callback=_keep(_CERT),
        help="Certificate to show to the endpoint (PEM).",
    ),
    click.option(
        "--key",
        "key_file",
        envvar="RAYKEEPER_KEY",
        type=_pem,
        expose_value=False,
        callback=_keep(_KEY),
        help="Key of the certificate.",
    ),
)
endpoint_option = options(
    click.option(
        "--endpoint",
        envvar="RAYKEEPER_ENDPOINT",
        expose_value=False,
        callback=_keep(_ENDPOINT),
        help="HOST:PORT or URL of a proxy, or of an etcd, to ask instead of Ray; `ray` to ask Ray even if a proxy "
        "listens on this node.",
    ),
    tls_option,
)
"""For commands that a proxy can serve: see ``open_keys``."""


def timeout_of(default: float, help: str = "Seconds to wait.") -> Callable[[Any], Any]:
    """The option that bounds a whole command, including joining Ray. Below the decorator that makes the command.

    The deadline begins with the command, not with the option: Click does not leave the context of a command whose other
    arguments are wrong, so a deadline set there would stay, for whatever the process does next.
    """
    option = click.option("--timeout", type=seconds, default=default, show_default=True, help=help)

    def bound(command: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(command)
        def in_time(*arguments: Any, timeout: float, **named: Any) -> T:
            with covering(timeout):
                return command(*arguments, timeout=timeout, **named)

        return option(in_time)

    return bound


timeout_option = timeout_of(DEFAULT_TIMEOUT_S)
beginning_option = click.option(
    "--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, show_default=True, help="Seconds for each request."
)
common = options(cluster_option, address_option, output_option)
common_of_streams = options(cluster_option, address_option, output_as("simple", "json"))

keys_option = options(
    click.argument("key", type=BYTES),
    click.argument("end", type=BYTES, required=False),
    click.option("--prefix", is_flag=True, help="All keys that start with KEY."),
    click.option("--from-key", is_flag=True, help="All keys from KEY on."),
)


def selected(key: bytes, end: bytes | None, prefix: bool, from_key: bool) -> dict[str, Any]:
    """What was given for ``keys_option``, as arguments of the client's calls."""
    if (end is not None) + prefix + from_key > 1:
        raise click.UsageError("END, --prefix and --from-key exclude each other")
    if prefix:
        return {"prefix": key}
    return {"key": key, "end": END if from_key else end}


@contextlib.contextmanager
def warnings_told() -> Iterator[None]:
    """In this context, print the package's warnings and errors on stderr, in the form of the command's own messages."""
    logger = logging.getLogger("raykeeper")
    handler = _StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(f"{record.levelname.lower()}: {record.getMessage()}")


# --- the cluster -----------------------------------------------------------------------------------------------------


def silence_ray() -> None:
    """Keep Ray from printing on stdout; to be called before Ray is imported.

    Ray reports processes that died to every driver, in the middle of a command's output. What matters of that is in the
    cluster's status.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")


def join(address: str | None) -> None:
    """Attach to the Ray at the address, else to the head that `up` started, else to the one that runs here. A Ray that
    does not answer is given up after ``HEAD_START_TIMEOUT_S``, or when the command's time is over."""
    silence_ray()
    from ..actors.ray_session import join_ray  # and with it Ray

    keep_ray_messages()
    with covering(HEAD_START_TIMEOUT_S), _sigterm_kept():
        join_ray(address or RayHead().address())


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray installs one while it starts, which dumps the stack. A SIGTERM that comes
    meanwhile is delivered afterwards, and ends the command then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def read_password_file(path: str) -> str:
    """The password in a file.

    Raises:
        InvalidArgument: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the password file {path} cannot be read: {error}") from None


def _named_user() -> tuple[str | None, str | None]:
    """The user and the password file that were named."""
    ctx = click.get_current_context(silent=True)
    return (None, None) if ctx is None else (ctx.meta.get(_USER), ctx.meta.get(_PASSWORD_FILE))


def load_spec(spec: str | None, **overrides: Any) -> ClusterSpec:
    """A cluster's spec; a user that was named on the command line takes the place of the spec's. Overrides that are
    empty were not given."""
    from ..spec import ClusterSpec  # and with it YAML, only for commands that read a spec

    given = {field: value for field, value in overrides.items() if value}
    loaded = ClusterSpec.load(spec, **given)
    user, file = _named_user()
    if user is None or (file is None and user == loaded.user):
        return loaded
    if file is None:
        raise click.UsageError("--user needs --password-file here, or a spec that names this user")
    return ClusterSpec.load(loaded, user=user, password_file=os.path.abspath(file), password_env="")


def _user() -> dict[str, Any]:
    """The user that was named, as arguments of ``connect``: none, if none was. A command asks for a password once."""
    user, file = _named_user()
    if user is None:
        return {}
    if file is not None:
        return {"user": user, "password_file": file}
    answers = click.get_current_context().meta
    if _PASSWORD not in answers:
        answers[_PASSWORD] = click.prompt(f"Password of {user}", hide_input=True, err=True)
    return {"user": user, "password": answers[_PASSWORD]}


def open_client(cluster: str, address: str | None, timeout: float, *, by_ray: bool = False) -> Client:
    """A client handle for the cluster: by way of a proxy of it on this node, if there is one, else by Ray.

    Args:
        timeout: seconds for each of its calls.
        by_ray: attach this process to Ray in any case.
    """
    from ..actors.connect import connect

    user = _user()
    with covering(timeout):
        notice = None if by_ray or _said_of_endpoint()[_ENDPOINT] == BY_RAY else _near_notice(cluster, address)
        if notice is not None and notice.relay:
            from .relay_client import open_by_relay

            near = open_by_relay(notice, timeout, user, lambda: join(address))
            if near is not None:
                return near
        silence_ray()
        join(address)
        return connect(cluster, timeout=timeout, **user)


def open_keys(cluster: str, address: str | None, timeout: float, by_ray: str = "") -> Client | GatewayClient:
    """A client for calls that etcd has too: by the endpoint that was given, else by a proxy of this cluster on this
    node, else by Ray.

    Args:
        by_ray: what of the command only Ray can do, for the message if an endpoint was given; empty for nothing.

    Raises:
        UsageError: an endpoint was given for what only Ray can do.
    """
    check_endpoint(by_ray)
    client = given_endpoint(timeout)
    if client is not None:
        return client
    if not by_ray and not _said_of_endpoint()[_ENDPOINT]:
        found = _near_proxy(cluster, address)
        if found is not None:
            from .gateway_client import GatewayClient

            near = GatewayClient(found, timeout)
            with contextlib.suppress(Unavailable):  # it has just ended
                near.gateway.connect()
                return _logged_in(near)
    return open_client(cluster, address, timeout)


def check_endpoint(by_ray: str) -> None:
    """See that no endpoint was given for what only Ray can do.

    Args:
        by_ray: what that is; empty for nothing.

    Raises:
        UsageError: one was given.
    """
    if by_ray and _said_of_endpoint()[_ENDPOINT] not in ("", BY_RAY):
        raise click.UsageError(f"{by_ray} needs Ray, so it does not go with --endpoint")


def given_endpoint(timeout: float) -> GatewayClient | None:
    """A client for the endpoint that was given; ``None`` if none was. For commands that mean all members otherwise."""
    said = _said_of_endpoint()
    if not said[_ENDPOINT] or said[_ENDPOINT] == BY_RAY:
        return None
    from .etcd_gateway import Endpoint, endpoint_url
    from .gateway_client import GatewayClient

    return _logged_in(GatewayClient(Endpoint(endpoint_url(said[_ENDPOINT]), given_tls()), timeout))


def given_tls() -> GatewayTls:
    """The files that were given for ``tls_option``."""
    from .etcd_gateway import GatewayTls

    said = _said_of_endpoint()
    return GatewayTls(ca=said[_CA], cert=said[_CERT], key=said[_KEY])


def _said_of_endpoint() -> dict[str, str]:
    ctx = click.get_current_context(silent=True)
    said = {name: (ctx.meta.get(name) if ctx is not None else None) or "" for name in (_ENDPOINT, _CA, _CERT, _KEY)}
    if not said[_ENDPOINT] and os.environ.get("RAYKEEPER_ENDPOINT") == BY_RAY:  # also for commands without the option
        said[_ENDPOINT] = BY_RAY
    return said


def _near_notice(cluster: str, address: str | None) -> ProxyNotice | None:
    """Of the proxy of that cluster on this node, on the Ray that ``join`` would attach to."""
    ray = address or RayHead().address() or noted_here()
    place = host_and_port(ray)
    return None if place is None or "://" in ray else find_notice(cluster, ray)


def _near_proxy(cluster: str, address: str | None) -> Endpoint | None:
    notice = _near_notice(cluster, address)
    if notice is None or notice.client_cert:
        return None
    from .etcd_gateway import Endpoint, GatewayTls

    return Endpoint(notice.url, GatewayTls(pinned=notice.cert_file), notice.id)


def _logged_in(client: GatewayClient) -> GatewayClient:
    user = _user()
    if user:
        password = user.get("password")
        if password is None:
            password = read_password_file(user["password_file"])
        client.gateway.log_in(user["user"], password)
    return client


def open_cluster(cluster: str, address: str | None) -> Cluster:
    """The running cluster of that name, by Ray, looked up within ``DEFAULT_TIMEOUT_S``. For what only Ray can do."""
    return _attached(cluster, address, _user())


def open_operations(cluster: str, address: str | None) -> Cluster | NearCluster:
    """The running cluster of that name, for what its members, and what Ray knows around them, can answer: by way of a
    proxy of it on this node, if there is one, else by Ray."""
    user = _user()
    with covering(DEFAULT_TIMEOUT_S):
        notice = None if _said_of_endpoint()[_ENDPOINT] == BY_RAY else _near_notice(cluster, address)
        if notice is not None and notice.relay:
            from .near_cluster import near_cluster

            near = near_cluster(notice, user, lambda: join(address))
            if near is not None:
                ctx = click.get_current_context(silent=True)
                if ctx is not None:
                    ctx.call_on_close(near.close)
                return near
    return _attached(cluster, address, user)


def _attached(cluster: str, address: str | None, user: dict[str, Any]) -> Cluster:
    silence_ray()
    from ..cluster import attach

    with covering(DEFAULT_TIMEOUT_S):
        join(address)
        return attach(cluster, **user)


def fenced(kv: Client | GatewayClient, guard: bool) -> Client | GatewayClient:
    """The handle; with ``guard``, all its writes are refused unless the lock that this command runs under is held."""
    if not guard:
        return kv
    from ..actors.client.guard import guarded

    area, key, token = lock_of_environment()
    client = cast("Client", kv)  # for a guard none is opened at a gateway
    return guarded(client, client.reserved(area.decode(errors="replace")), key, token)


def lock_of_environment() -> tuple[bytes, bytes, int]:
    """Area, key and token of the lock that this command runs under. `raykeeper lock` names it in the environment.

    Raises:
        UsageError: none is named.
    """
    area, _, key = os.fsencode(os.environ.get(LOCK_KEY, "")).partition(b"/")
    token = whole_number(os.environ.get(LOCK_TOKEN, ""))
    if not key or not token:  # 0 would be the token of a key that does not exist
        raise click.UsageError(f"--guard needs a lock in {LOCK_KEY} and {LOCK_TOKEN}, as `raykeeper lock` sets them")
    return area, key, token
