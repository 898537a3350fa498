"""A cluster in memory in place of Ray, for every test of the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clientlab.cluster import FakeCluster

from raykeeper import Client
from raykeeper.actors.client import registry


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """The cluster that ``make_transport`` finds under the name ``test``."""
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    return cluster


def serve(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> None:
    monkeypatch.setattr(registry, "make_transport", cluster.transport)
    monkeypatch.setattr(registry, "_hubs", {})


def connect(name: str = "test", timeout: float = 5.0) -> Client:
    """What ``raykeeper.connect`` does, without Ray."""
    share = registry.open_hub(name, timeout)
    return Client(name, share.hub.cluster, share=share, timeout=timeout)


@pytest.fixture
def kv(cluster: FakeCluster) -> Iterator[Client]:
    """A handle to that cluster."""
    with connect() as client:
        yield client
