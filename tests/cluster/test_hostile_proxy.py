"""All attacks at once on the port of a real `raykeeper proxy`: it stays within its memory, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.http2.attacks import CALLS, IDLE
from lab.http2.http_client import request
from lab.http2.port_process import FOR_PROGRAMS, memory, most_memory, peak_memory
from raykeeper.limits import PROXY_HELD_BYTES

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

SECONDS = 8.0


def test_a_proxy_under_attack(clusters: Any) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    for number in range(8):
        kv.put(f"hostile/{number}", bytes(500_000))
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": cluster.name,
    }
    command = (sys.executable, "-m", "raykeeper", "proxy", "-o", "json", "--listen", "127.0.0.1:0")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        endpoint = json.loads(process.stdout.readline())["url"].removeprefix("http://")
        before = memory(process.pid)
        beside = _Beside(kv, endpoint)
        with beside:
            attack = (sys.executable, "-m", "lab.http2.attacks", endpoint, str(SECONDS))
            subprocess.run(attack, capture_output=True, timeout=120, check=True, env=FOR_PROGRAMS)
        grown = peak_memory(process.pid) - before
        waits = [max(each) for each in (beside.by_proxy, beside.by_handle)]
        print(f"grown by {grown >> 20} MiB; slowest put {waits[0]:.2f} s by the proxy, {waits[1]:.2f} s by a handle")
        assert not beside.failures
        assert len(beside.by_proxy) > 3
        assert len(beside.by_handle) > 20
        assert grown < most_memory(0, PROXY_HELD_BYTES, 2 * IDLE, CALLS)
        assert request(endpoint, "GET", "/readyz").status == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class _Beside:
    """Clients that do no harm: one puts through the proxy, and one by a handle of the cluster."""

    def __init__(self, kv: Any, endpoint: str) -> None:
        self._kv = kv
        self._endpoint = endpoint
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._put_by_proxy), threading.Thread(target=self._put_by_handle)]
        self.by_proxy: list[float] = []
        self.by_handle: list[float] = []
        self.failures: list[object] = []

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _put_by_proxy(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                reply = request(self._endpoint, "PUT", "/kv/hostile/quiet", bytes(10_000))
                if reply.status not in (200, 201):
                    self.failures.append(reply)
            except OSError as error:
                self.failures.append(error)
            self.by_proxy.append(time.monotonic() - began)

    def _put_by_handle(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                self._kv.put("quiet", "1", timeout=30)
            except Exception as error:
                self.failures.append(error)
            self.by_handle.append(time.monotonic() - began)
