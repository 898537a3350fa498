"""Who may import whom (docs/architecture.md). Read from the source, so that a lazy import inside a function counts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raykeeper

ROOT = Path(raykeeper.__file__).parent


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in it; `from . import x` counts as x."""
    package = ["raykeeper", *path.relative_to(ROOT).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from ..store import commands` names a module, `from ..store.commands import Put` something in one.
            found |= {f"{module}.{a.name}" if is_module(f"{module}.{a.name}") else module for a in node.names}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return name.startswith("raykeeper.") and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "raykeeper"}


def within(name: str, *allowed: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def files(*globs: str) -> list[Path]:
    return sorted(path for glob in globs for path in ROOT.glob(glob))


def each(*globs: str) -> pytest.MarkDecorator:
    paths = files(*globs)
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


@each("actors/raft/*.py")
def test_raft_imports_nothing_of_ours(path: Path) -> None:
    assert [name for name in ours(path) if not within(name, "raykeeper.actors.raft")] == []


@each("actors/raft/*.py")
def test_raft_has_no_io_clock_thread_or_global_randomness(path: Path) -> None:
    names = imports(path)
    forbidden = {
        "os",
        "io",
        "time",
        "datetime",
        "threading",
        "asyncio",
        "socket",
        "secrets",
        "uuid",
        "queue",
        "logging",
    }
    assert not {name.split(".")[0] for name in names} & forbidden
    tree = ast.parse(path.read_text())
    drawn = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    ]
    assert set(drawn) <= {"Random"}, "the node's own generator is given to it"


@each("store/*.py")
def test_the_store_knows_of_actors_only_the_messages(path: Path) -> None:
    allowed = ("raykeeper.store", "raykeeper.errors", "raykeeper.limits", "raykeeper.actors.raft.messages")
    # The log raises what Raft's Storage asks of it.
    allowed += ("raykeeper.actors.raft.log",) if path.name == "raft_log.py" else ()
    assert [name for name in ours(path) if not within(name, *allowed)] == []


KNOW_RAY = (
    "cluster.py",
    "ray_head.py",
    "actors/administration.py",
    "actors/backup.py",
    "actors/ending.py",
    "actors/launcher.py",
    "actors/member.py",
    "actors/membership.py",
    "actors/outlook.py",
    "actors/placement.py",
    "actors/ray_admission.py",
    "actors/ray_here.py",
    "actors/ray_session.py",
    "actors/restore.py",
    "actors/roster.py",
    "actors/starting.py",
    "actors/supervisor.py",
    "actors/upgrading.py",
    "actors/transport/client_calls.py",
)


@each("*.py", "actors/**/*.py", "store/**/*.py")
def test_only_these_know_ray(path: Path) -> None:
    knows = any(within(name, "ray") for name in imports(path))
    assert knows is (path.relative_to(ROOT).as_posix() in KNOW_RAY)


@pytest.mark.parametrize("module", ["server", "service", "client.core", "client.watching", "client.leasing"])
def test_what_the_simulator_runs_loads_no_ray_and_no_rocksdb(module: str) -> None:
    code = (
        f"import sys, raykeeper.actors.{module}; "
        "sys.exit(','.join({'ray', 'rocksdict', 'raykeeper.actors.transport.calls'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each("actors/recipes/*.py")
def test_recipes_use_only_the_public_client(path: Path) -> None:
    allowed = ("raykeeper.actors.recipes", "raykeeper.actors.client", "raykeeper.errors", "raykeeper.limits")
    assert [name for name in ours(path) if not within(name, *allowed)] == []


@each("*.py", "actors/**/*.py", "store/**/*.py")
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    absolute = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "raykeeper")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "raykeeper" for alias in node.names))
    ]
    assert absolute == []


def test_only_declared_dependencies_are_imported() -> None:
    declared = {"ray", "cloudpickle", "rocksdict", "msgspec", "click", "rich", "yaml"}
    known = declared | {"raykeeper"} | set(sys.stdlib_module_names)
    for path in files("*.py", "actors/**/*.py", "store/**/*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= known, path
