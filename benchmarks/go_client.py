"""etcd's own client, in Go: the same load as everywhere, from a program that is built when it is needed.

Debian has all that it takes: the compiler, and etcd's client as source. Without them it is named as missing. The
program (``benchmarks/go/load.go``) has one connection for each hundred calls in flight: one alone would hold it back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loads import PATIENCE, Samples
from measures import Costs, Plan, Row, load_row
from systems import Missing, System

SOURCE = Path(__file__).parent / "go" / "load.go"
LIBRARIES = Path("/usr/share/gocode")
NAME = "etcd + Go"
INSTALL = "apt-get install golang-go golang-etcd-server-dev"
CALLS_PER_CONNECTION = 100
START_S = 30.0
NOTES = (
    "The same etcd in the same round, by etcd's own client: a program in Go with one connection for each 100 calls in "
    "flight, at the leader."
)


def build() -> Path:
    """The program, built unless it was built before.

    Raises:
        Missing: the compiler or etcd's client is not there, or the two do not fit.
    """
    compiler = shutil.which("go")
    if compiler is None or not (LIBRARIES / "src/go.etcd.io/etcd/clientv3").exists():
        raise Missing(INSTALL)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raykeeper-bench"
    program = folder / f"load-{digest}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, "load")
            environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(LIBRARIES), "GOFLAGS": ""}
            words = [compiler, "build", "-o", str(made), str(SOURCE)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise Missing(f"{INSTALL} (go build: {done.stderr.strip()[-200:]})")
            made.rename(program)
    return program


class GoClient:
    """The program, connected; a context manager, which ends it."""

    def __init__(self, program: Path, endpoint: str, op: str, in_flight: int, seconds: float) -> None:
        words = [str(program), "-endpoint", endpoint, "-op", op, "-in-flight", str(in_flight)]
        words += ["-connections", str(-(-in_flight // CALLS_PER_CONNECTION)), "-seconds", str(seconds)]
        self._patience = PATIENCE * seconds + 30
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the coordinator
        )

    def __enter__(self) -> GoClient:
        try:
            if self._line(START_S).strip() != "ready":
                raise RuntimeError(f"the Go program did not connect: {self._said()}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self) -> Samples:
        """The load, from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._line(self._patience)
        if not line:
            raise RuntimeError(f"the Go program failed: {self._said()}")
        return Samples(**json.loads(line))

    def _line(self, patience: float) -> str:
        """One line that it prints; it is killed if that takes too long."""
        assert self._process.stdout is not None
        with _deadline(self._process, patience):
            return self._process.stdout.readline()

    def _said(self) -> str:
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().strip()[-300:]

    def _end(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        self._process.wait(10)


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def load(program: Path, row: Row, endpoint: str, op: str, seconds: float) -> Row:
    """Fill a row with what the program brings at an endpoint."""
    with GoClient(program, endpoint, op, row.in_flight, seconds) as client:
        time.sleep(0.1)
        costs = Costs()
        samples = client.run()
        return load_row(row, [samples], costs.spent())


def rows(system: System, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """The cells of one client process, at a running etcd whose keys are there.

    Raises:
        Missing: the program cannot be built here.
    """
    program = build()
    endpoint = f"127.0.0.1:{system.address()['ports'][0]}"
    for operations, faces, processes, in_flight in plan.cells:
        if "coroutines" not in faces or 1 not in processes:
            continue
        for op in operations:
            if op == "mixed" or not plan.wants(op):
                continue
            for together in in_flight:
                say(f"{op}, {together} in flight, from Go")
                yield load(program, Row(NAME, op, "coroutines", 1, together), endpoint, op, plan.seconds)
