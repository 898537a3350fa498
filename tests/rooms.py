"""Which files are the product's: one list for all tests that read its source."""

from __future__ import annotations

from pathlib import Path

import raykeeper

ROOT = Path(raykeeper.__file__).parent

ROOMS = ("raft", "schema", "store", "actors", "cli")
"""The folders of the product; beside them, the files of the root."""


def product_files(*rooms: str) -> list[Path]:
    """All Python files of some rooms (``actors/member`` is one, too), of the whole product if none is named."""
    inside = [path for room in rooms or ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted([*inside, *([] if rooms else ROOT.glob("*.py"))])


def name_of(path: Path) -> str:
    """``actors/member/replica.py``."""
    return path.relative_to(ROOT).as_posix()
