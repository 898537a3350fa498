"""Ray nodes as pods: each a network namespace of its own, with a volume, which come back under another address.

A pod is what KubeRay makes of ``deploy/kuberay.yaml``: one Ray node in a network of its own, that sees its volume where
all pods see theirs (a mount of its own), offers its group's resource, and runs a proxy. A pod that is started again is
another namespace with another address, and with the same volume. The head is reached by one address that stays, as by
a service. Nothing is shared but the machine: no address, no port, no folder of Ray's.

A Redis for Ray's GCS runs beside the pods, if it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import raykeeper
from lab.patience import PATIENCE
from lab.ray.tools import is_alive, start_of, wait_until

TESTS = Path(__file__).parents[2]
NETWORK = "10.78.0"
SERVICE = f"{NETWORK}.2"
"""Where the head is reached, whichever pod it is."""
PORT = 2379
SPEC = """
name: default
members: 3
data_dir: {volume}
placement: [raykeeper-a, raykeeper-b, raykeeper-c]
bootstrap: never
proxy: all
proxy_listen: 0.0.0.0:2379
timings: {{replace_after: 600}}
"""
READY = f"""
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(f"http://{{sys.argv[1]}}:{PORT}/readyz", timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(0)
"""


def run(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must succeed, unless ``check`` says otherwise."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=5 * PATIENCE, **options)
    assert not check or done.returncode == 0, f"{' '.join(words)[:300]}: {done.stdout}{done.stderr}"
    return done


def why_no_pods() -> str:
    """Why this machine cannot have pods; empty if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no iproute2"
    probe = f"rkq{os.getpid()}"
    folder = tempfile.mkdtemp(prefix="rkq-")
    try:
        made = run("ip", "netns", "add", probe, check=False)
        bridge = run("ip", "-n", probe, "link", "add", "br0", "type", "bridge", check=False)
        pair = run("ip", "-n", probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1", check=False)
        mount = run("ip", "netns", "exec", probe, "mount", "--bind", folder, folder, check=False)
        failed = [each.stderr.strip() for each in (made, bridge, pair, mount) if each.returncode]
        return f"no network or mount of its own may be made here: {failed[0]}" if failed else ""
    finally:
        run("ip", "netns", "del", probe, check=False)
        os.rmdir(folder)


class Pod(NamedTuple):
    """A pod, as long as it has this address.

    Attributes:
        name: of its group; its volume is named so, too.
        space: the network namespace that it is.
        address: its IP.
        main: its first process.
    """

    name: str
    space: str
    address: str
    main: subprocess.Popen[bytes]


class Pods:
    """A cluster of pods. A context manager: at its end nothing of it is left.

    Args:
        redis: whether Ray's GCS has one, and so outlives its pod.
    """

    def __init__(self, redis: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rkp-"))
        self._stem = f"rk{os.getpid() % 10_000}"
        self._net = f"{self._stem}s"
        self._number = 10
        """The last part of the newest address: none is used twice."""
        self.pods: dict[str, Pod] = {}
        self._redis = redis
        self._servers: list[subprocess.Popen[bytes]] = []
        self.volume = self.folder / "raykeeper"
        """Where each pod sees its volume."""
        self._temporary = self.folder / "ray"
        self.spec = self.folder / "cluster.yaml"
        self.spec.write_text(SPEC.format(volume=self.volume))
        for each in (self.volume, self._temporary):
            each.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYKEEPER_"))}
        path = [str(TESTS), str(Path(raykeeper.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self.env = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(self.folder),  # where nodes note that they run: nobody else's are to be found
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def __enter__(self) -> Pods:
        try:
            self._space(self._net)
            switch = ("ip", "-n", self._net)
            run(*switch, "link", "add", "br0", "type", "bridge")
            run(*switch, "link", "set", "br0", "up")
            run(*switch, "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
            if self._redis:
                self._start_redis()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.pods):
            self.kill(name)
        for server in self._servers:
            server.kill()
            server.wait()
        run("ip", "netns", "del", self._net, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- pods --------------------------------------------------------------------------------------------------------

    def start_head(self) -> None:
        """A new pod for the head, behind the service's address."""
        settings = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 3000,
            "health_check_failure_threshold": 4,
        }
        more = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._temporary}")
        self._start("head", SERVICE, *more, "--num-cpus=0", f"--system-config={json.dumps(settings)}")

    def start(self, name: str, cpus: int = 0) -> Pod:
        """A pod of a group, at an address that none had before, with the group's volume."""
        self._number += 1
        resources = json.dumps({f"raykeeper-{name}": 1})
        more = (f"--address={SERVICE}:6379", f"--num-cpus={cpus}", f"--resources={resources}")
        return self._start(name, f"{NETWORK}.{self._number}", *more)

    def _start(self, name: str, address: str, *arguments: str) -> Pod:
        self._number += name == "head"
        space = f"{self._stem}{name[:3]}{self._number}"
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / space).mkdir()
        self._space(space)
        cable = f"v{self._number}"
        run("ip", "-n", self._net, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", self._net, "link", "set", cable, "master", "br0")
        run("ip", "-n", self._net, "link", "set", cable, "up")
        run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}")
        common = ("--disable-usage-stats", "--object-store-memory=100000000")
        command = self._inside(name, space, *ray, *common, *arguments)
        with open(self.folder / f"{name}-{self._number}.log", "wb") as log:
            main = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        pod = self.pods[name] = Pod(name, space, address, main)
        return pod

    def delete(self, name: str) -> None:
        """As ``kubectl delete pod`` does: Ray says goodbye (``preStop``), and after that everything ends."""
        pod = self.pods[name]
        for pid in self._pids(pod.space):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if command.partition(b"\0")[0].endswith(b"/raylet"):
                    started = start_of(pid)
                    os.kill(pid, signal.SIGTERM)
                    wait_until(lambda: not is_alive(pid, started), PATIENCE, "the raylet has said goodbye")  # noqa: B023
        self.kill(name)

    def kill(self, name: str) -> None:
        """All processes of a pod end at once, and its address is gone."""
        pod = self.pods.pop(name)
        while pids := self._pids(pod.space):  # some may just be starting others
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(is_alive(pid) for pid in pids), PATIENCE, "they are dead")
            pod.main.poll()
        pod.main.kill()
        pod.main.wait()
        run("ip", "netns", "del", pod.space, check=False)

    def ready(self, name: str) -> bool:
        """What the kubelet's probe says of a pod."""
        asked = run("ip", "netns", "exec", self._net, sys.executable, "-c", READY, self.pods[name].address)
        return asked.stdout.strip() == "200"

    def wait_ready(self, *names: str, seconds: float = 3 * PATIENCE) -> None:
        """Until these pods are ready."""
        wait_until(lambda: all(self.ready(name) for name in names), seconds, lambda: f"{names} ready\n{self.logs()}")

    # --- what runs in them -------------------------------------------------------------------------------------------

    def execute(self, name: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """As ``kubectl exec``: a command in a pod, to its end."""
        return run(*self._inside(name, self.pods[name].space, *words), check=check, env=self._env_of_users)

    @contextlib.contextmanager
    def running(self, name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command in a pod, killed at the end."""
        command = self._inside(name, self.pods[name].space, *words)
        with subprocess.Popen(command, env=self._env_of_users, text=True, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    @property
    def _env_of_users(self) -> dict[str, str]:
        return self.env | {"RAY_ADDRESS": f"{SERVICE}:6379"}

    def raykeeper(self, name: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of RayKeeper's in a pod."""
        return self.execute(name, sys.executable, "-m", "raykeeper", *words, check=check)

    def up(self, *more: str) -> subprocess.CompletedProcess[str]:
        """What the head's hook runs; it may fail, and is tried again then."""
        return self.raykeeper("head", "up", str(self.spec), "--address", "127.0.0.1:6379", *more, check=False)

    def nodes(self) -> int:
        """How many Ray nodes are alive, as Ray says."""
        look = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        done = self.execute("head", sys.executable, "-c", look, check=False)
        return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.split() else 0

    def logs(self) -> str:
        """The last lines of each pod's first process."""
        return "\n".join(f"{path.name}: {path.read_text()[-600:]}" for path in sorted(self.folder.glob("*.log")))

    # --- namespaces --------------------------------------------------------------------------------------------------

    def _space(self, name: str) -> None:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _inside(self, name: str, space: str, *words: str) -> list[str]:
        """A command in a pod's network that sees the pod's volume and a folder for Ray that is new with each pod: ``ip
        netns exec`` gives it mounts of its own."""
        mounts = f"mount --bind {self.folder / name} {self.volume}"
        mounts += f" && mount --bind {self.folder / space} {self._temporary}"
        return ["ip", "netns", "exec", space, "sh", "-c", mounts + ' && exec "$@"', "sh", *words]

    def _pids(self, space: str) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", space, check=False).stdout.split()]

    def _start_redis(self) -> None:
        data = self.folder / "redis"
        data.mkdir()
        server = ("redis-server", "--bind", f"{NETWORK}.1", "--port", "6380", "--protected-mode", "no")
        command = ("ip", "netns", "exec", self._net, *server, "--dir", str(data), "--appendonly", "yes")
        self._servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        self.env |= {"RAY_REDIS_ADDRESS": f"{NETWORK}.1:6380", "RAY_external_storage_namespace": self._stem}
