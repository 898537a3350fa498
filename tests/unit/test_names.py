"""One name, one thing: no two classes, public constants or modules of the product share a name (``docs/style.md``)."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator

from rooms import name_of, product_files

SHARED_FILE_NAMES = {
    "__init__.py": "Python's own",
    "lock.py": "the recipe, and in cli/ the command of that name",
    "watch.py": "what a handle's watch is, and in cli/ the command of that name",
    "maintenance.py": "a member's, and in cli/ the commands of that kind",
}
"""File names that occur more than once, and why they may. A command's file is called after the command."""


def type_names(tree: ast.Module) -> Iterator[str]:
    """The classes of a file, nested ones too, and its type aliases (``Reply = Written | Refused``)."""
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Subscript):
            targets = [each.id for each in node.targets if isinstance(each, ast.Name)]
            yield from (name for name in targets if name.lstrip("_")[0].isupper() and not name.isupper())


def repeated(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that come from more than one file."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, where in names:
        found[name].append(where)
    return {name: places for name, places in found.items() if len(places) > 1}


def test_each_class_name_means_one_thing() -> None:
    names = ((name, name_of(path)) for path in product_files() for name in type_names(ast.parse(path.read_text())))
    assert repeated(names) == {}


def constant_names(tree: ast.Module) -> Iterator[str]:
    """The public constants of a file: a private one may be called after its part in the file."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = (each.id for each in node.targets if isinstance(each, ast.Name))
            yield from (name for name in names if len(name) > 1 and name.isupper() and not name.startswith("_"))


def test_each_public_constant_means_one_thing() -> None:
    names = ((name, name_of(path)) for path in product_files() for name in constant_names(ast.parse(path.read_text())))
    assert repeated(names) == {}


def test_each_file_name_means_one_thing() -> None:
    again = repeated((path.name, name_of(path)) for path in product_files())
    assert again.keys() == SHARED_FILE_NAMES.keys(), again
    beside_commands = {
        name: [place for place in places if not place.startswith("cli/")]
        for name, places in again.items()
        if name != "__init__.py"
    }
    assert all(len(places) == 1 for places in beside_commands.values()), beside_commands
