"""All bounds stand in limits.py, and every one of them is used: a bound that nothing obeys is not a bound."""

from __future__ import annotations

import ast

import pytest

from raykeeper import limits
from raykeeper.limits import Limits, Timings
from rooms import ROOT, product_files

CONSTANTS = [name for name in vars(limits) if name.isupper()]


def used_names() -> set[str]:
    """Every attribute and name that product code reads outside limits.py."""
    names: set[str] = set()
    for path in product_files():
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
    assert name in USED


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_that_is_not_a_count_ends_in_its_unit(name: str) -> None:
    units = ("_S", "_BYTES", "_BITS", "_FRACTION", "_DIVISOR", "_FACTOR", "_SHIFT", "_AMOUNT")
    assert isinstance(getattr(limits, name), int) or name.endswith(units)


def test_each_field_says_what_it_bounds() -> None:
    for struct in ast.parse((ROOT / "limits.py").read_text()).body:
        if isinstance(struct, ast.ClassDef) and struct.name in ("Timings", "Limits", "Compaction"):
            for field, after in zip(struct.body, [*struct.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{ast.unparse(field)}: a docstring after it"


def test_the_defaults_are_finite_and_positive() -> None:
    for section in (Limits(), Timings()):
        for name in section.__struct_fields__:
            assert 0 < getattr(section, name) < 2**40


def test_nothing_waits_forever_on_the_hot_path() -> None:
    assert limits.TURN_S < Timings().heartbeat_interval < Timings().election_timeout < limits.DEFAULT_TIMEOUT_S
