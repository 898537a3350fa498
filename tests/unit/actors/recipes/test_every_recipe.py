"""Every coordination call is in the tables of the tests that go through all of them, and has its page."""

from __future__ import annotations

import inspect
import re

import pytest

from lab.client.surface import SYNC
from raykeeper.actors.handles import AsyncCoordination, Coordination
from rooms import ROOT

LISTS_THE_OTHERS = "in_use"
WITHOUT_AN_OBJECT = ("atomically", "on_change", "on_connection")
"""Calls that make nothing that has calls of its own."""
CALLS = [name for name in vars(Coordination) if not name.startswith("_") and name != LISTS_THE_OTHERS]
TABLES = ("tests/unit/actors/recipes/test_extreme_arguments.py", "tests/lab/client/scenarios.py")


@pytest.mark.parametrize("name", CALLS)
def test_it_is_among_the_others(name: str) -> None:
    assert hasattr(AsyncCoordination, name)
    assert name in {*WITHOUT_AN_OBJECT, *[kind.lower() for kind in SYNC]}, (
        "tests/lab/client/surface.py: what it makes, and a row for each call"
    )
    for table in TABLES:
        assert f".{name}(" in (ROOT / table).read_text(), table


@pytest.mark.parametrize("name", CALLS)
def test_it_has_a_page(name: str) -> None:
    pages = ROOT / "docs" / "coordination"
    assert (pages / f"{name}.md").exists()
    assert f"]({name}.md)" in (pages / "README.md").read_text()


@pytest.mark.parametrize("kind", SYNC)
def test_what_takes_a_request_id_is_done_once(kind: str) -> None:
    table = (ROOT / "tests/unit/actors/recipes/test_request_ids.py").read_text()
    for name, method in inspect.getmembers(SYNC[kind], inspect.isfunction):
        if not name.startswith("_") and "request_id" in inspect.signature(method).parameters:
            call = rf"kv\.{name}\(" if kind == "Client" else rf"kv\.{kind.lower()}\(.*\)\.{name}\("
            assert re.search(call, table), f"{kind}.{name}"
