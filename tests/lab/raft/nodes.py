"""Single nodes over a log in memory, for tests of what one node promises."""

from __future__ import annotations

import random
from typing import Any

from lab.raft.cluster import SETTINGS, MemoryLog
from raykeeper.raft import Configuration, Entry, HardState, Node, NodeConfig
from raykeeper.raft.messages import RequestVoteResponse

THREE = Configuration(voters=(1, 2, 3))


def make_node(
    log: MemoryLog | None = None,
    *,
    id: int = 1,
    configuration: Configuration = THREE,
    applied: int = 0,
    seed: int = 1,
    **settings: Any,
) -> Node:
    log = log or MemoryLog()
    config = NodeConfig(id=id, **{**SETTINGS, **settings})
    return Node(
        config, log, hard_state=log.hard_state, configuration=configuration, applied=applied, rng=random.Random(seed)
    )


def log_with(entries: list[Entry], term: int = 1, vote: int = 0, commit: int = 0) -> MemoryLog:
    log = MemoryLog()
    log.append(entries, HardState(term, vote, commit), sync=True)
    return log


def turn(node: Node, log: MemoryLog) -> Any:
    ready = node.ready()
    log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
    node.advance(ready)
    return ready


def make_leader(log: MemoryLog) -> Node:
    node = make_node(log)
    node.campaign()
    turn(node, log)
    node.step(RequestVoteResponse(2, 1, 1, True, True))
    turn(node, log)
    node.step(RequestVoteResponse(2, 1, 1, True))
    assert node.role == "leader"
    return node
