"""The table of etcdctl's commands (docs/reference/etcdctl.md) has all that an installed etcdctl has, and ours exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from raykeeper.cli.main import cli

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "etcdctl.md"


def rows() -> Iterator[tuple[list[str], list[str]]]:
    """Of each row etcdctl's commands, and ours."""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            _, theirs, ours, *_ = line.split("|")
            yield re.findall("`([^`]+)`", theirs), re.findall("`([^`]+)`", ours)


def is_command(words: str) -> bool:
    found: click.Command | None = cli
    for word in words.split():
        found = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
    return found is not None


def test_each_command_of_ours_that_the_table_names_exists() -> None:
    named = [command for _, ours in rows() for command in ours]
    assert len(named) > 40
    assert [command for command in named if not is_command(command)] == []


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
def test_the_table_has_every_command_of_etcdctl() -> None:
    said = subprocess.run(
        ["etcdctl", "--help"], capture_output=True, text=True, timeout=60, env={**os.environ, "ETCDCTL_API": "3"}
    ).stdout
    listed = re.findall(r"^\t([a-z-]+(?: [a-z-]+)?)\t", said[said.index("COMMANDS:") : said.index("OPTIONS:")], re.M)
    assert len(listed) > 40
    known = {command for theirs, _ in rows() for command in theirs}
    assert sorted(set(listed) - known) == []


@pytest.mark.parametrize("option", ["get --prefix", "get --from-key", "get --sort-by", "get --order", "get --limit",
                                    "get --rev", "get --keys-only", "get --count-only", "get --print-value-only",
                                    "put --prev-kv", "put --lease", "del --prefix", "del --from-key", "del --prev-kv",
                                    "watch --rev", "watch --prefix", "watch --prev-kv", "watch -i", "lock --ttl",
                                    "elect --listen", "lease timetolive --keys", "lease keep-alive --once",
                                    "compact --physical", "endpoint hashkv --rev", "make-mirror --prefix",
                                    "make-mirror --dest-prefix", "make-mirror --rev"])  # fmt: skip
def test_options_of_etcdctl_that_are_ours(option: str) -> None:
    *words, name = option.split()
    found: click.Command = cli
    for word in words:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    assert name in {said for each in found.params for said in each.opts}, option
