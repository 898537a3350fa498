"""RayKeeper: a replicated, linearizable key-value store with etcd's semantics whose members are Ray actors.

>>> import raykeeper
>>> cluster = raykeeper.launch("cluster.yaml")
>>> kv = raykeeper.connect("default")

This file is only the public interface. What needs Ray is loaded on first use, so that ``import raykeeper`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    AuthFailed,
    ClusterMismatch,
    ClusterNotFound,
    CompactedError,
    DataCorrupted,
    DecodeError,
    ForkedProcess,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseLost,
    LeaseNotFound,
    LockLost,
    MembersMissing,
    NoSpace,
    NotCaughtUp,
    PermissionDenied,
    ReentrantCall,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    SpecError,
    TransactionConflict,
    Unavailable,
)

if TYPE_CHECKING:
    from . import codec
    from .actors.client.cached import AsyncCached, Cached
    from .actors.client.client_info import ClientInfo, Owner
    from .actors.client.leases import AsyncLease, Lease, LeaseInfo
    from .actors.client.load_tables import ClusterTop
    from .actors.client.loss_watch import LossWatch, end_actor_when_lost
    from .actors.client.results import (
        END,
        KEEP,
        Batch,
        DeleteResult,
        Event,
        KeyValue,
        PutResult,
        RangeResult,
        TxnResult,
    )
    from .actors.client.txn_parts import Compare, Op
    from .actors.client.watch import AsyncWatch, Watch
    from .actors.cluster.cluster_backup import BackupInfo
    from .actors.cluster.cluster_operations import EventInfo
    from .actors.cluster.status import ClusterStatus, MemberInfo
    from .actors.connect import connect
    from .actors.consistency import Comparison
    from .actors.handles import AsyncClient, Client
    from .actors.recipes.callbacks import Resync
    from .actors.recipes.in_use import InUse, Participant
    from .cluster import Cluster, attach, discard, launch, restore
    from .spec import ClusterSpec

__version__ = "0.1.0"

_LAZY = {
    ".actors.handles": ("AsyncClient", "Client"),
    ".actors.client.cached": ("AsyncCached", "Cached"),
    ".actors.client.client_info": ("ClientInfo", "Owner"),
    ".actors.client.leases": ("AsyncLease", "Lease", "LeaseInfo"),
    ".actors.client.loss_watch": ("LossWatch", "end_actor_when_lost"),
    ".actors.client.txn_parts": ("Compare", "Op"),
    ".actors.client.results": (
        "END",
        "KEEP",
        "Batch",
        "DeleteResult",
        "Event",
        "KeyValue",
        "PutResult",
        "RangeResult",
        "TxnResult",
    ),
    ".actors.client.watch": ("AsyncWatch", "Watch"),
    ".actors.recipes.callbacks": ("Resync",),
    ".actors.recipes.in_use": ("InUse", "Participant"),
    ".actors.consistency": ("Comparison",),
    ".actors.client.load_tables": ("ClusterTop",),
    ".actors.cluster.cluster_backup": ("BackupInfo",),
    ".actors.cluster.cluster_operations": ("EventInfo",),
    ".actors.connect": ("connect",),
    ".cluster": ("Cluster", "attach", "discard", "launch", "restore"),
    ".actors.ray_view": ("ProxyInfo",),
    ".actors.cluster.status": ("ClusterStatus", "MemberInfo"),
    ".codec": ("codec",),
    ".spec": ("ClusterSpec",),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "END",
    "KEEP",
    "AsyncCached",
    "AsyncClient",
    "AsyncLease",
    "AsyncWatch",
    "AuthFailed",
    "BackupInfo",
    "Batch",
    "Cached",
    "Client",
    "ClientInfo",
    "Cluster",
    "ClusterMismatch",
    "ClusterNotFound",
    "ClusterSpec",
    "ClusterStatus",
    "ClusterTop",
    "CompactedError",
    "Compare",
    "Comparison",
    "DataCorrupted",
    "DecodeError",
    "DeleteResult",
    "Event",
    "EventInfo",
    "ForkedProcess",
    "FutureRevisionError",
    "InUse",
    "InvalidArgument",
    "KeeperError",
    "KeyValue",
    "Lease",
    "LeaseInfo",
    "LeaseLost",
    "LeaseNotFound",
    "LockLost",
    "LossWatch",
    "MemberInfo",
    "MembersMissing",
    "NoSpace",
    "NotCaughtUp",
    "Op",
    "Owner",
    "Participant",
    "PermissionDenied",
    "ProxyInfo",
    "PutResult",
    "RangeResult",
    "ReentrantCall",
    "RequestTimeout",
    "RequestTooLarge",
    "Resync",
    "SessionExpired",
    "SpecError",
    "TransactionConflict",
    "TxnResult",
    "Unavailable",
    "Watch",
    "__version__",
    "attach",
    "codec",
    "connect",
    "discard",
    "end_actor_when_lost",
    "launch",
    "restore",
]


def __getattr__(name: str) -> Any:
    """Load a public name on its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULE_OF[name], __name__)
    value = module if _MODULE_OF[name] == f".{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
