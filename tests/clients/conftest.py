"""A real etcd and a proxy's port, both with an empty store, for each module or version of a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.etcd import running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port


@contextmanager
def _both() -> Iterator[tuple[str, EtcdPort]]:
    with running_etcd() as etcd, etcd_port() as port:
        yield etcd.endpoint, port


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    """A proxy's port alone."""
    with etcd_port() as port:
        yield port


@pytest.fixture
def both() -> Iterator[tuple[str, EtcdPort]]:
    """Both, fresh: their revisions are the same as long as they are asked the same."""
    with _both() as both:
        yield both
