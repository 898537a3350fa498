"""RayKeeper: a replicated, linearizable key-value store with etcd's semantics whose members are Ray actors.

>>> import raykeeper
>>> cluster = raykeeper.launch("cluster.yaml")
>>> kv = raykeeper.connect("default")

This file is the public face and nothing else. What needs Ray is loaded when it is first used, so that
``import raykeeper`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    ClusterMismatch,
    ClusterNotFound,
    CompactedError,
    DataCorrupted,
    DecodeError,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseLost,
    LeaseNotFound,
    LockLost,
    NoSpace,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    SpecError,
    Unavailable,
)

if TYPE_CHECKING:
    from . import codec
    from .actors.client.aio import AsyncClient
    from .actors.client.handle import Client
    from .actors.client.operations import Compare, Op
    from .actors.client.results import END, KEEP, DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
    from .spec import ClusterSpec

__version__ = "0.1.0"

_LAZY = {
    "AsyncClient": ".actors.client.aio",
    "Client": ".actors.client.handle",
    "ClusterSpec": ".spec",
    "Compare": ".actors.client.operations",
    "DeleteResult": ".actors.client.results",
    "END": ".actors.client.results",
    "KEEP": ".actors.client.results",
    "KeyValue": ".actors.client.results",
    "Op": ".actors.client.operations",
    "PutResult": ".actors.client.results",
    "RangeResult": ".actors.client.results",
    "TxnResult": ".actors.client.results",
    "codec": "",
}
"""Public name: module that defines it; an empty one: it is a module itself."""

__all__ = [
    "END",
    "KEEP",
    "AsyncClient",
    "Client",
    "ClusterMismatch",
    "ClusterNotFound",
    "ClusterSpec",
    "CompactedError",
    "Compare",
    "DataCorrupted",
    "DecodeError",
    "DeleteResult",
    "FutureRevisionError",
    "InvalidArgument",
    "KeeperError",
    "KeyValue",
    "LeaseLost",
    "LeaseNotFound",
    "LockLost",
    "NoSpace",
    "Op",
    "PutResult",
    "RangeResult",
    "RequestTimeout",
    "RequestTooLarge",
    "SessionExpired",
    "SpecError",
    "TxnResult",
    "Unavailable",
    "__version__",
    "codec",
]


def __getattr__(name: str) -> Any:
    """Load a public name on its first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _LAZY[name]
    value = (
        getattr(importlib.import_module(module, __name__), name)
        if module
        else importlib.import_module(f".{name}", __name__)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
