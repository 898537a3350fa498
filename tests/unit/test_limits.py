"""All bounds stand in limits.py, and every one of them is used: a bound that nothing obeys is no bound."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import raykeeper
from raykeeper import limits
from raykeeper.limits import Limits, Timings

ROOT = Path(raykeeper.__file__).parent
CONSTANTS = [name for name in vars(limits) if name.isupper()]

FOR_THE_SUPERVISOR = {"replace_after"}
"""Specs may set it already; the supervisor that obeys it is not built yet."""


def used_names() -> set[str]:
    """Every attribute and name that product code reads outside limits.py."""
    names: set[str] = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("actors/**/*.py"), *ROOT.glob("store/**/*.py")]:
        if path == ROOT / "limits.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name):
                names.add(node.id)
    return names


USED = used_names()


@pytest.mark.parametrize("name", [*Limits.__struct_fields__, *Timings.__struct_fields__, *CONSTANTS])
def test_each_bound_is_obeyed_somewhere(name: str) -> None:
    assert name in USED or name in FOR_THE_SUPERVISOR


def test_the_defaults_are_finite_and_positive() -> None:
    for section in (Limits(), Timings()):
        for name in section.__struct_fields__:
            assert 0 < getattr(section, name) < 2**40


def test_nothing_waits_for_ever_on_the_hot_path() -> None:
    assert limits.TURN_SECONDS < Timings().heartbeat_interval < Timings().election_timeout < limits.DEFAULT_TIMEOUT
