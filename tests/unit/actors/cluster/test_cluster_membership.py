"""What is done to a member that may have left the configuration. Played members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raykeeper import InvalidArgument, Unavailable
from raykeeper.actors.cluster import cluster_membership
from raykeeper.actors.cluster.cluster_membership import ClusterMembership
from raykeeper.schema.member_record import MemberRecord


class PlayedOps:
    """The steps; the cluster refuses to retire a member of its configuration."""

    def __init__(self, *, has_left: bool) -> None:
        self._has_left = has_left
        self.done: list[str] = []

    def retire(self, member: int) -> None:
        if not self._has_left:
            raise InvalidArgument(f"m{member} takes part")
        self.done.append("retire")

    def stop_member(self, member: int) -> None:
        self.done.append("stop")

    def delete_data(self, member: MemberRecord, nodes: Any) -> None:
        self.done.append(f"delete {member.base}")


class PlayedCluster(ClusterMembership):
    name, id = "c", 1

    def __init__(self, ops: PlayedOps) -> None:
        self._ops = ops

    def members(self, *, timeout: float = 1.0) -> Any:
        raise NotImplementedError

    def _membership_ops(self) -> Any:
        return self._ops


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("has_left", [True, False])
def test_only_a_member_that_has_left_is_cleared(seen: bool, has_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log decides, whatever the members that were observed knew by then."""
    record = MemberRecord(4, "m4", "pin", "/base", removed=not seen)
    best = SimpleNamespace(table=(record,) if seen else (), removed=() if seen else (record,))
    observation = SimpleNamespace(best=best, nodes=())
    monkeypatch.setattr(cluster_membership, "observe_cluster", lambda name: observation)
    ops = PlayedOps(has_left=has_left)
    cluster = PlayedCluster(ops)
    if has_left:
        cluster._clear_left_member(4)
        assert ops.done == ["retire", "stop", "delete /base"]
    else:
        with pytest.raises(Unavailable, match="takes part"):
            cluster._clear_left_member(4)
        assert ops.done == []
