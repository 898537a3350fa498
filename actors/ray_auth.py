"""Joining a Ray that asks for a token.

Ray may require one: its head takes the token from ``~/.ray/auth_token``, where any ``ray.init()`` that starts a Ray
leaves it. But a process that joins by an address does not show the token by itself, and is then refused without a
reason. So here the token that is found is shown to every Ray that is joined, as Ray itself does without an address.
``RAY_AUTH_MODE=disabled`` turns that off; a Ray that asks for no token ignores it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from ..errors import ClusterNotFound
from ..limits import RAY_CONNECT_TIMEOUT_S
from .ray_local import host_and_port

_AUTH_MODE = "RAY_AUTH_MODE"


def _token_file() -> Path:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path("~/.ray/auth_token").expanduser()


def _token() -> str:
    """The token that was found, as Ray would send it; empty if there is none."""
    given = os.environ.get("RAY_AUTH_TOKEN", "")
    if not given:
        with contextlib.suppress(OSError, RuntimeError):
            given = _token_file().read_text(errors="replace")
    return given.strip(" \t\r\n\v\f")


def _source() -> str:
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(_token_file())


def _can_be_sent(token: str) -> bool:
    """Whether Ray can send it: Ray ends a process that tries to send anything else."""
    return token.isascii() and token.isprintable()


def check_token() -> None:
    """Check the token that Ray would use; to be called before Ray starts.

    Raises:
        ClusterNotFound: Ray cannot send it.
    """
    if os.environ.get(_AUTH_MODE, "token").lower() == "token" and not _can_be_sent(_token()):
        raise ClusterNotFound(f"what is in {_source()} cannot be a token of Ray: it is not printable ASCII on one line")


@contextlib.contextmanager
def showing_token() -> Iterator[None]:
    """In this context Ray uses the token, if there is one and the environment does not say otherwise. Ray keeps what it
    has read; the user's environment is restored afterwards.

    Raises:
        ClusterNotFound: as ``check_token``, if the environment tells Ray to use the token.
    """
    if os.environ.get(_AUTH_MODE) is not None:
        check_token()
        yield
        return
    token = _token()
    if not token or not _can_be_sent(token):
        yield
        return
    os.environ[_AUTH_MODE] = "token"
    try:
        with contextlib.suppress(Exception):  # a version of Ray without tokens
            from ray import _raylet  # it read the environment when it was imported

            raylet: Any = _raylet
            raylet.Config.initialize("")
        yield
    finally:
        os.environ.pop(_AUTH_MODE, None)


def check_admitted(address: str) -> None:
    """Check that a Ray accepts this process: if it is refused, Ray itself retries for a long time and says nothing.

    Raises:
        ClusterNotFound: the Ray there requires a token, or another one.
    """
    refusal = getattr(ray.exceptions, "AuthenticationError", None)
    place = host_and_port(address)
    if refusal is None or place is None or "://" in address:
        return
    try:
        from ray import _raylet

        raylet: Any = _raylet
        raylet.GcsClient(address=address).internal_kv_get(b"raykeeper", None, timeout=RAY_CONNECT_TIMEOUT_S)
    except refusal as error:
        raise ClusterNotFound(
            f"the Ray at {address} does not accept connections without its token: {_why_refused()}"
        ) from error
    except Exception:  # Ray reports any other problem better
        return


def _why_refused() -> str:
    mode = os.environ.get(_AUTH_MODE)
    if mode is not None and mode.lower() != "token":
        return f"{_AUTH_MODE} is {mode!r} here, unset it or make it 'token'"
    if not _token():
        return f"copy it from the user or host that started that Ray to {_token_file()}, or set RAY_AUTH_TOKEN"
    return f"that in {_source()} {'is another one' if _can_be_sent(_token()) else 'is none'}"


@contextlib.contextmanager
def command_line_in_unicode() -> Iterator[None]:
    """In this context Ray can record the command line of this process, even if that is not UTF-8."""
    called_with = b""
    with contextlib.suppress(OSError):
        called_with = Path("/proc/self/cmdline").read_bytes()
    if called_with.decode(errors="ignore").encode() == called_with:
        yield
        return
    from ray._private import utils

    original = getattr(utils, "get_entrypoint_name", None)
    if original is None:
        yield
        return
    utils.get_entrypoint_name = lambda: os.fsencode(original()).decode(errors="backslashreplace")
    try:
        yield
    finally:
        utils.get_entrypoint_name = original
