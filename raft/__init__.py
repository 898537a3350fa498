"""The consensus core: Raft as a library without I/O, clock, threads or global randomness.

Start with ``node.py``, which shows how an owner drives it, and ``core.py``, which lists the layers.
"""

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
