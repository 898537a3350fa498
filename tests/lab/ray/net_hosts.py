"""Ray nodes as hosts of their own: network namespaces, joined by a bridge in the head's.

A cable can be pulled (``ip link set v0 nomaster`` on the head), and a packet filter put up (``wall``): packets are lost
for real, those of Ray too if the filter says so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import raykeeper

TESTS = Path(__file__).parent.parent.parent
NODES = 3
FILTER = "rkwall"


def run(*words: str, check: bool = True, seconds: float = 180.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        check: whether it must succeed.
        seconds: that it may take, many times what it takes.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, **options)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{words[:6]} was not done in {seconds} s: {late.stdout!r}\n{late.stderr!r}") from None
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done


def why_not() -> str:
    """Why this machine cannot make namespaces; empty if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no iproute2"
    probe = f"rkprobe{os.getpid()}"
    try:
        made = run("ip", "netns", "add", probe, check=False)
        if made.returncode:
            return f"no network namespace may be made here: {made.stderr.strip()}"
        bridge = run("ip", "-n", probe, "link", "add", "br0", "type", "bridge", check=False)
        pair = run("ip", "-n", probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1", check=False)
        failed = [each.stderr.strip() for each in (bridge, pair) if each.returncode]
        return f"no bridge or cable may be made here: {failed[0]}" if failed else ""
    finally:
        run("ip", "netns", "del", probe, check=False)


def why_no_filter() -> str:
    """Why this machine cannot filter packets; empty if it can."""
    if shutil.which("nft") is None:
        return "there is no nft: apt-get install nftables"
    probe = f"rkprobe{os.getpid()}"
    try:
        run("ip", "netns", "add", probe)
        made = run(*wall_up(probe, "28100-28109", "drop"), check=False)
        return f"this kernel filters no packets: {made.stderr.strip()}" if made.returncode else ""
    finally:
        run("ip", "netns", "del", probe, check=False)


def wall_up(host: str, ports: str, verdict: str) -> list[str]:
    """The command that has a host filter what comes to these TCP ports, for new connections and old ones.

    Args:
        verdict: of nftables: ``drop``, ``reject`` (by ICMP) or ``reject with tcp reset``.
    """
    rules = (
        f"table inet {FILTER} {{ chain input {{ type filter hook input priority 0; policy accept; "
        f"tcp dport {ports} {verdict}; }}; }}"
    )
    return ["ip", "netns", "exec", host, "nft", rules]


def wall_down(host: str) -> list[str]:
    """The command that removes it."""
    return ["ip", "netns", "exec", host, "nft", "delete", "table", "inet", FILTER]


class NetHosts:
    """A head and three nodes, each in a namespace of its own, joined by a bridge in the head's."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rkn-"))
        stem = f"rk{os.getpid() % 10_000}"
        self.head = f"{stem}h"
        self.nodes = [f"{stem}n{n}" for n in range(NODES)]
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        path = [str(TESTS), str(Path(raykeeper.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYKEEPER_"))}
        self.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def make(self) -> None:
        for name in (self.head, *self.nodes):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        head = ("ip", "-n", self.head)
        run(*head, "link", "add", "br0", "type", "bridge")
        run(*head, "link", "set", "br0", "up")
        run(*head, "addr", "add", "10.77.0.1/24", "dev", "br0")
        for n, name in enumerate(self.nodes):
            run(*head, "link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run(*head, "link", "set", f"v{n}", "master", "br0")
            run(*head, "link", "set", f"v{n}", "up")
            run("ip", "-n", name, "addr", "add", f"10.77.0.1{n + 1}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        common = ("--disable-usage-stats", "--object-store-memory=100000000", "--num-cpus=2")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start")
        self.execute(
            self.head, *ray, "--head", "--node-ip-address=10.77.0.1", "--port=6379", "--include-dashboard=false",
            f"--temp-dir={self.folder}/ray", *common,
        )  # fmt: skip
        for n, name in enumerate(self.nodes):
            place = f'--resources={{"place-{n}": 1}}'
            address = f"--node-ip-address=10.77.0.1{n + 1}"
            self.execute(name, *ray, "--address=10.77.0.1:6379", address, place, *common)

    def execute(self, where: str, *words: str, seconds: float = 180.0) -> str:
        """Run a command on a host; what it printed."""
        return run("ip", "netns", "exec", where, *words, seconds=seconds, env=self.env).stdout

    def end(self) -> None:
        for name in (*self.nodes, self.head):
            for pid in run("ip", "netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
