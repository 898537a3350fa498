"""A proxy's port for each test that asks for one, and proxies that are patient with a slow machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.http2.port import Port

LONG_S = 120.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy gives up after seven seconds. What tests say of answers must not hang on that; those of giving up choose
    a time of their own."""
    for file in ("etcd_backend", "member_calls", "proxy_users"):
        monkeypatch.setattr(f"raykeeper.actors.proxy.{file}.PROXY_TIMEOUT_S", LONG_S)


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()
