"""Restarting members one by one: what is said when the time is over. ``tests/cluster/test_upgrade.py`` has the rest."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from lab.patience import PATIENCE
from raykeeper.actors.cluster import upgrade
from raykeeper.errors import Unavailable


def test_who_was_waited_for_is_said_even_if_ray_is_asked_when_the_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [SimpleNamespace(leader=None)]

    def observe(cluster_name: str) -> Any:
        if seen:
            return seen.pop()
        raise Unavailable("Ray's control service did not answer in time")

    monkeypatch.setattr(upgrade, "observe_cluster", observe)
    monkeypatch.setattr(upgrade, "pause_between_checks", lambda pause: None)
    with pytest.raises(Unavailable, match=r"one by one: there is no leader \(Ray's control service"):
        upgrade._wait_whole("jobs", {}, time.monotonic() + PATIENCE)
    with pytest.raises(Unavailable, match=r"^Ray's control service"):
        upgrade._wait_whole("jobs", {}, time.monotonic() + PATIENCE)
