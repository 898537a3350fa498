"""The spans of one put, of its client, the leader and the followers, each of which writes a file of its own, are one
tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.ray.programs import run_program

pytestmark = pytest.mark.survival

PROGRAM = """
import json, os, sys, time
import ray
import raykeeper

data, temporary, folder = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024 * 1024,
         _temp_dir=temporary)
cluster = raykeeper.launch(name="jobs", data_dir=data)
client = cluster.client(timeout=60)


def spans():
    found = []
    for name in os.listdir(folder):
        with open(os.path.join(folder, name)) as file:
            found += [json.loads(line) for line in file if line.endswith("\\n")]
    return found


def whole():
    # of one put: the client's span, the leader's, and those of both followers
    found = spans()
    for put in [each for each in found if each["name"] == "raykeeper.put"]:
        names = [each["name"] for each in found if each["traceId"] == put["traceId"]]
        if names.count("raykeeper.member.write") == 1 and names.count("raykeeper.member.append") == 2:
            return put["traceId"]


until = time.monotonic() + 120
while not (trace := whole()):
    assert time.monotonic() < until, spans()
    client.put("k", "v")
    time.sleep(0.1)
cluster.shutdown()
ray.shutdown()
print("trace", trace)
"""


def test_a_puts_spans_are_one_tree(tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "spans"
    said = run_program(
        "-c",
        PROGRAM,
        str(tmp_path / "data"),
        str(scratch / "traced"),
        str(folder),
        RAYKEEPER_TRACE=f"{folder}/",
        RAYKEEPER_TRACE_RATE="1",
    )
    trace = said.rpartition("trace ")[2].strip()
    spans: list[dict[str, Any]] = [
        span
        for file in folder.glob("spans-*.jsonl")
        for span in map(json.loads, file.read_text().splitlines())
        if span["traceId"] == trace
    ]
    by_id = {span["spanId"]: span for span in spans}

    def path(span: dict[str, Any]) -> list[str]:
        above = [] if span["parentSpanId"] == "" else path(by_id[span["parentSpanId"]])
        return [*above, span["name"].removeprefix("raykeeper.")]

    paths = sorted("/".join(path(span)) for span in spans)
    assert paths == sorted(
        [
            "put",
            "put/hub.wait",
            "put/lane",
            "put/member.write",
            *[f"put/member.write/{part}" for part in ("queue", "log", "quorum", "apply", "answer")],
            *["put/member.write/member.append", "put/member.write/member.append/log"] * 2,
        ]
    )
    members = [span for span in spans if span["kind"] == "server"]
    assert {span["attributes"]["raykeeper.member"] for span in members} == {"m1", "m2", "m3"}
    assert len({span["attributes"]["raykeeper.index"] for span in members}) == 1
    assert len({span["process"] for span in spans}) == 4
