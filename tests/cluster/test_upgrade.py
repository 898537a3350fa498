"""Members restarted one by one under load, and settings changed, on real processes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.tools import Made, kill_actors, serving, wait_until
from raykeeper.errors import InvalidArgument, Unavailable

pytestmark = pytest.mark.survival


class Patience:
    """Writes all the time, and notes the longest that a write took."""

    def __init__(self, cluster: Any) -> None:
        self._kv = cluster.client(timeout=30)
        self._stop = threading.Event()
        self.longest, self.count = 0.0, 0
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._kv.put("count", str(self.count + 1))
            except BaseException as error:
                self.errors.append(error)
                return
            self.count += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert self.errors == []
        item = self._kv.get("count")
        assert (item.text, item.version) == (str(self.count), self.count)


@pytest.fixture
def installed(local_ray: Path) -> Any:
    """Has processes that start from now on run newer code."""
    fault = Path(os.environ["RAYKEEPER_TEST_FAULT"])
    fault.write_text("older commands:COMMANDS_VERSION\n")
    yield lambda: fault.write_text("newer commands:COMMANDS_VERSION\n")
    fault.unlink()


@pytest.mark.core
def test_an_upgrade_restarts_one_after_the_other_and_then_new_commands_are_taken(
    clusters: Made, installed: Any
) -> None:
    cluster = clusters.launch(supervised=True)
    # Its members may run in processes that were there before; those of its first restart know what is installed.
    assert cluster.upgrade() == 1
    with pytest.raises(InvalidArgument, match="version 2"):
        cluster.configure(timings={"replace_after": 90.0})
    before = {member.id: member.pid for member in cluster.members()}
    writer = Patience(cluster)
    installed()
    assert cluster.upgrade() == 2
    writer.end()
    after = {member.id: member.pid for member in cluster.members()}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert writer.count > 10
    print(f"{writer.count} writes, the slowest took {writer.longest:.1f} s")
    assert cluster.configure(timings={"replace_after": 90.0}).timings.replace_after == 90.0


def test_no_upgrade_while_a_member_is_missing(clusters: Made) -> None:
    cluster = clusters.launch()
    gone = cluster.members()[0]
    ray.kill(gone.actor, no_restart=True)
    wait_until(lambda: not serving(cluster), what="m1 ended")
    wait_until(lambda: cluster.status().leader not in (0, gone.id), what="a leader")
    before = {member.id: member.pid for member in cluster.members()}
    with pytest.raises(Unavailable, match="m1 does not answer"):
        cluster.upgrade(timeout=1.0)
    assert {member.id: member.pid for member in cluster.members()} == before


def test_settings_are_followed_at_once_and_outlive_a_restart(clusters: Made) -> None:
    cluster = clusters.launch()
    with cluster.client() as kv:
        kv.put("a", "x" * 2000)
        cluster.configure(limits={"max_request_bytes": 1024, "max_key_bytes": 512})

        def refused() -> bool:
            with cluster.client() as other:
                try:
                    other.put("a", "x" * 2000)
                except Exception as error:
                    return type(error).__name__ == "RequestTooLarge" or "bytes" in str(error)
            return False

        wait_until(refused, what="a request over the new limit refused")
    kill_actors(cluster.name)
    again = clusters.launch()
    assert again.configure().limits.max_request_bytes == 1024
