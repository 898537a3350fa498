"""The generated pages under ``docs/reference/``: limits, which room may import which, and the commands' JSON.
``make docs`` writes them.

Everything is read from the source (``limits.py``, ``.importlinter``, docstrings), so a page cannot say anything else
than the code; ``tests/unit/test_docs.py`` fails while a page is not what this program would write.
"""

from __future__ import annotations

import ast
import configparser
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"

UNITS = {"Bytes": "bytes", "Seconds": "s", "Fraction": "fraction"}
"""By the type of a field of a struct."""
SUFFIXES = {
    "_PER_S": "a second",
    "_PER_SECOND": "a second",
    "_S": "s",
    "_BYTES": "bytes",
    "_BITS": "bits",
    "_FRACTION": "fraction",
    "_DIVISOR": "divisor",
    "_FACTOR": "factor",
    "_SHIFT": "bits",
}
"""By the end of a constant's name; the first that fits counts."""
NAMES = runpy.run_path(str(ROOT / "limits.py"), run_name="limits")
"""For defaults that are computed from others."""
SECTIONS = {
    "Timings": "`timings`",
    "Limits": "`limits`",
    "Compaction": "`compaction`",
    "Settings": "At the root of the spec",
}


class Bound(NamedTuple):
    """One row."""

    name: str
    default: str
    unit: str
    meaning: str


def shown(node: ast.expr, unit: str) -> str:
    """A default as a reader wants it: ``64 MiB``, ``20,000``, ``0.1``."""
    value = eval(compile(ast.Expression(node), "limits.py", "eval"), NAMES)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and unit == "bytes":
        for size, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size and value * 10 % size == 0:
                return f"{value / size:g} {name}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.10g}"
    return f"`{value}`" if value else ""


def meaning(nodes: list[ast.stmt], at: int) -> str:
    """The docstring after a field or constant."""
    after = nodes[at + 1] if at + 1 < len(nodes) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return " ".join(after.value.value.split()).replace("``", "`").replace("|", "\\|")
    return ""


def fields(node: ast.ClassDef) -> Iterator[Bound]:
    """The fields of a struct; those that are structs have a table of their own."""
    for at, field in enumerate(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
            kind = ast.unparse(field.annotation)
            if kind not in SECTIONS:
                unit = UNITS.get(kind) or (unit_of(field.target.id) if kind != "bool" else "")
                default = shown(field.value, unit)
                rate = unit_of(field.target.id) == "a second" and kind in UNITS
                yield Bound(field.target.id, default, f"{unit} a second" if rate else unit, meaning(node.body, at))


def unit_of(name: str) -> str:
    """The unit that the end of a name says; of a count, what is counted (``max_page_items``)."""
    last = name.rpartition("_")[2].lower()
    counted = last if last.endswith("s") and last != "s" else ""
    return next((unit for suffix, unit in SUFFIXES.items() if name.upper().endswith(suffix)), counted)


def table(bounds: list[Bound]) -> list[str]:
    """Rows of Markdown."""
    head = ["| name | default | unit | meaning |", "|---|---|---|---|"]
    return [*head, *(f"| `{bound.name}` | {bound.default} | {bound.unit} | {bound.meaning} |" for bound in bounds), ""]


def limits_page() -> str:
    """All bounds of ``limits.py``: those that a spec may change, then the constants, by the comments above them."""
    source = (ROOT / "limits.py").read_text()
    lines = source.splitlines()
    module = ast.parse(source)
    out = [
        "# Limits",
        "",
        "Every queue, buffer, window and wait of RayKeeper takes its bound from `limits.py`. This page is made from it",
        "(`make docs`). What is over a bound is refused at once, with an error that says so. Sizes are bytes,",
        "times are seconds.",
        "",
        "## In the spec",
        "",
        "A cluster may change these: in `cluster.yaml` when it is made, later by `Cluster.configure`.",
        "",
    ]
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name in SECTIONS:
            about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()).replace("``", "`")
            out += [f"### {SECTIONS[node.name]}", "", about, "", *table(list(fields(node)))]
    out += ["## Fixed", "", "These are the same in every cluster of one version.", ""]
    group: list[Bound] = []
    for at, node in enumerate(module.body):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        if not name.isupper():
            continue
        above = node.lineno - 2
        if lines[above].startswith("# "):
            first = above
            while lines[first - 1].startswith("# "):
                first -= 1
            heading = " ".join(line[2:] for line in lines[first : above + 1]).replace("``", "`")
            out += [*(table(group) if group else []), f"### {heading.rstrip('.')}", ""]
            group = []
        elif not lines[above] and group:
            out += table(group)
            group = []
        unit = unit_of(name)
        group.append(Bound(name, shown(node.value, unit), unit, meaning(module.body, at)))
    return "\n".join([*out, *table(group)])


def about(room: str) -> str:
    """The first sentence of a room's or a file's docstring."""
    path = ROOT / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split()).replace("``", "`")
    words = re.sub(r":\w+:`", "`", words)
    return re.split(r"(?<=[.:?])\s", words, maxsplit=1)[0].rstrip(":.").replace("|", "\\|")


def room_link(room: str) -> str:
    """A room as a path in the tree."""
    path = room.replace(".", "/")
    return f"`{path}/`" if (ROOT / path).is_dir() else f"`{path}.py`"


def floors_page() -> str:
    """The import contracts of ``.importlinter``."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    out = [
        "# Import floors",
        "",
        "Which room may import which. `make lint` checks it with import-linter; this page is made from `.importlinter`",
        "(`make docs`). A room imports from the floors below its own, never from its own floor or from above. A file",
        "that has no floor fails the check.",
        "",
    ]
    for section in contracts.sections():
        if not section.startswith("importlinter:contract:"):
            continue
        contract = contracts[section]
        out += [f"## {contract['name'][0].upper()}{contract['name'][1:]}", ""]
        if contract["type"] == "layers":
            out += layers(contract)
        elif contract["type"] == "forbidden":
            out += forbidden(contract)
        else:
            out += ["No two siblings, at any depth, import each other in a circle.", ""]
    return "\n".join(out)


def layers(contract: configparser.SectionProxy) -> list[str]:
    """One row for each room; rooms on one floor do not import each other."""
    container = contract["containers"].strip().removeprefix("raykeeper").strip(".")
    floors = contract["layers"].split("\n")
    floors = [floor.strip() for floor in floors if floor.strip()]
    out = ["| floor | room | |", "|---|---|---|"]
    for height, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        for name in floor.split(" | "):
            room = f"{container}.{name}" if container else name
            out.append(f"| {height} | {room_link(room)} | {about(room)} |")
    exceptions = [line.strip() for line in contract.get("ignore_imports", "").split("\n") if line.strip()]
    out += ["", *(f"Except: `{line.replace('raykeeper.', '')}`." for line in exceptions)]
    return [*out, ""] if exceptions else out


def forbidden(contract: configparser.SectionProxy) -> list[str]:
    """Which modules must not import which, directly or through others."""

    def names(key: str) -> str:
        return ", ".join(f"`{line.strip()}`" for line in contract[key].split("\n") if line.strip())

    return [
        f"{names('source_modules')} must not import, directly or by way of others: {names('forbidden_modules')}.",
        "",
    ]


def json_page() -> str:
    """The fields of the commands' JSON."""
    make: Callable[[], str] = runpy.run_path(str(ROOT / "cli" / "json_forms.py"))["page"]
    return make()


PAGES = {
    REFERENCE / "limits.md": limits_page,
    REFERENCE / "floors.md": floors_page,
    REFERENCE / "json.md": json_page,
}


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(exist_ok=True)
    for path, make in PAGES.items():
        path.write_text(make())


if __name__ == "__main__":
    main()
