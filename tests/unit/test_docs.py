"""What the documents name is there: files, functions, make targets, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raykeeper

ROOT = Path(raykeeper.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERYWHERE = [
    *ROOT.glob("*.py"),
    *(p for f in ("actors", "store", "tests", "examples", "benchmarks") for p in (ROOT / f).rglob("*.py")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    paths = {f"/{path.relative_to(ROOT).as_posix()}" for path in EVERYWHERE}
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        assert any(path.endswith(f"/{name}") for path in paths), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_methods_exist(page: Path) -> None:
    sources = [path.read_text() for path in EVERYWHERE]
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", page.read_text()):
        holders = [text for text in sources if re.search(rf"^class {owner}\b", text, re.MULTILINE)]
        inherited = owner in ("Node", "Client", "Cluster")  # made in layers, a file each
        assert holders, f"{page.name} names {owner}"
        assert any(re.search(rf"\b{name}\b", text) for text in (sources if inherited else holders)), f"{owner}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\w+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for file, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page.read_text()):
        assert file in sources, f"{page.name} names {file}"
        assert not name or f"def {name}(" in sources[file], f"{page.name} names {file}::{name}"
