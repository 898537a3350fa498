"""What each command prints with ``-o json``: its fields and their types, in one table.

``docs/reference/json.md`` is made from it, and a test compares it with what the commands print. Fields are only ever
added. This file imports nothing of ours, so that the page can be made without loading the product.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

Form = Any
"""A type by its name, ``[form]`` for a list, a dictionary for an object, or one of the classes below."""


class Nullable(NamedTuple):
    """This, or null."""

    form: Form


class OneOf(NamedTuple):
    """One of these."""

    forms: tuple[Form, ...]


class Keyed(NamedTuple):
    """An object with any names, such as those of members, besides the fields that are listed."""

    name: str
    form: Form
    fields: dict[str, Form]


class Named(NamedTuple):
    """A form that several commands share."""

    name: str
    form: Form


class Optional(NamedTuple):
    """A field that stands there only if an option asks for it."""

    option: str
    form: Form


INT, NUMBER, TEXT, BOOL, BYTES = "int", "number", "text", "bool", "bytes"
TYPES = {
    INT: "a whole number; as text beyond 2^53",
    NUMBER: "a number; of seconds, if nothing else is said",
    TEXT: "text",
    BOOL: "true or false",
    BYTES: "text if it is UTF-8; else base64, and the object's `base64` names the field",
}

KEY_VALUE = Named(
    "KeyValue",
    {"key": BYTES, "value": BYTES, "create_revision": INT, "mod_revision": INT, "version": INT, "lease": INT},
)
PUT = Named("Put", {"revision": INT, "prev": Nullable(KEY_VALUE)})
RANGE = Named("Range", {"items": [KEY_VALUE], "count": INT, "more": BOOL, "revision": INT})
DELETE = Named("Delete", {"deleted": INT, "prev": [KEY_VALUE], "revision": INT})
MEMBER = Named(
    "Member",
    {
        "id": INT,
        "name": TEXT,
        "role": TEXT,
        "node": TEXT,
        "pid": INT,
        "term": INT,
        "raft_index": INT,
        "applied_index": INT,
        "revision": INT,
        "db_size": INT,
        "why_not_serving": TEXT,
        "address": TEXT,
        "folder": TEXT,
        "silent_for": Nullable(NUMBER),
        "role_for": Nullable(NUMBER),
        "lost_since": Nullable(NUMBER),
        "lag": INT,
        "lag_seconds": NUMBER,
        "puts": NUMBER,
        "gets": NUMBER,
        "free_bytes": INT,
        "version": INT,
        "without_lane": Keyed("a member's id", TEXT, {}),
    },
)
PROXY = Named(
    "Proxy",
    {
        "name": TEXT,
        "url": TEXT,
        "node": TEXT,
        "pid": INT,
        "member": INT,
        "connections": Nullable(INT),
        "why_not_serving": TEXT,
    },
)
STATUS = Named(
    "Status",
    {
        "name": TEXT,
        "id": INT,
        "leader": INT,
        "term": INT,
        "revision": INT,
        "alarms": [TEXT],
        "members": [MEMBER],
        "proxies": [PROXY],
        "spare": INT,
        "sessions": INT,
    },
)
CLIENT = Named(
    "Client",
    {
        "session": INT,
        "host": TEXT,
        "pid": INT,
        "node": TEXT,
        "address": TEXT,
        "job": TEXT,
        "actor": TEXT,
        "program": TEXT,
        "user": TEXT,
        "since": NUMBER,
        "open": BOOL,
        "leases": INT,
        "started": INT,
        "boot": TEXT,
    },
)
PARTICIPANT = Named(
    "Participant",
    {
        "token": INT,
        "what": TEXT,
        "weight": INT,
        "host": TEXT,
        "node": TEXT,
        "address": TEXT,
        "actor": TEXT,
        "job": TEXT,
        "program": TEXT,
        "user": TEXT,
        "pid": INT,
        "task": TEXT,
        "since": NUMBER,
        "session": INT,
        "session_open": BOOL,
        "lease": INT,
        "ttl": NUMBER,
        "remaining": NUMBER,
        "stuck": TEXT,
    },
)
IN_USE = Named(
    "InUse",
    {
        "kind": TEXT,
        "name": BYTES,
        "holders": [PARTICIPANT],
        "waiters": [PARTICIPANT],
        "size": INT,
        "more": BOOL,
        "stuck": TEXT,
    },
)
_LEASE = {"id": INT, "ttl": NUMBER, "remaining": NUMBER}
_ALARMS = {"alarms": [{"member": INT, "alarm": TEXT, "message": TEXT}]}
_PERMISSION = {"access": TEXT, "key": BYTES, "end": Nullable(BYTES)}
_USER, _ROLE, _USER_ROLE = {"user": TEXT}, {"role": TEXT}, {"user": TEXT, "role": TEXT}
_RATES = {"puts": NUMBER, "gets": NUMBER, "events": NUMBER, "bytes": NUMBER}
_SETTINGS = Keyed("a field of the spec", OneOf((TEXT, BOOL, NUMBER, [TEXT], Keyed("a field", TEXT, {}))), {})

SHARED = (KEY_VALUE, PUT, RANGE, DELETE, MEMBER, PROXY, STATUS, CLIENT, PARTICIPANT, IN_USE)

FORMS: dict[str, Form] = {
    "alarm disarm": _ALARMS,
    "alarm list": _ALARMS,
    "auth disable": {"enabled": BOOL},
    "auth enable": {"enabled": BOOL},
    "auth status": {"enabled": BOOL, "auth_revision": INT},
    "backup": {
        "path": TEXT,
        "cluster_name": TEXT,
        "cluster": TEXT,
        "member": INT,
        "revision": INT,
        "compact_revision": INT,
        "bytes": INT,
    },
    "barriers": {"barriers": [IN_USE]},
    "bench": {
        "measured": [
            {
                "call": TEXT,
                "in_flight": INT,
                "calls": INT,
                "per_second": NUMBER,
                "p50_ms": NUMBER,
                "p99_ms": NUMBER,
            }
        ]
    },
    "check": Keyed("a member's name", TEXT, {"equal": BOOL, "revision": INT, "compact_revision": INT}),
    "check datascale": {
        "load": TEXT,
        "keys": INT,
        "took_s": NUMBER,
        "members": [{"member": TEXT, "grown_bytes": INT}],
    },
    "check perf": {
        "load": TEXT,
        "puts": INT,
        "failed": INT,
        "puts_per_second": NUMBER,
        "slowest_s": NUMBER,
        "stddev_s": NUMBER,
        "passed": BOOL,
    },
    "clients": {"clients": [CLIENT]},
    "compact": {"compacted": INT},
    "config get": _SETTINGS,
    "config set": _SETTINGS,
    "defrag": {"defragmented": [{"endpoint": TEXT, "took_s": NUMBER, "error": TEXT}]},
    "del": DELETE,
    "doctor": {"findings": [{"check": TEXT, "where": TEXT, "verdict": TEXT, "message": TEXT, "remedy": TEXT}]},
    "down": {"cluster": TEXT, "stopped": BOOL, "destroyed": BOOL, "ray_stopped": BOOL},
    "elect": OneOf(({"name": BYTES, "key": BYTES, "token": INT, "value": BYTES}, {"token": INT, "value": BYTES})),
    "elections": {"elections": [IN_USE]},
    "endpoint hashkv": {
        "endpoints": [{"endpoint": TEXT, "hash": INT, "revision": INT, "compact_revision": INT, "error": TEXT}]
    },
    "endpoint health": {"endpoints": [{"endpoint": TEXT, "healthy": BOOL, "took_s": NUMBER, "error": TEXT}]},
    "endpoint status": {
        "endpoints": [
            {
                "endpoint": TEXT,
                "member": INT,
                "db_size": INT,
                "db_size_in_use": INT,
                "leader": BOOL,
                "learner": BOOL,
                "term": INT,
                "raft_index": INT,
                "applied_index": INT,
                "revision": INT,
                "errors": [TEXT],
            }
        ]
    },
    "events": {"events": [{"number": INT, "at": NUMBER, "kind": TEXT, "member": INT, "text": TEXT}]},
    "get": RANGE,
    "health": {"healthy": BOOL, "checks": [{"check": TEXT, "member": TEXT, "ok": BOOL, "why": TEXT}]},
    "lease grant": {"id": INT, "ttl": NUMBER},
    "lease keep-alive": {"id": INT, "ttl": NUMBER},
    "lease list": {"leases": [_LEASE]},
    "lease revoke": {"id": INT, "revoked": BOOL},
    "lease timetolive": {**_LEASE, "keys": Optional("--keys", [BYTES])},
    "lease ttl": {**_LEASE, "keys": Optional("--keys", [BYTES])},
    "lock": {"name": BYTES, "key": BYTES, "token": INT},
    "locks": {"locks": [IN_USE]},
    "logs": {"logs": [{"node": TEXT, "address": TEXT, "file": TEXT, "lines": [TEXT]}]},
    "make-mirror": {"mirrored": INT, "revision": INT},
    "member add": {"added": TEXT, "id": INT, "role": TEXT, "node": TEXT},
    "member list": STATUS,
    "member promote": {"promoted": TEXT},
    "member remove": {"removed": TEXT},
    "move-leader": {"leader": TEXT},
    "proxy": {"url": TEXT},
    "put": PUT,
    "queues": {"queues": [IN_USE]},
    "restore": STATUS,
    "role add": _ROLE,
    "role delete": _ROLE,
    "role get": {"role": TEXT, "permissions": [_PERMISSION]},
    "role grant-permission": {"role": TEXT, "access": TEXT},
    "role list": {"roles": [TEXT]},
    "role revoke-permission": _ROLE,
    "semaphores": {"semaphores": [IN_USE]},
    "services": {"services": [IN_USE]},
    "snapshot save": {"path": TEXT, "bytes": INT},
    "snapshot status": {
        "cluster": TEXT,
        "id": INT,
        "member": INT,
        "revision": INT,
        "compact_revision": INT,
        "created": NUMBER,
        "bytes": INT,
        "content": TEXT,
    },
    "status": STATUS,
    "top": {
        "clients": [{**_RATES, "source": TEXT, "client": Nullable(CLIENT)}],
        "prefixes": [{"prefix": BYTES, "reserved": BOOL, **_RATES}],
        "slow": [{"member": TEXT, "at": NUMBER, "took": NUMBER, "what": TEXT}],
        "silent": [TEXT],
    },
    "txn": {"succeeded": BOOL, "responses": [OneOf((PUT, RANGE, DELETE))], "revision": INT},
    "up": STATUS,
    "upgrade": {"upgraded": TEXT, "commands_version": INT},
    "user add": _USER,
    "user delete": _USER,
    "user get": {"user": TEXT, "roles": [TEXT], "permissions": Optional("--detail", [{"role": TEXT, **_PERMISSION}])},
    "user grant-role": _USER_ROLE,
    "user list": {"users": [TEXT]},
    "user passwd": _USER,
    "user revoke-role": _USER_ROLE,
    "watch": OneOf(
        (
            {"type": TEXT, "kv": KEY_VALUE, "prev": Nullable(KEY_VALUE)},
            {"type": TEXT, "revision": INT},
        )
    ),
}
"""By command. `watch`, `lease keep-alive`, `elect --listen`, `make-mirror` and `top` print one object on each line."""

_DIGITS = re.compile(r"-?[0-9]{16,}")


def misfit(form: Form, value: Any, where: str = "") -> str:
    """Where a value, as read from JSON, differs from a form; empty if it does not."""
    if isinstance(form, Named):
        return misfit(form.form, value, where)
    if isinstance(form, Nullable):
        return "" if value is None else misfit(form.form, value, where)
    if isinstance(form, OneOf):
        differs = [misfit(each, value, where) for each in form.forms]
        return "" if "" in differs else " and ".join(differs)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where}: not a list"
        return next((each for n, item in enumerate(value) if (each := misfit(form[0], item, f"{where}[{n}]"))), "")
    if isinstance(form, Keyed):
        rest = {name: form.fields.get(name, form.form) for name in value} if isinstance(value, dict) else {}
        return misfit({**form.fields, **rest}, value, where)
    if isinstance(form, dict):
        return _misfit_of_object(form, value, where)
    return "" if _is_of_type(form, value) else f"{where}: {value!r} is not {form}"


def _misfit_of_object(form: dict[str, Form], value: Any, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where}: not an object"
    encoded = value.get("base64", []) if BYTES in str(form) else []
    needed = {name for name, each in form.items() if not isinstance(each, Optional)}
    if not needed <= set(value) or not set(value) <= {*form, *(["base64"] if encoded else [])}:
        return f"{where}: fields {sorted(set(value) ^ needed)}"
    forms = {name: each.form if isinstance(each, Optional) else each for name, each in form.items()}
    fields = ((name, value[name]) for name in forms if name in value)
    return next((found for name, each in fields if (found := misfit(forms[name], each, f"{where}.{name}"))), "")


def _is_of_type(kind: str, value: Any) -> bool:
    if kind == BOOL:
        return isinstance(value, bool)
    if kind == INT:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (isinstance(value, str) and _DIGITS.fullmatch(value) is not None)
    if kind == NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str)


# --- the page --------------------------------------------------------------------------------------------------------


def page() -> str:
    """The page for ``docs/reference``."""
    out = [
        "# JSON that the commands print",
        "",
        "The fields of each command's output with `-o json`. This page is made from `cli/json_forms.py` (`make docs`),",
        "and a test compares that table with what the commands print. Fields are only ever added. What they mean is in",
        "[cli.md](../cli.md); `watch`, `lease keep-alive`, `elect --listen`, `make-mirror` and `top` print one object",
        "on each line.",
        "",
        "| type | |",
        "|---|---|",
        *(f"| {kind} | {meaning} |" for kind, meaning in TYPES.items()),
        "",
        "## Shared",
        "",
        "| object | fields |",
        "|---|---|",
        *(f"| {each.name} | {_shown(each.form)} |" for each in SHARED),
        "",
        "## Commands",
        "",
        "| command | prints |",
        "|---|---|",
        *(f"| `{command}` | {_shown(form)} |" for command, form in sorted(FORMS.items())),
        "",
    ]
    return "\n".join(out)


def _shown(form: Form) -> str:
    if isinstance(form, Named):
        return form.name
    if isinstance(form, Nullable):
        return f"{_shown(form.form)} or null"
    if isinstance(form, OneOf):
        return " or ".join(map(_shown, form.forms))
    if isinstance(form, list):
        return f"list of {_shown(form[0])}"
    if isinstance(form, Optional):
        return f"{_shown(form.form)} (with `{form.option}`)"
    if isinstance(form, Keyed):
        fields = "".join(f"`{name}` {_shown(each)}, " for name, each in form.fields.items())
        return f"{{{fields}and by {form.name} {_shown(form.form)}}}"
    if isinstance(form, dict):
        return f"{{{', '.join(f'`{name}` {_shown(each)}' for name, each in form.items())}}}"
    return str(form)
