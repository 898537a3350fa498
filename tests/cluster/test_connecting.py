"""Ways in which a driver joins Ray, and so a cluster: what the table of ``docs/ray/connecting.md`` says of each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import ray

from lab.patience import PATIENCE
from lab.ray.programs import PATH, ROOT, run_program
from lab.ray.tools import Made
from rooms import name_of, product_files

pytestmark = pytest.mark.survival


def in_the_tests_ray() -> dict[str, str]:
    """What a driver needs: the address, and to show the token, which ``ray.init`` with an address does not."""
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}


NAMESPACE = """
import sys
import ray, raykeeper

ray.init(namespace=sys.argv[2] or None, log_to_driver=False)
kv = raykeeper.connect(sys.argv[1], timeout=60)

@ray.remote(num_cpus=0)
def task(kv):
    kv.counter("tasks").add(1)
    return kv.get("k").text

assert ray.get(task.remote(kv)) == "v"
"""


@pytest.mark.parametrize("namespace", ["", "theirs", "raykeeper"])
def test_a_driver_may_have_any_namespace_of_ray(namespace: str, clusters: Made) -> None:
    cluster = clusters.launch(members=1)
    cluster.client().put("k", "v")
    run_program("-c", NAMESPACE, cluster.name, namespace, **in_the_tests_ray())
    assert cluster.client().counter("tasks").value() == 1


PY_MODULES = """
import os, signal, sys
import ray
from lab.ray.tools import leader, serving, wait_until
import raykeeper

name, package, data_dir = sys.argv[1:]
ray.init(log_to_driver=False, runtime_env={"py_modules": [package], "env_vars": {"RAYKEEPER_TRAVELS": "1"}})

@ray.remote(num_cpus=0)
def where(kv):
    import raykeeper
    kv.put("from a task", "v")
    return raykeeper.__file__

cluster = raykeeper.launch(name=name, data_dir=data_dir, members=1, supervised=False)
print(ray.get(where.remote(cluster.client())))
member = leader(cluster)
print(ray.get(member.actor.__ray_call__.remote(lambda self: sys.modules["raykeeper"].__file__)))
os.kill(member.pid, signal.SIGKILL)  # Ray starts it again, with the same files
wait_until(lambda: serving(cluster, 1) and leader(cluster).pid != member.pid, 240, lambda: str(cluster.status()))
assert cluster.client(timeout=60).get("from a task").text == "v"
"""


def test_the_package_travels_as_py_modules(clusters: Made, tmp_path: Path) -> None:
    """To nodes that do not have it, only its dependencies."""
    for path in product_files():
        copy = tmp_path / "raykeeper" / name_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(ROOT / "actors" / "proxy", tmp_path / "raykeeper" / "actors" / "proxy", dirs_exist_ok=True)
    folders = str(tmp_path / "raykeeper"), str(clusters.data_dir)
    said = run_program("-c", PY_MODULES, clusters.name, *folders, PYTHONPATH=PATH, **in_the_tests_ray()).splitlines()
    paths = [line for line in said if line.endswith("/raykeeper/__init__.py")]  # Ray has its say, too
    assert len(paths) == 2, said
    assert all("/runtime_resources/py_modules_files/" in path for path in paths), said


PIP = """
import json, os, signal, sys
import ray, raykeeper
from lab.ray.tools import leader, serving, wait_until

wheel, temporary, data_dir = sys.argv[1:]
del os.environ["PYTHONPATH"]  # this program finds the package by it, and Ray's processes do not
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary,
         object_store_memory=100 * 1024 * 1024, runtime_env={"pip": [wheel]})

@ray.remote(num_cpus=0)
def where(kv):
    import raykeeper
    kv.put("from a task", "v")
    return raykeeper.__file__

cluster = raykeeper.launch(name="by-pip", data_dir=data_dir, members=1, supervised=False, timeout=300)
found = [ray.get(where.remote(cluster.client(timeout=60)))]
member = leader(cluster)
found.append(ray.get(member.actor.__ray_call__.remote(lambda self: sys.modules["raykeeper"].__file__)))
os.kill(member.pid, signal.SIGKILL)  # Ray starts it again, in the same environment
wait_until(lambda: serving(cluster, 1) and leader(cluster).pid != member.pid, 240, lambda: str(cluster.status()))
assert cluster.client(timeout=60).get("from a task").text == "v"
cluster.destroy()
print("FOUND" + json.dumps([*found, raykeeper.__file__]))
"""


def test_the_package_comes_by_pip_from_a_wheel(tmp_path: Path, scratch: Path) -> None:
    """To nodes whose Python does not have it, without an index, since they have its dependencies. For that Ray needs
    virtualenv, which comes with ``ray[default]``."""
    virtualenv = importlib.util.find_spec("virtualenv")
    if virtualenv is None or virtualenv.origin is None:
        pytest.skip("virtualenv is not installed: make apps-install")
    copy, python = tmp_path / "source", tmp_path / "bare" / "bin" / "python"
    left_out = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out), symlinks=True)
    written = (copy / "pyproject.toml").read_text()
    version = 'version = "9.9.9"'  # not that of an editable install, which pip would leave
    (copy / "pyproject.toml").write_text(re.sub(r'^version = ".*"$', version, written, flags=re.MULTILINE))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY"))}
    subprocess.run([*pip, "--wheel-dir", tmp_path / "dist", copy], env=clean, check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert "9.9.9" in wheel.name
    # A Python with the dependencies: a path in a .pth file is searched, but not for editable installs.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], env=clean, check=True)
    (site,) = (tmp_path / "bare" / "lib").glob("python3*/site-packages")
    borrowed = [sysconfig.get_path("purelib"), str(Path(virtualenv.origin).parents[1])]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    environment = clean | {
        "PYTHONPATH": f"{ROOT / '.types'}{os.pathsep}{PATH}",
        "PIP_NO_INDEX": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [python, "-c", PIP, wheel, scratch / "pip", tmp_path / "data"],
        env=environment,
        cwd=tmp_path / "dist",  # nothing there is taken for a module
        capture_output=True,
        text=True,
        timeout=8 * PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    *of_ray, own = json.loads(done.stdout.partition("FOUND")[2])
    assert all("/runtime_resources/pip/" in path for path in of_ray), of_ray
    assert "/runtime_resources/" not in own


TOKEN = """
import json, os, subprocess, sys
import ray, raykeeper

temporary, data_dir, client = sys.argv[1:]
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=temporary,
         object_store_memory=100 * 1024 * 1024)
cluster = raykeeper.launch(name="with-token", data_dir=data_dir, members=1)
address = ray.get_runtime_context().gcs_address
for token in (os.environ["RAY_AUTH_TOKEN"], "", "0" * 64):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment.update({"RAY_ADDRESS": address}, **({"RAY_AUTH_TOKEN": token} if token else {}))
    done = subprocess.run([sys.executable, "-c", client], env=environment, capture_output=True, text=True)
    print((done.stdout or done.stderr).splitlines()[-1])
cluster.destroy()
"""
CLIENT = """
import raykeeper
try:
    raykeeper.connect("with-token", timeout=60).put("k", "v")
    print("connected")
except raykeeper.KeeperError as error:
    print(type(error).__name__)
"""


def test_a_ray_with_a_token_is_joined_with_it_alone(scratch: Path, tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "HOME": str(tmp_path)}
    said = run_program("-c", TOKEN, str(scratch / "token"), str(tmp_path / "data"), CLIENT, **token)
    assert said.splitlines() == ["connected", "ClusterNotFound", "ClusterNotFound"]


OTHER = """
import json, sys
import raykeeper
try:
    raykeeper.connect(sys.argv[1], timeout=60).put("k", "v")
    print(json.dumps(["connected", ""]))
except raykeeper.KeeperError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_python_of_another_minor_version_is_told_so(clusters: Made) -> None:
    """``RAYKEEPER_OTHER_PYTHON`` names an interpreter of another minor version, with this Ray and our dependencies."""
    other = os.environ.get("RAYKEEPER_OTHER_PYTHON")
    if not other:
        pytest.skip("RAYKEEPER_OTHER_PYTHON does not name a Python of another version with Ray")
    cluster = clusters.launch(members=1)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", "") or str(ROOT / ".types"),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "HOME": os.environ["HOME"],
    }
    done = subprocess.run([other, "-c", OTHER, cluster.name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, said = json.loads(done.stdout.splitlines()[-1])
    assert kind == "ClusterNotFound"
    assert f"Python: {sys.version_info.major}.{sys.version_info.minor}" in said
    assert "\n" not in said
