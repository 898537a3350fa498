"""Patroni with its PostgreSQL, as they are, at proxies' ports. PostgreSQL refuses to run as root, so there they run as
the user postgres."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.etcd import free_ports

PATIENCE = 180.0


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


class PatroniNode:
    """A Patroni with its PostgreSQL."""

    def __init__(self, name: str, endpoints: Sequence[str], folder: Path, programs: Path) -> None:
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
            "etcd3": {"hosts": list(endpoints)},
            "bootstrap": {
                "dcs": {
                    "ttl": 30,
                    "loop_wait": 1,
                    "retry_timeout": 10,
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
        """Patroni, which starts PostgreSQL."""
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

    def last_heard(self) -> float:
        """When it last reached the store, in seconds since 1970; 0 if it does not say."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._rest}/patroni", timeout=5) as answer:
                return float(json.load(answer).get("dcs_last_seen", 0))
        except (OSError, ValueError):
            return 0.0

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
        """The end of Patroni's and PostgreSQL's log."""
        return (self._folder / f"{self.name}.log").read_text()[-3000:]


@contextmanager
def two_patroni_nodes(endpoints: Sequence[str]) -> Iterator[list[PatroniNode]]:
    """Two that are not started yet; skips the test where they cannot be."""
    for package, install in (("patroni", "patroni[etcd3]"), ("psycopg2", "psycopg2-binary")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"there is no {package}: pip install '{install}'")
    programs = postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="rk-patroni-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made: list[PatroniNode] = []
    try:
        made = [PatroniNode(name, endpoints, folder, programs) for name in ("one", "two")]
        yield made
    finally:
        for node in made:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], nodes: Sequence[PatroniNode]) -> None:
    """Until it holds; otherwise show what the nodes have logged."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "\n\n".join(node.log() for node in nodes)
        time.sleep(0.2)


def rows(node: PatroniNode) -> list[Any]:
    """Of the table ``t``; none while it does not answer."""
    import psycopg2

    try:
        return node.query("select n from t order by n")
    except psycopg2.Error:
        return []
