"""What the import contracts (``.importlinter``, part of ``make lint``) cannot say of imports.

Read from the source, so that a lazy import inside a function counts, and seen in processes of their own.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rooms import ROOT, name_of, product_files

_IMPORT = re.compile(r"(?:^|[\n;])\s*from (raykeeper(?:\.\w+)*) import (\([^)]*\)|[^\n;]*)")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports from elsewhere, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


def named_in_text(text: str) -> set[tuple[str, str]]:
    """What the programs inside the strings of a file import from the product: modules, and names of theirs."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for module, names in _IMPORT.findall(node.value):
                found |= {(module, name.split()[0]) for name in names.strip("()").split(",") if name.strip()}
    return found


@functools.cache
def own_names(path: Path) -> frozenset[str]:
    """The names that a module has, not those that it imports only for itself."""
    own: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Assign):
            own |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            own.add(ast.unparse(node.target))
        elif isinstance(node, ast.ImportFrom):
            own |= {alias.name for alias in node.names if alias.asname == alias.name}  # for others, too
    return frozenset(own)


def has(module: str, name: str) -> bool:
    """Whether a module, or a package, has such a name of its own."""
    path = ROOT.joinpath(*module.split(".")[1:])
    if path.is_dir():
        return (path / f"{name}.py").exists() or (path / name).is_dir() or name in (path / "__init__.py").read_text()
    return name in own_names(path.with_suffix(".py"))


def each(*rooms: str) -> pytest.MarkDecorator:
    paths = product_files(*rooms)
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


@each("raft")
def test_raft_draws_from_its_own_generator(path: Path) -> None:
    drawn = [
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    ]
    assert set(drawn) <= {"Random"}, "the node's own generator is given to it"


KNOW_RAY = {
    "cli/ray_head.py",
    "actors/actor_access.py",
    "actors/log_files.py",
    "actors/ray_metrics.py",
    "actors/cluster/destroy.py",
    "actors/cluster/hung_process.py",
    "actors/cluster/launch.py",
    "actors/member/actor.py",
    "actors/member/member_actor.py",
    "actors/cluster/membership.py",
    "actors/cluster/node_probe.py",
    "actors/cluster/observe.py",
    "actors/cluster/ray_nodes.py",
    "actors/cluster/proxy_handle.py",
    "actors/proxy/proxy_lookup.py",
    "actors/proxy/membership_tasks.py",
    "actors/proxy/proxy_actor.py",
    "actors/proxy/proxy_place.py",
    "actors/ray_auth.py",
    "actors/ray_local.py",
    "actors/ray_attached.py",
    "actors/ray_session.py",
    "actors/cluster/restore.py",
    "actors/discovery.py",
    "actors/cluster/spawn.py",
    "actors/cluster/supervisor.py",
    "actors/cluster/supervisor_handle.py",
    "actors/cluster/backup.py",
    "actors/cluster/upgrade.py",
    "actors/transport/client_actor.py",
    "actors/ray_lives.py",
}


@each()
def test_only_these_know_ray(path: Path) -> None:
    knows = any(name.split(".")[0] == "ray" for name in imports(path))
    assert knows is (name_of(path) in KNOW_RAY)


@each()
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    assert [name for name in imports(path) if name.split(".")[0] == "raykeeper"] == []


def test_programs_inside_tests_import_names_from_where_they_are() -> None:
    """The type checker says so of all other imports. Here, a name that was moved is seen only when the program runs."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text()
        if _IMPORT.search(text):
            found = sorted(named_in_text(text))
            wrong += [f"{path.name}: {module}.{name}" for module, name in found if not has(module, name)]
    assert wrong == []


def test_only_declared_dependencies_are_imported() -> None:
    declared = {"ray", "cloudpickle", "rocksdict", "msgspec", "google_crc32c", "click", "rich", "yaml", "google"}
    declared |= {"hpack", "h11", "bcrypt", "prometheus_client"}
    known = declared | set(sys.stdlib_module_names)
    for path in product_files():
        optional = {"opentelemetry"} if name_of(path) == "actors/span_otel.py" else set()
        assert {name.split(".")[0] for name in imports(path)} <= known | optional, path


UNPICKLERS = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "_pickle"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


@each()
def test_only_the_codec_that_a_handle_asks_for_unpickles(path: Path) -> None:
    """What comes from the wire or from a disk is decoded by types: bytes that become code would be everybody's."""
    tree = ast.parse(path.read_text())
    reads = {
        f"{ast.unparse(node.func.value)}.{node.func.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("load", "loads", "Unpickler") and "pickle" in ast.unparse(node.func.value)
    }
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & RUNS_TEXT
    if name_of(path) == "codec.py":
        assert reads == {"cloudpickle.loads"}
    else:
        assert not reads
        assert not {name.split(".")[0] for name in imports(path)} & UNPICKLERS


def loaded_by(code: str) -> set[str]:
    """The modules of a fresh process after it ran some code."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def within(modules: set[str], *rooms: str) -> list[str]:
    return sorted(name for name in modules if any(name == room or name.startswith(f"{room}.") for room in rooms))


CLIENT = "import raykeeper; raykeeper.connect; raykeeper.Client; raykeeper.codec.JSON; raykeeper.Compare"
SERVER = ("raykeeper.actors.member", "raykeeper.actors.cluster", "raykeeper.store", "raykeeper.cluster", "rocksdict")


def test_a_client_process_loads_no_server() -> None:
    """Every process of a job that only uses a cluster pays for what it imports, in time and in memory."""
    assert within(loaded_by(CLIENT), *SERVER, "click", "rich") == []


def test_a_member_s_actor_class_loads_no_server() -> None:
    """Ray loads the class in every process that looks up a member."""
    found = within(loaded_by("import raykeeper.actors.member.member_actor"), *SERVER)
    assert found == ["raykeeper.actors.member", "raykeeper.actors.member.member_actor"]


def test_a_proxy_loads_no_server() -> None:
    assert within(loaded_by("import raykeeper.actors.proxy.proxy_actor"), *SERVER, "click", "rich") == []


def test_a_client_process_loads_little_beside_ray() -> None:
    """Ray is there in any case; what comes on top is a client, and nothing heavy under it."""
    beside = loaded_by(f"import ray\n{CLIENT}") - loaded_by("import ray")
    foreign = {name.split(".")[0] for name in beside} - set(sys.stdlib_module_names)
    assert foreign <= {"raykeeper", "msgspec", "cloudpickle"}
    parts = {".".join(name.split(".")[1:3]) for name in within(beside, "raykeeper.actors")}
    client = {"arguments", "background", "client", "connect", "deadline", "finalizer_guard", "handles", "transport"}
    client |= {"this_process", "tracing", "process_tracer", "interruptible", "one_thread", "proxy_claims"}
    assert parts - {"actors"} == {f"actors.{part}" for part in client}
    ways = "raykeeper.actors.transport"
    assert within(beside, ways) == [ways, *(f"{ways}.{name}" for name in ("client_transport", "loop_reader", "waiter"))]
    assert within(beside, "raykeeper.actors.client.cached", "raykeeper.actors.client.cache_sync") == []


def test_the_package_alone_loads_next_to_nothing() -> None:
    beside = loaded_by("import raykeeper") - loaded_by("")
    assert within(beside, "ray", "msgspec", "yaml", *SERVER) == []
    assert within(beside, "raykeeper") == ["raykeeper", "raykeeper.errors"]


@pytest.mark.parametrize(
    "module",
    [
        "member.replica",
        "member.request_handler",
        "client.core.dispatch_core",
        "client.core.watch_core",
        "client.core.lease_core",
    ],
)
def test_what_the_simulator_runs_loads_no_ray_and_no_rocksdb(module: str) -> None:
    loaded = loaded_by(f"import raykeeper.actors.{module}")
    assert within(loaded, "ray", "rocksdict", "raykeeper.actors.transport.peer_transport") == []


@each("actors/recipes")
def test_recipes_use_only_the_public_client(path: Path) -> None:
    allowed = (
        "recipes",
        "client",
        "arguments",
        "background",
        "deadline",
        "finalizer_guard",
        "interruptible",
        "one_thread",
    )
    tree = ast.parse(path.read_text())
    for_types = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in node.body
    ]  # what a guard returns is a client, whose calls make recipes
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
            assert node.module.split(".")[0] in allowed
        if isinstance(node, ast.ImportFrom) and node.level == 3:
            assert node.module in ("errors", "limits", "codec")
