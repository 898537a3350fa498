"""The consensus core: Raft as a library without I/O, clock, threads or global randomness.

Begin with ``node.py``, which says how an owner drives it, and ``core.py``, which lists the layers.
"""

from .configuration import InvalidChange, apply_change, decode_change, encode_change
from .core import InvalidProposal, NotLeader, ProposalRefused, Role
from .log import Compacted, LogInconsistent, Storage, Unavailable
from .messages import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    Message,
    SnapshotMeta,
)
from .node import Node
from .ready import NodeConfig, Ready

__all__ = [
    "Change",
    "ChangeKind",
    "Compacted",
    "Configuration",
    "ConfigurationChange",
    "Entry",
    "EntryKind",
    "HardState",
    "InvalidChange",
    "InvalidProposal",
    "LogInconsistent",
    "Message",
    "Node",
    "NodeConfig",
    "NotLeader",
    "ProposalRefused",
    "Ready",
    "Role",
    "SnapshotMeta",
    "Storage",
    "Unavailable",
    "apply_change",
    "decode_change",
    "encode_change",
]
