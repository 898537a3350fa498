"""Hosts on one machine: network namespaces, joined by a wire with a delay.

Where the kernel has netem, a bridge joins them and netem delays what each sends. Elsewhere the wire is a program
(``benchmarks/wire.py``) that holds each packet for as long: it takes some processor time, for whatever is measured.
Needs root, iproute2 and, without netem, /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NETWORK = "10.78.0"
MTU = 9000
"""Of the wire that is a program: fewer and larger packets, as network cards make of a stream, too."""
COMMAND_S = 180.0


class CommandFailed(Exception):
    """A command that should have worked did not."""


def run(*words: str, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command; what it said.

    Raises:
        CommandFailed: it failed, and that was to be checked.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, env=env)
    if check and done.returncode:
        raise CommandFailed(f"{' '.join(words)}: {done.stdout}{done.stderr}".strip())
    return done


def why_not() -> str:
    """Why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "apt-get install iproute2"
    probe = f"rkprobe{os.getpid()}"
    try:
        made = run("ip", "netns", "add", probe, check=False)
        if made.returncode:
            return f"no network namespace may be made here: {made.stderr.strip()}"
    finally:
        run("ip", "netns", "del", probe, check=False)
    if not has_netem() and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the kernel has neither netem nor /dev/net/tun"
    return ""


def has_netem() -> bool:
    """Whether the kernel can delay packets."""
    probe = f"rkprobe{os.getpid()}"
    try:
        run("ip", "netns", "add", probe, check=False)
        words = ("ip", "netns", "exec", probe, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        return shutil.which("tc") is not None and run(*words, check=False).returncode == 0
    finally:
        run("ip", "netns", "del", probe, check=False)


class Hosts:
    """Some hosts, by number; the first is for the clients. A context manager: at its end they and all their processes
    are gone.

    Args:
        delay: seconds that a packet takes from any of them to any other.
    """

    def __init__(self, count: int, delay: float) -> None:
        stem = f"rk{os.getpid() % 100_000}"
        self.names = [f"{stem}h{number}" for number in range(count)]
        self.addresses = [f"{NETWORK}.{number + 1}" for number in range(count)]
        self.wire = "netem" if has_netem() else "a program"
        self._delay = delay
        self._bridges: list[str] = []
        """Namespaces of bridges."""
        self._program: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Hosts:
        try:
            for name in self.names:
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            if self.wire == "netem":
                self._join_by_bridge()
            else:
                self._join_by_program()
            for name, address in zip(self.names, self.addresses, strict=True):
                run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                run("ip", "-n", name, "link", "set", "eth0", "up")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _join_by_bridge(self) -> None:
        """A bridge in a namespace of its own; each host delays what it sends."""
        middle = f"{self.names[0]}b"
        run("ip", "netns", "add", middle)
        self._bridges.append(middle)
        run("ip", "-n", middle, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", middle, "link", "set", "br0", "up")
        for number, name in enumerate(self.names):
            pair = ("type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "-n", middle, "link", "add", f"v{number}", *pair)
            run("ip", "-n", middle, "link", "set", f"v{number}", "master", "br0", "up")
            delay = ("netem", "delay", f"{self._delay * 1e6:.0f}us", "limit", "100000")
            run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", *delay)

    def _join_by_program(self) -> None:
        """Devices of a program, moved into the namespaces."""
        devices = [f"{name}t" for name in self.names]
        words = [sys.executable, str(Path(__file__).with_name("wire.py")), str(self._delay), *devices]
        self._program = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        assert self._program.stdout is not None
        if self._program.stdout.readline() != b"ready\n":
            raise CommandFailed("the wire between the hosts does not work")
        for name, device in zip(self.names, devices, strict=True):
            run("ip", "link", "set", device, "netns", name)
            run("ip", "-n", name, "link", "set", device, "name", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "mtu", str(MTU))

    def inside(self, number: int) -> list[str]:
        """What begins a command that is to run on a host."""
        return ["ip", "netns", "exec", self.names[number]]

    def end(self) -> None:
        """Kill all their processes, and remove them."""
        for name in (*self.names, *self._bridges):
            for pid in run("ip", "netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        end = time.monotonic() + 10
        for name in (*self.names, *self._bridges):
            while run("ip", "netns", "pids", name, check=False).stdout.strip() and time.monotonic() < end:
                time.sleep(0.05)
            run("ip", "netns", "del", name, check=False)
        if self._program is not None:
            self._program.kill()
            self._program.wait(10)
            self._program = None
