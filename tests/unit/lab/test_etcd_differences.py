"""What differs from etcd is one list: in the docs, and here with what tests it."""

from __future__ import annotations

import re
from pathlib import Path

import raykeeper
from lab.etcd_differences import DIFFERENCES, OTHERS

ROOT = Path(raykeeper.__file__).parent
PAGE = ROOT / "docs" / "architecture" / "etcd-services.md"


def rows() -> list[str]:
    """Of the table, without the bar that each begins with."""
    table = PAGE.read_text().partition("## What differs from etcd\n")[2].partition("\n## ")[0]
    return [line.removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]


def test_each_row_of_the_table_is_tested_and_each_difference_has_a_row() -> None:
    told = rows()
    beginnings = {*[each.row for each in DIFFERENCES], *OTHERS}
    for row in told:
        longest = max((each for each in beginnings if row.startswith(each)), key=len, default="")
        assert longest, f"nothing tests this difference: {row}"
    for beginning in beginnings:
        assert any(row.startswith(beginning) for row in told), f"the docs do not tell of: {beginning}"


def test_the_tests_are_there() -> None:
    for named in OTHERS.values():
        file, _, test = named.partition("::")
        text = (ROOT / "tests" / "unit" / "actors" / file).read_text()
        assert re.search(rf"^def {test}\(", text, re.MULTILINE), named
