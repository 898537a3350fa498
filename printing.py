"""How the command line prints results: simple (as etcdctl does), JSON, or a table.

Keys and values are bytes. What is no UTF-8, and whatever could steer a terminal, is shown with escapes; in JSON it is
base64, in an item whose field ``base64`` names the fields that are.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .actors.client.results import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult

if TYPE_CHECKING:
    from .cluster import ClusterStatus

_UNPRINTABLE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def _text(data: bytes) -> str:
    """Bytes for a terminal: what is no UTF-8, and whatever could steer the terminal, is escaped."""
    return data.decode("utf-8", "backslashreplace").translate(_UNPRINTABLE)


def show(result: Any, output: str, **options: bool) -> None:
    """Print what a command brought: a result of the client, a cluster's status, or a mapping of words."""
    if output == "json":
        click.echo(msgspec.json.encode(_plain(result)))
    elif output == "table":
        _print_table(*_rows(result))
    else:
        for line in _lines(result, **options):
            click.echo(line)


def _item(item: KeyValue) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    encoded = []
    for name, data in (("key", item.key), ("value", item.raw)):
        try:
            fields[name] = data.decode()
        except UnicodeDecodeError:
            fields[name] = base64.b64encode(data).decode()
            encoded.append(name)
    fields |= {name: getattr(item, name) for name in _NUMBERS}
    return {**fields, "base64": encoded} if encoded else fields


_NUMBERS = ("create_revision", "mod_revision", "version", "lease")


def _plain(result: Any) -> Any:
    """A result as what JSON can say."""
    if isinstance(result, KeyValue):
        return _item(result)
    if isinstance(result, (list, tuple)):
        return [_plain(item) for item in result]
    if isinstance(result, (PutResult, RangeResult, DeleteResult, TxnResult)):
        return {name: _plain(getattr(result, name)) for name in result.__struct_fields__}
    if hasattr(result, "members"):
        fields = {name: value for name, value in vars(result).items() if name != "members"}
        members = [{k: v for k, v in vars(m).items() if k != "actor"} for m in result.members]
        return {**fields, "members": members}
    return result


def _lines(result: Any, keys_only: bool = False, count_only: bool = False) -> Iterator[str]:
    """A result as etcdctl prints it: a key and its value on a line each."""
    if isinstance(result, KeyValue):
        yield _text(result.key)
        if not keys_only:
            yield _text(result.raw)
    elif isinstance(result, PutResult):
        yield "OK"
        yield from _lines(result.prev)
    elif isinstance(result, RangeResult):
        if count_only:
            yield str(result.count)
        for item in result:
            yield from _lines(item, keys_only)
    elif isinstance(result, DeleteResult):
        yield str(result.deleted)
        for item in result.prev:
            yield from _lines(item)
    elif isinstance(result, TxnResult):
        yield "SUCCESS" if result.succeeded else "FAILURE"
        for response in result.responses:
            yield ""
            yield from _lines(response)
    elif isinstance(result, dict):
        yield from (f"{name}: {value}" for name, value in result.items())
    elif result is not None:
        yield from _status_lines(result)


def _status_lines(status: ClusterStatus) -> Iterator[str]:
    yield f"cluster {status.name} ({status.id:x}): term {status.term}, revision {status.revision}"
    for member in status.members:
        place = f"pid {member.pid} on node {member.node[:8]}" if member.pid else "no process"
        progress = f"applied {member.applied_index} of {member.raft_index}, {member.db_size / 1e6:.1f} MB"
        yield f"{member.name} {member.role}: {place}, {progress}"
    for alarm in status.alarms:
        yield f"alarm: {_text(alarm.encode())}"


def _rows(result: Any) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a table."""
    if isinstance(result, RangeResult):
        return ["key", "value", *_NUMBERS], [[i.key, i.raw, *(getattr(i, n) for n in _NUMBERS)] for i in result]
    if isinstance(result, (PutResult, DeleteResult)):
        fields = _plain(result)
        before = result.prev if isinstance(result, DeleteResult) else [result.prev] if result.prev else []
        fields["prev"] = b"\n".join(item.key + b" = " + item.raw for item in before)
        return list(fields), [list(fields.values())]
    if isinstance(result, TxnResult):
        rows = [[n, "\n".join(_lines(response))] for n, response in enumerate(result.responses, 1)]
        return [f"{'success' if result.succeeded else 'failure'} at revision {result.revision}", "response"], rows
    if isinstance(result, dict):
        return list(result), [list(result.values())]
    headings = ["name", "role", "term", "applied_index", "raft_index", "db_size", "pid", "node", "why_not_serving"]
    return headings, [[getattr(member, name) for name in headings] for member in result.members]


def _print_table(headings: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(cell) if isinstance(cell, bytes) else str(cell)) for cell in row))
    # A pipe has no width to keep to.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
