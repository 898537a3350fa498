"""The wheel, in a clean environment, puts one name on the path, `raykeeper`, and every module of it imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import raykeeper
from rooms import ROOT, name_of, product_files

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: what setuptools leaves in a tree would find its way into the next wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "copy", ignore=LEFT_OUT, symlinks=True)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--wheel-dir", folder / "dist", folder / "copy"),
        cwd=folder,
    )
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; it borrows the dependencies, but not the editable install, of this one."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A path in a .pth file is searched, but .pth files in it (the editable install's) are not read.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def modules() -> set[str]:
    """Files of the product in the tree, as paths from the root."""
    return {name_of(path) for path in product_files()}


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    made = {f"raykeeper/{path}i" for path in modules() if path.endswith("_pb2.py")}
    data = {"raykeeper/py.typed", "raykeeper/actors/proxy/etcdpb/descriptors.binpb"}
    page = {f"raykeeper/{path.relative_to(ROOT)}" for path in (ROOT / "actors/proxy/console").iterdir()}
    assert len(page) > 3
    assert names == {f"raykeeper/{path}" for path in modules()} | made | data | page


def test_every_module_imports_and_nothing_else_is_on_the_path(python: Path) -> None:
    program = """
import importlib, importlib.util, json, pkgutil, sys
import raykeeper
quick = "ray" not in sys.modules
names = [m.name for m in pkgutil.walk_packages(raykeeper.__path__, "raykeeper.")]
for name in names:
    importlib.import_module(name)
public = [name for name in raykeeper.__all__ if getattr(raykeeper, name, None) is None]
beside = [n for n in ("actors", "store", "tests", "examples", "benchmarks", "docs") if importlib.util.find_spec(n)]
print(json.dumps([raykeeper.__file__, quick, names, public, beside]))
"""
    file, quick, names, missing, beside = json.loads(run(python, "-I", "-c", program, cwd=python.parent))
    assert Path(file).is_relative_to(python.parent.parent)
    assert quick, "`import raykeeper` alone must not load Ray"
    dotted = {path[: -len(".py")].replace("/", ".").removesuffix(".__init__") for path in modules()}
    assert set(names) == {f"raykeeper.{name}" for name in dotted - {"__init__"}}
    assert missing == []
    assert beside == []


def test_the_command_is_installed(python: Path) -> None:
    said = run(python.parent / "raykeeper", "--version", cwd=python.parent)
    assert said.strip() == f"raykeeper, version {raykeeper.__version__}"
