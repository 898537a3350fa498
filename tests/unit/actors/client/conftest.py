"""A cluster in memory in place of Ray, for every test of the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.client.cluster import FakeCluster, connect, serve
from raykeeper import Client


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """The cluster that is found under the name ``test``."""
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    return cluster


@pytest.fixture
def kv(cluster: FakeCluster) -> Iterator[Client]:
    """A handle to that cluster."""
    with connect() as client:
        yield client
