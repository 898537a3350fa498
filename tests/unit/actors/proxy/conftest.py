"""A proxy's port for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.http2.port import Port


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()
