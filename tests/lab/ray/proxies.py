"""Proxies of a cluster in the foreground, each a process that a test may kill and start again at its port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import ray


class Proxies:
    """Those of one cluster."""

    def __init__(self, cluster: Any) -> None:
        self._environment = {
            **os.environ,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAYKEEPER_CLUSTER": cluster.name,
        }
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, listen: str = "127.0.0.1:0", *options: str) -> str:
        """Start one, with these options of the command; its endpoint, once it serves."""
        process = subprocess.Popen(
            [sys.executable, "-m", "raykeeper", "proxy", "-o", "json", "--timeout", "60", "--listen", listen, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the proxy has ended with {process.wait(60)}"
        endpoint: str = json.loads(line)["url"].removeprefix("http://")
        self._running[endpoint] = process
        return endpoint

    @property
    def endpoints(self) -> list[str]:
        """Of those that run."""
        return sorted(self._running)

    def pid(self, endpoint: str) -> int:
        """Its process."""
        return self._running[endpoint].pid

    def kill(self, endpoint: str, number: int = signal.SIGKILL) -> None:
        """End one."""
        process = self._running.pop(endpoint)
        process.send_signal(number)
        process.communicate(timeout=60)

    def end(self) -> None:
        """End all."""
        for endpoint in list(self._running):
            self.kill(endpoint)
