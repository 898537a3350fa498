"""The phrases of ``docs/phrases.txt`` occur nowhere: what ``docs/style.md`` asks for and codespell cannot see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rooms import ROOT, product_files

LIST = ROOT / "docs" / "phrases.txt"
FOLDERS = ("docs", "tests", "examples", "benchmarks")
SUFFIXES = {".py", ".md", ".yaml", ".toml"}


def phrases() -> list[tuple[str, str]]:
    """Pairs of a regular expression and what to say instead."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" -> ") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "a line is `expression -> instead`"
    return [(pattern, instead) for pattern, instead in pairs]


def text_of(path: Path) -> str:
    """The text of a file with its lines joined, so that a phrase is found across the end of a line."""
    return re.sub(r"\s*\n[\s#*]*", " ", path.read_text())


FILES = sorted(
    {
        *product_files(),
        *(path for path in ROOT.glob("*") if path.suffix in SUFFIXES),
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES),
    }
)
TEXTS = {path: text_of(path) for path in FILES}


@pytest.mark.parametrize(("pattern", "instead"), phrases(), ids=[pattern for pattern, _ in phrases()])
def test_phrase_is_gone(pattern: str, instead: str) -> None:
    expression = re.compile(pattern.replace(" ", r"\s"), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: ...{text[max(0, hit.start() - 30) : hit.end() + 20]}..."
        for path, text in TEXTS.items()
        for hit in expression.finditer(text)
    ]
    assert not found, f"say {instead!r} instead:\n" + "\n".join(found)
