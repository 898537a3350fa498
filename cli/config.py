"""`raykeeper config get` and `config set`: the settings of a running cluster, which its members keep.

Fields are named as in ``cluster.yaml``, with a point for those in a section. A value has the type that the field has
there; a list is written with commas between its items. What `get` prints, `set` takes.
"""

from __future__ import annotations

from typing import Any

import click

from ..errors import InvalidArgument
from ..limits import Settings
from .options import common, open_operations, options, timeout_option
from .render import CommandResult, show

FIXED = ("lease_reads", "clock_drift")
"""Decided when the cluster is created; see ``Settings``."""
_WORDS = {"on": True, "true": True, "off": False, "false": False}


@click.group()
def config() -> None:
    """The settings of a running cluster."""


@config.command("get")
@click.argument("fields", metavar="[FIELD]...", nargs=-1)
@options(common, timeout_option)
def get_config(cluster: str, address: str | None, output: str, timeout: float, fields: tuple[str, ...]) -> None:
    """Print settings: all of them, or each FIELD (timings.election_timeout) or section (timings)."""
    found = flat(open_operations(cluster, address).settings(timeout=timeout))
    _show(_chosen(found, fields) if fields else found, output)


@config.command("set")
@click.argument("changes", metavar="FIELD=VALUE...", nargs=-1, required=True)
@options(common, timeout_option)
def set_config(cluster: str, address: str | None, output: str, timeout: float, changes: tuple[str, ...]) -> None:
    """Change settings of the running cluster, all of them in one step, and print them as they are then.

    Members follow within a heartbeat. Lanes (lanes, lane_ports, lane_interface) and bounds of queues count from a
    member's next start on: `raykeeper upgrade` restarts one after the other.
    """
    asked = parsed(changes)
    settings = open_operations(cluster, address).configure(timeout=timeout, **asked)
    found = flat(settings)
    _show(_chosen(found, [change.partition("=")[0] for change in changes]), output)


def flat(settings: Settings) -> dict[str, Any]:
    """Settings by the names of their fields; those in a section as ``section.field``."""
    found: dict[str, Any] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if hasattr(value, "__struct_fields__"):
            found |= {f"{name}.{field}": getattr(value, field) for field in value.__struct_fields__}
        else:
            found[name] = value
    return found


def parsed(changes: tuple[str, ...]) -> dict[str, Any]:
    """``FIELD=VALUE`` texts as arguments of ``Cluster.configure``.

    Raises:
        UsageError: one of them is not such a text, or names a field that there is not.
        InvalidArgument: a field cannot be changed.
    """
    known = flat(Settings())
    asked: dict[str, Any] = {}
    for change in changes:
        field, sign, text = change.partition("=")
        if not sign or field not in known:
            raise click.UsageError(f"{change!r} is not FIELD=VALUE; `raykeeper config get` prints the fields")
        if field in FIXED:
            raise InvalidArgument(f"{field} is fixed when a cluster is created; restore a backup with another spec")
        section, point, name = field.partition(".")
        value = _value(text, known[field])
        if point:
            asked.setdefault(section, {})[name] = value
        else:
            asked[field] = value
    return asked


def _value(text: str, default: Any) -> Any:
    """A value of the type of a field's default. What is not one stays text, and the check of the spec says so."""
    if isinstance(default, bool):
        return _WORDS.get(text, text)
    if isinstance(default, (int, float)):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",")] if text else []
    return text


def _chosen(found: dict[str, Any], fields: Any) -> dict[str, Any]:
    """The fields that were asked for, and those of sections that were."""
    chosen: dict[str, Any] = {}
    for asked in fields:
        named = {field: value for field, value in found.items() if field == asked or field.startswith(f"{asked}.")}
        if not named:
            raise click.UsageError(f"there is no field {asked!r}; `raykeeper config get` prints the fields")
        chosen |= named
    return chosen


def _show(found: dict[str, Any], output: str) -> None:
    lines = [f"{field}: {_shown(value)}" for field, value in found.items()]
    if output == "table":
        rows = [{"field": field, "value": _shown(value)} for field, value in found.items()]
        show(CommandResult({"settings": rows}, lines), output)
    else:
        show(CommandResult(dict(found), lines), output)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)  # of a float the digits that mean it and no other
