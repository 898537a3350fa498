"""The tables of etcdctl's commands and options (docs/reference/etcdctl.md) have all that an installed etcdctl has, ours
exist, and print the same."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lab.etcd import running_etcd
from lab.http2.etcd_port import etcd_port
from lab.patience import PATIENCE
from raykeeper.cli.main import cli

TABLE = Path(__file__).parents[3] / "docs" / "reference" / "etcdctl.md"


def rows() -> Iterator[tuple[list[str], list[str]]]:
    """Of each row etcdctl's commands, and ours."""
    for line in TABLE.read_text(encoding="utf-8").partition("## Options")[0].splitlines():
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


ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("ETCDCTL_", "RAYKEEPER_"))},
    "ETCDCTL_API": "3",
}


def said_by(program: str, *words: str) -> str:
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT).stdout


def programs() -> list[str]:
    """The etcdctl of each version that is installed, of those that the table is of."""
    beside = Path(sys.executable).with_name("etcdctl")
    paths = {path for path in (str(beside), "/usr/bin/etcdctl", shutil.which("etcdctl")) if path and is_file(path)}
    return [path for path in sorted(paths) if re.search(r"^etcdctl version: 3\.[45]\.", said_by(path, "version"), re.M)]


def is_file(path: str) -> bool:
    return Path(path).is_file()


with_etcdctl = pytest.mark.skipif(not programs(), reason="no etcdctl of 3.4 or 3.5 is installed")


@with_etcdctl
def test_the_table_has_every_command_of_etcdctl() -> None:
    known = {command for theirs, _ in rows() for command in theirs}
    for program in programs():
        said = said_by(program, "--help")
        listed = re.findall(
            r"^\t([a-z-]+(?: [a-z-]+)?)\t", said[said.index("COMMANDS:") : said.index("OPTIONS:")], re.M
        )
        assert len(listed) > 40
        assert sorted(set(listed) - known) == []


def found(words: str) -> click.Command:
    command: click.Command = cli
    for word in words.split():
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), word)
        assert inner is not None
        command = inner
    return command


def named_in_table() -> set[str]:
    """The options that a table has, with the command before them."""
    text = TABLE.read_text(encoding="utf-8").partition("## Options")[2]
    return {
        option
        for line in text.splitlines()
        if line.startswith("| `")
        for option in re.findall("`([^`]*-[^`]+)`", line.split("|")[1])
    }


def options_of(program: str, *words: str) -> dict[str, tuple[str, bool]]:
    """The options that etcdctl lists for a command, those that it inherits too, each with its short form, and whether
    it takes a value. A switch is listed as `--name[=false]`."""
    listed = said_by(program, *words, "--help").partition("OPTIONS:")[2]
    return {
        option: (short, not switch)
        for short, option, switch in re.findall(r"^ +(?:(-\w), )?(--[a-z-]+)(\[)?=?", listed, re.M)
        if option != "--help"
    }


@with_etcdctl
def test_each_option_of_etcdctl_is_ours_or_in_the_table() -> None:
    missing, apart, seen, inherited = [], [], 0, 0
    in_table = named_in_table()
    for program in programs():
        of_all = options_of(program)
        missing += [option for option in of_all if option not in in_table]
        for theirs, ours in rows():
            for words, mine in zip(theirs, ours, strict=len(theirs) == len(ours)):
                known = {
                    option: not (isinstance(each, click.Option) and each.is_flag)
                    for each in found(mine).params
                    for option in (*each.opts, *each.secondary_opts)
                }
                for option, (short, takes_value) in options_of(program, *words.split()).items():
                    if option in of_all:
                        continue
                    seen += 1
                    inherited += (words, option) == ("endpoint status", "--cluster")
                    if f"{words} {option}" not in in_table:
                        asked = [each for each in (option, short) if each]
                        missing += [f"{words} {each}" for each in asked if each not in known]
                        apart += [f"{words} {each}" for each in asked if known.get(each, takes_value) != takes_value]
    assert seen > 60
    assert inherited == len(programs())
    assert sorted(set(missing)) == []
    assert sorted(set(apart)) == [], "one takes a value, the other does not"


ALIKE = """
put a 1
put a 2 --prev-kv
put a --ignore-value --prev-kv
put a 3 --ignore-lease
put new --ignore-value
put new 1 --ignore-lease
put a 4 --ignore-value
get a --consistency=s
get a --consistency=l
put b/1 x
put b/2 y
put b/1 z
get b/ --prefix --sort-by=MODIFY --order=DESCEND
get b/ --prefix --sort-by=CREATE --order=ASCEND
get b/ --prefix --sort-by=VERSION
get b/ --prefix --sort-by=SIZE
put c <<< from stdin
get c --print-value-only
txn -i <<< value("a") = "3"\\n\\nput a --ignore-value\\n\\nget a\\n\\n
del b/ --prefix
"""
"""Command lines, in this order; after <<<, what they read."""


@with_etcdctl
def test_ours_and_etcdctl_print_the_same_at_an_etcd_and_at_a_proxy() -> None:
    """All that goes to stdout, and whether the command succeeds."""

    def by_etcdctl(endpoint: str, words: list[str], stdin: str) -> tuple[bool, str]:
        command = [programs()[-1], f"--endpoints={endpoint}", "--command-timeout=60s", *words]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=2 * PATIENCE, env=ENVIRONMENT, check=False
        )
        out = re.sub("compares:\n|success requests \\(get, put, del\\):\n|failure requests .*\n", "", done.stdout)
        return done.returncode == 0, out.strip()

    def by_ours(endpoint: str, words: list[str], stdin: str) -> tuple[bool, str]:
        ran = CliRunner().invoke(cli, [*words, "--endpoint", endpoint, "--timeout", f"{PATIENCE:g}"], input=stdin)
        assert isinstance(ran.exception, (SystemExit, type(None))), ran.exception
        return ran.exit_code == 0, ran.stdout.strip()

    with running_etcd() as etcd, running_etcd() as other, etcd_port() as port:
        apart = []
        for line in ALIKE.strip().splitlines():
            arguments, _, stdin = line.partition(" <<< ")
            words, read = shlex.split(arguments), stdin.replace("\\n", "\n")
            theirs = by_etcdctl(etcd.endpoint, words, read)
            for endpoint in (other.endpoint, port.endpoint):
                ours = by_ours(endpoint, words, read)
                if ours != theirs:
                    apart.append(f"{line}\n  etcdctl: {theirs}\n  ours:    {ours} at {endpoint}")
    assert not apart, "\n".join(apart)
