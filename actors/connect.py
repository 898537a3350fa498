"""``raykeeper.connect``: a handle for a running cluster.

A module of its own because a client process needs nothing else: it loads neither the member, nor RocksDB, nor the code
that launches clusters (``tests/unit/test_imports.py`` checks that).
"""

from __future__ import annotations

from ..limits import DEFAULT_TIMEOUT_S
from . import arguments as check
from .client.hub_pool import open_hub
from .client.login import Credentials, credentials_of
from .handles import Client


def connect(
    name: str = "default",
    *,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
) -> Client:
    """Connect to a running cluster, from any driver, task or actor of its Ray cluster.

    ::

        kv = raykeeper.connect()
        kv.put("greeting", "hello")
        kv.get("greeting").value        # b"hello"

    The handle may be shared by threads and passed to other tasks and actors. All handles of a process share one
    connection to the cluster, so connecting again is cheap.

    Args:
        name: the cluster's name.
        user: the user whose calls these are, in a cluster that needs one (see ``docs/security.md``). A handle for
            another user has a connection of its own.
        password: the user's. It stays in this process: a handle that is pickled takes a token along instead, which ends
            a few minutes after it was last used.
        password_file: a file that holds the password, in place of ``password``. A handle that is pickled takes its path
            along, so it must be there in the other process too.
        timeout: seconds for this call, and the default for each call of the handle.

    Returns:
        A handle whose calls block; its ``aio`` is the same handle for asyncio.

    Raises:
        AuthFailed: there is no such user, or this is not its password.
        InvalidArgument: the name is not a ``str``, the timeout is not a number of seconds, a password was given without
            a user, or a user without one.
        ClusterNotFound: there is no cluster of that name, or no Ray.
        ForkedProcess: this is the forked child of a process that uses Ray.
        Unavailable: neither the members nor Ray answer in time.
    """
    check.text("the name of a cluster", name)
    return connect_as(name, credentials_of(user, password, password_file), check.seconds("timeout", timeout))


def connect_as(name: str, credentials: Credentials | None, timeout: float) -> Client:
    """As :func:`connect`, for a user whose credentials are known."""
    share = open_hub(name, timeout, credentials=credentials)
    return Client(name, share.hub.cluster, share=share, timeout=timeout, credentials=credentials)
