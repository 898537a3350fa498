"""What has happened to a cluster of real processes is told by each leader, and after everything was restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import ray

from lab.ray.tools import Made, leader, wait_until


def test_events_outlive_a_lost_leader_and_the_end_of_all_processes(clusters: Made) -> None:
    cluster = clusters.launch()
    first = leader(cluster)
    wait_until(lambda: any(each.kind == "configuration" for each in cluster.events()), what="the first events")
    os.kill(first.pid, signal.SIGKILL)

    def elections() -> list[int]:
        return [each.member for each in cluster.events() if each.kind == "election"]

    wait_until(lambda: len(elections()) > 1, what="another election")
    before = cluster.events()
    assert [each.number for each in before] == sorted({each.number for each in before})
    assert elections()[0] == first.id
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": cluster.name,
    }
    command = (sys.executable, "-m", "raykeeper", "events", "-o", "json", "--after", str(before[0].number))
    told = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert told["events"][0] == {name: getattr(before[1], name) for name in before[1].__struct_fields__}

    cluster.shutdown()
    again = clusters.launch()
    assert again.events()[: len(before)] == before
