"""The consensus core: Raft as a library without I/O, clock, threads or global randomness.

Start with ``node.py``, which shows how an owner drives it, and ``core.py``, which lists the layers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration import InvalidChange, apply_change, decode_change, encode_change
    from .core import InvalidProposal, NotLeader, ProposalRefused, Role
    from .log import EntryCompacted, EntryUnavailable, LogInconsistent, Storage
    from .messages import (
        ChangeKind,
        Configuration,
        ConfigurationChange,
        Entry,
        EntryKind,
        HardState,
        MemberChange,
        Message,
        SnapshotMeta,
    )
    from .node import Node
    from .ready import NodeConfig, Ready

_LAZY = {
    ".configuration": ("InvalidChange", "apply_change", "decode_change", "encode_change"),
    ".core": ("InvalidProposal", "NotLeader", "ProposalRefused", "Role"),
    ".log": ("EntryCompacted", "EntryUnavailable", "LogInconsistent", "Storage"),
    ".messages": (
        "ChangeKind",
        "Configuration",
        "ConfigurationChange",
        "Entry",
        "EntryKind",
        "HardState",
        "MemberChange",
        "Message",
        "SnapshotMeta",
    ),
    ".node": ("Node",),
    ".ready": ("NodeConfig", "Ready"),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}
"""Clients need a few messages and not the core, which takes as long to load as all of their frames."""

__all__ = [
    "ChangeKind",
    "Configuration",
    "ConfigurationChange",
    "Entry",
    "EntryCompacted",
    "EntryKind",
    "EntryUnavailable",
    "HardState",
    "InvalidChange",
    "InvalidProposal",
    "LogInconsistent",
    "MemberChange",
    "Message",
    "Node",
    "NodeConfig",
    "NotLeader",
    "ProposalRefused",
    "Ready",
    "Role",
    "SnapshotMeta",
    "Storage",
    "apply_change",
    "decode_change",
    "encode_change",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
    return value
