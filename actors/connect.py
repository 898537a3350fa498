"""``raykeeper.connect``: a handle for a running cluster.

A module of its own because a client process needs nothing else: it loads neither the member, nor RocksDB, nor the code
that launches clusters (``tests/unit/test_imports.py`` checks that).
"""

from __future__ import annotations

from ..limits import DEFAULT_TIMEOUT_S
from . import arguments as check
from .client.hub_pool import open_hub
from .handles import Client


def connect(name: str = "default", *, timeout: float = DEFAULT_TIMEOUT_S) -> Client:
    """Connect to a running cluster, from any driver, task or actor of its Ray cluster.

    ::

        kv = raykeeper.connect()
        kv.put("greeting", "hello")
        kv.get("greeting").value        # b"hello"

    The handle may be shared by threads and passed to other tasks and actors. All handles of a process share one
    connection to the cluster, so connecting again is cheap.

    Args:
        name: the cluster's name.
        timeout: seconds for this call, and the default for each call of the handle.

    Returns:
        A handle whose calls block; its ``aio`` is the same handle for asyncio.

    Raises:
        InvalidArgument: the name is not a ``str``, or the timeout is not a number of seconds.
        ClusterNotFound: there is no cluster of that name, or no Ray.
        ForkedProcess: this is the forked child of a process that uses Ray.
        Unavailable: neither the members nor Ray answer in time.
    """
    share = open_hub(check.text("the name of a cluster", name), check.seconds("timeout", timeout))
    return Client(name, share.hub.cluster, share=share, timeout=timeout)
