"""The spans of one put, of its client, the leader and the followers, are one tree: in the files that each writes, and
at a collector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.onemember import in_thread
from lab.otlp import CollectedSpan, collecting
from lab.patience import until
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


OTLP = """
import os, sys, time
import ray
import raykeeper

data, temporary, enough = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024 * 1024,
         _temp_dir=temporary)
cluster = raykeeper.launch(name="jobs", data_dir=data)
client = cluster.client(timeout=60)
while not os.path.exists(enough):
    client.put("k", "v")
    time.sleep(0.1)
cluster.shutdown()
ray.shutdown()
"""


def test_a_collector_gets_one_tree_from_four_processes(tmp_path: Path, scratch: Path) -> None:
    """By OpenTelemetry's own exporter, in a program and in members that set up nothing."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collecting() as collector:

        def whole() -> list[CollectedSpan]:
            """The spans of one put: the client's, the leader's, and those of both followers."""
            spans = collector.spans()
            for put in [span for span in spans if span.name == "raykeeper.put"]:
                found = [span for span in spans if span.trace == put.trace]
                names = [span.name for span in found]
                if (names.count("raykeeper.member.write"), names.count("raykeeper.member.append")) == (1, 2):
                    return found
            return []

        told = {
            "RAYKEEPER_TRACE": "otel",
            "RAYKEEPER_TRACE_RATE": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        enough = tmp_path / "enough"
        folders = str(tmp_path / "data"), str(scratch / "otlp"), str(enough)
        running = in_thread(lambda: run_program("-c", OTLP, *folders, **told))
        try:
            until(lambda: running.done or whole(), seconds=180)
        finally:
            enough.touch()
        running.result(300)
        spans = whole()
    by_id = {span.span: span for span in spans}
    assert [span.name for span in spans if span.parent not in by_id] == ["raykeeper.put"]
    assert len({span.resource["process.pid"] for span in spans}) == 4
    assert {span.resource["service.name"] for span in spans} == {"raykeeper"}


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
