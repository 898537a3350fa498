"""What the product is built on: each package has its reason in the docs, and `make audit` finds what is not current."""

from __future__ import annotations

from importlib.metadata import version

from packaging.requirements import Requirement

from lab.dependencies import findings, requirements
from rooms import ROOT


def test_each_dependency_has_its_reason_in_the_overview_and_its_range_allows_what_is_installed() -> None:
    overview = (ROOT / "docs" / "architecture" / "overview.md").read_text()
    rows = [line.split("|")[1] for line in overview.splitlines() if line[:2] == "| "]
    named = {name.strip() for row in rows for name in row.split(",")}
    for each in requirements():
        assert each.name in named
        assert each.specifier.contains(version(each.name)), each


def test_what_is_not_current_is_named() -> None:
    needed = [Requirement(text) for text in ("old>=1", "narrow>=1,<2", "current>=1,<4", "ahead>=1")]
    latest = {"old": "1.10", "narrow": "2.0", "current": "3.1", "ahead": "1.0"}
    here = {"old": "1.9", "narrow": "1.5", "current": "3.1", "ahead": "1.1"}
    assert findings(needed, latest.__getitem__, here.__getitem__) == [
        "old: 1.10 is out, and the tests ran with 1.9",
        "narrow: 2.0 is out, and <2,>=1 does not allow it",
    ]
    assert findings(needed[2:], latest.__getitem__, here.__getitem__) == []
