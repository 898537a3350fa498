"""Patroni keeps its cluster of PostgreSQL in our store, by etcd's API: the primary is killed, the replica takes over.

Patroni and PostgreSQL run as they are. PostgreSQL refuses to run as root, so there they run as the user postgres.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.etcd import free_ports
from lab.http2.etcd_port import EtcdPort

pytestmark = pytest.mark.survival
PATIENCE = 120.0


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("postgres")
    if not found and on_path is None:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


def unprivileged() -> list[str]:
    """What a command begins with to run as somebody who is not root, but may read the files of this environment."""
    if os.getuid() != 0:
        return []
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *may_read]
    try:
        subprocess.run([*prefix, sys.executable, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is root, and Patroni cannot be run as the user postgres")
    return prefix


class Node:
    """A Patroni with its PostgreSQL."""

    def __init__(self, name: str, endpoint: str, folder: Path, programs: Path) -> None:
        self.name = name
        self._rest, self.port = free_ports(2)
        self._prefix = unprivileged()
        self._folder = folder
        self._configuration = folder / f"{name}.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        accounts = {
            "superuser": {"username": "postgres", "password": "p"},
            "replication": {"username": "r", "password": "p"},
        }
        settings = {
            "scope": "demo",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{self._rest}", "connect_address": f"127.0.0.1:{self._rest}"},
            "etcd3": {"host": endpoint},
            "bootstrap": {
                "dcs": {
                    "ttl": 20,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_log_hints": "on"}},
                },
                "initdb": [{"encoding": "UTF8"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(folder / name),
                "bin_dir": str(programs),
                "pgpass": str(folder / f"{name}.pgpass"),
                "authentication": accounts,
                "parameters": {"unix_socket_directories": str(folder), "shared_buffers": "16MB", "fsync": "off"},
                "pg_hba": [
                    "host all all 127.0.0.1/32 md5",
                    "host replication r 127.0.0.1/32 md5",
                    "local all all trust",
                ],
            },
        }
        self._configuration.write_text(yaml.safe_dump(settings))

    def start(self) -> None:
        with open(self._folder / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "patroni", str(self._configuration)],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Patroni and PostgreSQL, as if the machine lost its power."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(30)
        self._process = None
        file = self._folder / self.name / "postmaster.pid"
        if file.exists():
            postmaster = int(file.read_text().split()[0])  # its children end with it
            os.kill(postmaster, signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{postmaster}").exists(), [self])

    def has_role(self, role: str) -> bool:
        """Whether it says that it is the primary, or a replica that streams."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._rest}/{role}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def query(self, statement: str) -> list[Any]:
        """Run a statement."""
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="postgres", password="p", dbname="postgres"
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def log(self) -> str:
        return (self._folder / f"{self.name}.log").read_text()[-3000:]


@pytest.fixture
def nodes(port: EtcdPort) -> Iterator[list[Node]]:
    for package, install in (("patroni", "patroni[etcd3]"), ("psycopg2", "psycopg2-binary")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"there is no {package}: pip install '{install}'")
    programs = postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="rk-patroni-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made: list[Node] = []
    try:
        made = [Node(name, port.endpoint, folder, programs) for name in ("one", "two")]
        yield made
    finally:
        for node in made:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], nodes: list[Node]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "\n\n".join(node.log() for node in nodes)
        time.sleep(0.2)


def test_the_replica_takes_over_and_the_old_primary_follows(nodes: list[Node], port: EtcdPort) -> None:
    first, second = nodes
    first.start()
    wait_for(lambda: first.has_role("primary"), nodes)
    second.start()
    wait_for(lambda: second.has_role("replica"), nodes)
    first.query("create table t (n int)")
    first.query("insert into t values (1)")
    wait_for(lambda: _rows(second) == [(1,)], nodes)
    with port.proxy.member.client() as kv:
        assert kv.get("/service/demo/leader").text == "one"
    first.kill()
    wait_for(lambda: second.has_role("primary"), nodes)
    wait_for(lambda: second.query("select pg_is_in_recovery()") == [(False,)], nodes)  # it is promoted
    second.query("insert into t values (2)")
    first.start()
    wait_for(lambda: first.has_role("replica"), nodes)
    wait_for(lambda: _rows(first) == [(1,), (2,)], nodes)
    assert not first.has_role("primary")


def _rows(node: Node) -> list[Any]:
    import psycopg2

    try:
        return node.query("select n from t order by n")
    except psycopg2.Error:
        return []
