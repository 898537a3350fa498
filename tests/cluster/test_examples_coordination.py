"""Each example, as a new user would run it, with less to do: it kills what it kills, and says that all was right."""

from __future__ import annotations

import pytest

from lab.ray.programs import run_program

EXAMPLES = [
    ("key_value.py", ["--transfers", "15"], ["at every revision", "each transfer was made once"]),
    ("service_discovery.py", ["--ttl", "5"], ["every call was answered all the while", "the new one is called"]),
    (
        "config_and_log_collection.py",
        ["--directories", "6", "--lines", "120", "--ttl", "2"],
        ["took them over", "each collected once", "go by the new configuration"],
    ),
    ("scheduling_and_progress.py", ["--jobs", "6", "--steps", "40"], ["vanished with it", "all 6 jobs are done"]),
    ("locks.py", ["--contenders", "5"], ["has written to the file", "refused", "in the order of arrival"]),
    ("distributed_job.py", ["--shards", "30"], ["is trainer now", "every shard is in, once", "the sum is right"]),
]


@pytest.mark.parametrize(("example", "arguments", "says"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_an_example(example: str, arguments: list[str], says: list[str]) -> None:
    said = run_program(f"examples/{example}", *arguments, seconds=300)
    assert "killed" in said
    assert [text for text in says if text not in said] == [], said
