"""How long a command of the shell takes where a proxy listens on the node, beside etcdctl, in turns.

    python benchmarks/shell.py [--rounds N] [--only WORDS] [--imports]

`raykeeper up` starts a Ray head, a cluster of three members and a proxy, all in a temporary folder, and `raykeeper
down` ends them; if it cannot, the folder stays, since without it nothing finds that Ray again. Where a Ray runs
already, the cluster is in that, under a name of its own. Each round runs each command once, as a process of its own,
and etcdctl at the same proxy and at an etcd of one member if that is installed. Printed are the median and the worst of
all rounds, from the start of the process to its end, and the median of the processor time that it took; of `watch`,
until it says that the watch has begun. ``--imports`` prints of each command the modules that take longest to load.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from raykeeper.cli.ray_head import RayHead

SHELL = (sys.executable, "-m", "raykeeper")
PATIENCE = 120.0
"""Seconds for each command; no figure depends on it."""
COMMANDS = (
    "get k",
    "get p/ --prefix -o json",
    "put k 1",
    "del none",
    "status",
    "health",
    "member list",
    "events",
    "config get",
    "endpoint status",
    "alarm list",
    "clients",
    "locks",
    "lease grant 60",
    "lease list",
    "lock l -- true",
    "watch k --progress",
    "user list",
)
ETCDCTL = ("get k", "put k 1", "endpoint status", "member list", "lease grant 60", "lock l -- true")


@contextmanager
def ended_in_time(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that has not ended by then, so that nobody waits for what it says."""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        yield
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def run(command: list[str], environment: dict[str, str], until: str = "") -> tuple[float, float]:
    """Seconds that a command takes, and those of a processor; until a line that begins so, if that is given, after
    which it is ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def used() -> float:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime

    began = time.perf_counter()
    if not until:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        took = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return took, used()
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process,
        ended_in_time(process),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(until):
                break
        else:
            raise SystemExit(f"{shlex.join(command)} did not begin within {PATIENCE:.0f} s")
        took = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    return took, used()


def stopped(environment: dict[str, str], head: RayHead) -> bool:
    """Whether the cluster was stopped, and the Ray that `up` has started for it."""
    for _ in range(3):  # on a machine that is very busy its processes may outlast the first one's patience
        try:
            done = subprocess.run([*SHELL, "down"], env=environment, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired as error:
            print(error, file=sys.stderr)
            continue
        if done.returncode == 0 and not head.runs():
            return True
        print(f"raykeeper down: {done.stdout}{done.stderr}", file=sys.stderr)
    return False


@contextmanager
def cluster(folder: str) -> Iterator[tuple[dict[str, str], str]]:
    """A cluster with a proxy: the environment of its commands, and the proxy's endpoint. At the end the folder is
    deleted, unless it is still needed to stop what was started."""
    name = f"shell-{os.getpid()}"  # `up` joins a Ray that runs here already, where others may have a `default`
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYKEEPER_"))}
    environment |= {
        "XDG_STATE_HOME": f"{folder}/state",
        "RAY_TMPDIR": f"{folder}/ray",
        "RAYKEEPER_RUNTIME_DIR": f"{folder}/run",
        "RAYKEEPER_CLUSTER": name,
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPYCACHEPREFIX": f"{folder}/pyc",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what pip installs is compiled
    spec = f"{folder}/cluster.yaml"
    with open(spec, "w", encoding="utf-8") as file:
        file.write(f"name: {name}\ndata_dir: {folder}/data\nproxy: one\nproxy_listen: 127.0.0.1:0\n")
    head, launched = RayHead(Path(environment["XDG_STATE_HOME"]) / "raykeeper"), True
    try:
        said = subprocess.run([*SHELL, "up", spec], env=environment, capture_output=True, text=True, timeout=600)
        launched = bool(said.stdout)  # its status, also if that is not complete yet; else it has stopped what it began
        found = re.search(r"http://([0-9.]+:[0-9]+)", said.stdout)
        if said.returncode or found is None:
            raise SystemExit(f"raykeeper up: {said.stdout}{said.stderr}")
        yield environment, found[1]
    finally:
        if not (launched or head.runs()) or stopped(environment, head):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            names = ("XDG_STATE_HOME", "RAY_TMPDIR", "RAYKEEPER_RUNTIME_DIR", "RAYKEEPER_CLUSTER", "RAY_AUTH_MODE")
            by_hand = " ".join(f"{key}={environment[key]}" for key in names)
            print(f"something is left, so {folder} stays; try: {by_hand} raykeeper down", file=sys.stderr)


@contextmanager
def etcd_of_one_member(folder: str, environment: dict[str, str]) -> Iterator[str]:
    """Its endpoint, once it serves."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    client, peer = (f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    urls = [f"--listen-client-urls=http://{client}", f"--advertise-client-urls=http://{client}"]
    urls += [f"--listen-peer-urls=http://{peer}", f"--initial-advertise-peer-urls=http://{peer}"]
    command = ["etcd", f"--data-dir={folder}", *urls, f"--initial-cluster=default=http://{peer}"]
    with open(f"{folder}.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            asked = ["etcdctl", f"--endpoints={client}", "--command-timeout=1s", "get", "k"]
            until = time.monotonic() + PATIENCE
            while subprocess.run(asked, env=environment, capture_output=True).returncode:
                if time.monotonic() > until:
                    raise SystemExit("etcd does not serve")
            yield client
        finally:
            process.terminate()


def measured(rounds: int, commands: dict[str, tuple[list[str], str]], environment: dict[str, str]) -> None:
    """Run all of them in turns, and print a row for each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, (command, until) in commands.items():
            took = run(command, environment, until)
            if number:  # the first round fills the machine's caches
                times[name].append(took)
    print("median  worst    cpu")
    for name, each in times.items():
        took, cpu = zip(*each, strict=True)
        print(f"{statistics.median(took):6.3f} {max(took):6.3f} {statistics.median(cpu):6.3f}  {name}", flush=True)


def imports(words: str, environment: dict[str, str]) -> None:
    """Print the modules of a command that take longest."""
    command = [sys.executable, "-X", "importtime", "-m", "raykeeper", *shlex.split(words)]
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ended_in_time(process),
    ):
        if words.startswith("watch"):
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit(f"{shlex.join(command)} did not begin within {PATIENCE:.0f} s")
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    rows = [
        line.removeprefix("import time:").split("|") for line in said.splitlines() if line.startswith("import time:")
    ]
    own = [(int(self_), name.strip()) for self_, _, name in rows[1:]]
    print(f"\n{words}: {len(own)} modules, {sum(us for us, _ in own) / 1000:.0f} ms")
    for us, name in sorted(own, reverse=True)[:25]:
        print(f"{us / 1000:8.1f} ms  {name}")


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="That are measured.")
@click.option("--only", default="", help="Commands that contain this, etcdctl's too.")
@click.option("--imports", "importing", is_flag=True, help="The modules that take longest to load, and no times.")
def main(rounds: int, only: str, importing: bool) -> None:
    """See the module."""
    wanted = [words for words in COMMANDS if only in words]
    asked = [words for words in ETCDCTL if only in words]
    if not wanted:
        raise click.UsageError(f"no command contains {only!r}")
    folder = tempfile.mkdtemp(prefix="rks-")
    with cluster(folder) as (environment, endpoint):
        if importing:
            for words in wanted:
                imports(words, environment)
            return
        commands = {
            f"raykeeper {words}": ([*SHELL, *shlex.split(words)], "progress" if words.startswith("watch") else "")
            for words in wanted
        }
        commands["python -c pass"] = ([sys.executable, "-c", "pass"], "")
        environment["ETCDCTL_API"] = "3"
        etcdctl = shutil.which("etcdctl")
        with ExitStack() as peers:
            places = {"the proxy": endpoint}
            if shutil.which("etcd") and etcdctl and asked:
                places["an etcd"] = peers.enter_context(etcd_of_one_member(f"{folder}/etcd", environment))
            if etcdctl is not None:
                for place, where in places.items():
                    for words in asked:
                        command = [etcdctl, f"--endpoints={where}", *shlex.split(words)]
                        commands[f"etcdctl {words} at {place}"] = (command, "")
            measured(rounds, commands, environment)


if __name__ == "__main__":
    main()
