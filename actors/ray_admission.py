"""Being let in by a Ray that asks for a token.

A Ray of today may do so: its head takes the token from ``~/.ray/auth_token``, which any ``ray.init()`` that starts a
Ray leaves there. But whoever joins by an address does not show it by himself, and is then refused without being told
why. So here the token that is there is shown to every Ray that is joined, as Ray itself does without an address;
``RAY_AUTH_MODE=disabled`` keeps it back, and a Ray that asks for none does not mind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from ..errors import ClusterNotFound
from ..limits import RAY_CONNECT_TIMEOUT
from .ray_here import host_and_port

_AUTH_MODE = "RAY_AUTH_MODE"


def _token_file() -> Path:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path("~/.ray/auth_token").expanduser()


def _token() -> str:
    """The token that is there, as Ray would send it; empty if there is none."""
    given = os.environ.get("RAY_AUTH_TOKEN", "")
    if not given:
        with contextlib.suppress(OSError, RuntimeError):
            given = _token_file().read_text(errors="replace")
    return given.strip(" \t\r\n\v\f")


def _source() -> str:
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(_token_file())


def _can_be_sent(token: str) -> bool:
    """Ray ends the process in which it is to send anything else."""
    return token.isascii() and token.isprintable()


def check_token() -> None:
    """To be called before Ray begins and would use the token that is there.

    Raises:
        ClusterNotFound: that is something which Ray cannot send.
    """
    if os.environ.get(_AUTH_MODE, "token").lower() == "token" and not _can_be_sent(_token()):
        raise ClusterNotFound(f"what is in {_source()} can be no token of Ray: it is not printable ASCII on one line")


@contextlib.contextmanager
def showing_token() -> Iterator[None]:
    """Within this, Ray uses the token, if there is one and the environment does not say otherwise. What it then knows
    it goes on knowing, and afterwards the user's environment is as it was.

    Raises:
        ClusterNotFound: as ``check_token``, where the environment has Ray use it.
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
        with contextlib.suppress(Exception):  # a Ray that knows no tokens
            from ray import _raylet  # it has read the environment when it was imported

            raylet: Any = _raylet
            raylet.Config.initialize("")
        yield
    finally:
        os.environ.pop(_AUTH_MODE, None)


def check_admitted(address: str) -> None:
    """Ray itself tries for long where it is refused, and does not say that it was.

    Raises:
        ClusterNotFound: the Ray there wants a token, or another one.
    """
    refusal = getattr(ray.exceptions, "AuthenticationError", None)
    place = host_and_port(address)
    if refusal is None or place is None or "://" in address:
        return
    try:
        from ray import _raylet

        raylet: Any = _raylet
        raylet.GcsClient(address=address).internal_kv_get(b"raykeeper", None, timeout=RAY_CONNECT_TIMEOUT)
    except refusal as error:
        raise ClusterNotFound(f"the Ray at {address} lets nobody in without its token: {_why_refused()}") from error
    except Exception:  # whatever else is wrong, Ray says better
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
    """Within this, Ray can note what this process was called with, whatever bytes that was."""
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
