"""How the command line prints results: simple (as etcdctl does), JSON, or a table.

Keys and values are bytes. What is not UTF-8, and what could control the terminal, is shown with escapes. In JSON such
bytes are base64, in an object whose field ``base64`` names the fields that are.

JSON has one kind of number, of which most readers (jq, browsers) keep 53 bits. So larger whole numbers are written as
text, as protobuf's JSON does with all 64-bit ones.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from ..actors.client.results import Batch, DeleteResult, Event, KeyValue, PutResult, RangeResult, TxnResult

if TYPE_CHECKING:
    from ..actors.cluster.status import ClusterStatus, MemberInfo
    from ..actors.ray_view import ProxyInfo

_UNPRINTABLE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def text(data: bytes) -> str:
    """Bytes for a terminal: what is not UTF-8, and what could control the terminal, is escaped."""
    return data.decode("utf-8", "backslashreplace").translate(_UNPRINTABLE)


def duration(seconds: float) -> str:
    """A length of time, for people: ``12 s``, ``3 min``, ``2.5 h``, ``4.2 d``."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


class CommandResult(NamedTuple):
    """A result of the command itself, besides the results of the client.

    Attributes:
        fields: by name, for JSON and tables; a field that is a list of mappings is a table by itself.
        lines: for people.
    """

    fields: dict[str, Any]
    lines: list[str]


def show(result: Any, output: str, **options: bool) -> None:
    """Print the result of a command: one of the client's, an event, a cluster's status, or a ``CommandResult``."""
    if output == "json":
        # Events come in batches, but each is printed on a line of its own.
        for each in result.events if isinstance(result, Batch) and result.events else [result]:
            click.echo(msgspec.json.encode(_exact(_plain(each))))
    elif output == "table":
        _print_table(*_rows(result))
        for proxy in getattr(result, "proxies", ()):
            click.echo(_proxy_line(proxy))
        for alarm in getattr(result, "alarms", ()):
            click.echo(f"alarm: {text(alarm.encode(errors='surrogateescape'))}")
    else:
        for line in _lines(result, **options):
            click.echo(line)


EXACT = 1 << 53
"""A reader that takes JSON numbers as floating-point ones reads them right up to this one."""


def _exact(value: Any) -> Any:
    """The same value in a form that every reader of JSON reads exactly."""
    if isinstance(value, dict):
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(each) for each in value]
    if isinstance(value, int) and not -EXACT <= value <= EXACT:
        return str(value)
    if isinstance(value, str):  # perhaps from the command line, where what is not UTF-8 becomes lone surrogates
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return value


def _item(item: KeyValue) -> dict[str, Any]:
    return _encoded({"key": item.key, "value": item.raw, **{name: getattr(item, name) for name in _NUMBERS}})


def _encoded(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields, some of them bytes, as JSON can express them: see the file's docstring."""
    said = dict(fields)
    encoded = []
    for name, value in fields.items():
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            said[name] = [_encoded(each) for each in value]
            continue
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(each, bytes) for each in several):
            continue
        try:
            texts = [each.decode() for each in several]
        except UnicodeDecodeError:
            texts = [base64.b64encode(each).decode() for each in several]
            encoded.append(name)
        said[name] = texts if isinstance(value, list) else texts[0]
    return {**said, "base64": encoded} if encoded else said


_NUMBERS = ("create_revision", "mod_revision", "version", "lease")


def _plain(result: Any) -> Any:
    """A result as JSON can express it."""
    if isinstance(result, KeyValue):
        return _item(result)
    if isinstance(result, CommandResult):
        return _encoded(result.fields)
    if isinstance(result, Event):
        return {"type": result.type, "kv": _plain(result.kv), "prev": _plain(result.prev)}
    if isinstance(result, Batch):
        return {"type": "progress", "revision": result.revision}
    if isinstance(result, (list, tuple)):
        return [_plain(item) for item in result]
    if isinstance(result, (PutResult, RangeResult, DeleteResult, TxnResult)):
        return {name: _plain(getattr(result, name)) for name in result.__struct_fields__}
    if hasattr(result, "members"):
        fields = dict(vars(result))
        for name in ("members", "proxies"):
            fields[name] = [{k: v for k, v in vars(each).items() if k != "actor"} for each in getattr(result, name)]
        return fields
    return result


def _lines(result: Any, keys_only: bool = False, count_only: bool = False) -> Iterator[str]:
    """A result as etcdctl prints it: each key and each value on a line of its own."""
    if isinstance(result, KeyValue):
        yield text(result.key)
        if not keys_only:
            yield text(result.raw)
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
    elif isinstance(result, CommandResult):
        yield from result.lines
    elif isinstance(result, Event):
        yield result.type.upper()
        yield from _lines(result.prev)
        yield from _lines(result.kv)
    elif isinstance(result, Batch):
        for event in result.events:
            yield from _lines(event)
        if not result.events:
            yield f"progress notify: {result.revision}"
    elif isinstance(result, dict):
        yield from (f"{name}: {value}" for name, value in result.items())
    elif result is not None:
        yield from _status_lines(result)


def _status_lines(status: ClusterStatus) -> Iterator[str]:
    head = f"cluster {status.name} ({status.id:x}): term {status.term}, revision {status.revision}"
    yield f"{head}, {status.sessions} sessions; {_margin(status)}"
    yield from map(_member_line, status.members)
    yield from map(_proxy_line, status.proxies)
    for alarm in status.alarms:
        yield f"alarm: {text(alarm.encode(errors='surrogateescape'))}"


def _margin(status: ClusterStatus) -> str:
    """How much may still be lost."""
    if status.spare < 0 or not status.leader:
        return "it takes no writes"
    if status.spare == 0:
        return "one more loss stops writes"
    return f"{status.spare} more member{'s' if status.spare > 1 else ''} may be lost"


def _member_line(member: MemberInfo) -> str:
    """One line about a member: where it is and how far it is; of one that is missing, where it was and since when."""
    where = f"{member.address} (node {member.node[:8]})" if member.address else f"node {member.node[:8]}"
    if not member.pid:
        place = f"last at {member.address}" if member.address else "no process"
        folder = f" in {member.folder}" if member.folder else ""
        return f"{member.name} {member.role}: {place}{folder}{_missing_since(member)}"
    since = f" for {duration(member.role_for)}" if member.role_for is not None else ""
    parts = [f"pid {member.pid} on {where}", f"applied {member.applied_index} of {member.raft_index}"]
    if member.lag:
        parts.append(f"lag {member.lag} entries ({duration(member.lag_seconds)})")
    if member.puts or member.gets:
        parts.append(f"{member.puts:,.0f} puts and {member.gets:,.0f} gets a second")
    parts.append(f"{member.db_size / 1e6:.1f} MB")
    if member.free_bytes:
        parts.append(f"{member.free_bytes / 1e9:.1f} GB free")
    if member.version:
        parts.append(f"commands version {member.version}")
    if member.without_lane:
        parts.append(f"by actor calls to {', '.join(f'm{to}' for to in sorted(member.without_lane))}")
    return f"{member.name} {member.role}{since}: {', '.join(parts)}"


def _missing_since(member: MemberInfo) -> str:
    """The moment, if the cluster has recorded it; else how long the present leader has heard nothing."""
    if member.lost_since is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(member.lost_since))
        return f", lost since {when} ({duration(time.time() - member.lost_since)})"
    return f", silent for {duration(member.silent_for)}" if member.silent_for is not None else ""


def _proxy_line(proxy: ProxyInfo) -> str:
    """One line about a proxy: where, its process, for whom it speaks, and its connections."""
    place = f"pid {proxy.pid} on node {proxy.node[:8]}" if proxy.pid else f"node {proxy.node[:8]}"
    if not proxy.url:
        return f"proxy: {place}, does not serve"
    kind = " in the foreground" if proxy.actor is None else ""
    connections = "" if proxy.connections is None else f", {proxy.connections} connections"
    return f"proxy{kind} {proxy.url}: {place}, speaks for m{proxy.member}{connections}"


def _rows(result: Any) -> tuple[list[str], list[list[Any]]]:
    """The headings and rows of a table."""
    if isinstance(result, RangeResult):
        numbers = [[getattr(item, name) for name in _NUMBERS] for item in result]
        rows = [[item.key, item.raw, *row[:-1], f"{row[-1]:x}"] for item, row in zip(result, numbers, strict=True)]
        return ["key", "value", *_NUMBERS], rows
    if isinstance(result, (PutResult, DeleteResult)):
        fields = _plain(result)
        before = result.prev if isinstance(result, DeleteResult) else [result.prev] if result.prev else []
        fields["prev"] = b"\n".join(item.key + b" = " + item.raw for item in before)
        return list(fields), [list(fields.values())]
    if isinstance(result, TxnResult):
        rows = [[n, "\n".join(_lines(response))] for n, response in enumerate(result.responses, 1)]
        return [f"{'success' if result.succeeded else 'failure'} at revision {result.revision}", "response"], rows
    if isinstance(result, CommandResult):
        return _said_rows(result.fields)
    if isinstance(result, dict):
        return list(result), [list(result.values())]
    headings = ["name", "role", "term", "applied_index", "raft_index", "db_size", "pid", "address", "why_not_serving"]
    return headings, [[getattr(member, name) for name in headings] for member in result.members]


def _said_rows(fields: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    for value in fields.values():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return list(value[0]), [row for each in value for row in _said_rows(each)[1]]
    cells: list[Any] = []
    for name, value in fields.items():
        if isinstance(value, list):
            cells.append(b" ".join(value))
        else:
            cells.append(hex(value)[2:] if name == "id" else value)
    return list(fields), [cells]


def _print_table(headings: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(text(cell) if isinstance(cell, bytes) else str(cell)) for cell in row))
    # A pipe has no width.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
