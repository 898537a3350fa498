"""What tests of commands share."""

from __future__ import annotations

import pytest

from lab.commands import FakeClient
from raykeeper.cli import keys, txn


@pytest.fixture
def kv(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client of all commands on keys."""
    client = FakeClient()
    for file in (keys, txn):
        monkeypatch.setattr(file, "open_keys", lambda *_: client)
    return client
