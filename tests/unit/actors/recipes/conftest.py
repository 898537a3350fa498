"""Recipes against one real member in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lab import patience
from lab.onemember import OneMember, one_member
from raykeeper import Client
from raykeeper.actors.recipes import barrier


@pytest.fixture(scope="module")
def member() -> Iterator[OneMember]:
    with one_member() as made:
        yield made


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/")


@pytest.fixture(autouse=True)
def no_hurry_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A party that gives up hears in time what came of that, however slow the machine is."""
    monkeypatch.setattr(barrier, "CLEANUP_GRACE_S", patience.PATIENCE)


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for a condition."""
    return patience.until
