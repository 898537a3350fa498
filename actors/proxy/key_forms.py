"""The forms in which ``/kv/`` answers: headers, JSON, lines of text, and what becomes of an error.

JSON has the fields of etcd's JSON gateway: bytes in base64, numbers of 64 bits as text. To them comes ``path``, which
names the key as a URL does. Lines of text are for shells: fields between tabs; in keys and values, a backslash and what
is not printable UTF-8 stand as ``printf '%b'`` reads them.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote_from_bytes

from ...errors import (
    AuthFailed,
    CompactedError,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseNotFound,
    NoSpace,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
)
from ...schema.answers import Item
from .http_exchange import HttpError
from .key_requests import KEYS_PATH

REVISION_HEADER = "x-raykeeper-revision"
"""The revision of the store when it answered; of a write, the one that it made."""
MOD_REVISION = "x-raykeeper-mod-revision"
CREATE_REVISION = "x-raykeeper-create-revision"
VERSION = "x-raykeeper-version"
LEASE = "x-raykeeper-lease"
DELETED = "x-raykeeper-deleted"
COMPACT_REVISION = "x-raykeeper-compact-revision"
EXPOSED = ("etag", "link", REVISION_HEADER, MOD_REVISION, CREATE_REVISION, VERSION, LEASE, DELETED, COMPACT_REVISION)
"""Headers of answers that a page of another origin may read, if it may ask at all."""

TEXT_TYPE = "text/plain; charset=utf-8"
_STATUS: tuple[tuple[type[KeeperError], int], ...] = (
    (AuthFailed, 401),
    (PermissionDenied, 403),
    (CompactedError, 410),
    (FutureRevisionError, 400),
    (LeaseNotFound, 404),
    (RequestTooLarge, 413),
    (NoSpace, 507),
    (InvalidArgument, 400),
    (RequestTimeout, 504),
)
WHO_ARE_YOU = {"www-authenticate": 'Basic realm="raykeeper", charset="UTF-8"'}
"""Beside status 401 (RFC 7617)."""
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPECIAL = re.compile(r"[^ -\[\]-~\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]")


def path_of(key: bytes) -> str:
    """The path that names a key."""
    return KEYS_PATH + quote_from_bytes(key)


def headers_of(item: Item, revision: int) -> dict[str, str]:
    """What headers say about a key that exists."""
    headers = {
        "etag": f'"{item.mod_revision}"',
        REVISION_HEADER: str(revision),
        MOD_REVISION: str(item.mod_revision),
        CREATE_REVISION: str(item.create_revision),
        VERSION: str(item.version),
    }
    if item.lease:
        headers[LEASE] = str(item.lease)
    return headers


def pair_json(item: Item, skip: int, with_value: bool = True) -> dict[str, Any]:
    """A key as JSON; ``skip`` is how much of the stored key its users do not see."""
    key = item.key[skip:]
    pair = {
        "key": b64encode(key).decode(),
        "path": path_of(key),
        "create_revision": str(item.create_revision),
        "mod_revision": str(item.mod_revision),
        "version": str(item.version),
    }
    if with_value:
        pair["value"] = b64encode(item.value).decode()
    if item.lease:
        pair["lease"] = str(item.lease)
    return pair


def deleted_json(key: bytes, mod_revision: int) -> dict[str, Any]:
    """A key that was deleted."""
    return {"key": b64encode(key).decode(), "path": path_of(key), "mod_revision": str(mod_revision)}


def compact_json(value: Mapping[str, Any]) -> bytes:
    """JSON on one line."""
    return json.dumps(value, separators=(",", ":")).encode()


def line(fields: Iterable[bytes | str]) -> bytes:
    """One line of text; bytes are escaped."""
    return ("\t".join([each if isinstance(each, str) else escaped(each) for each in fields]) + "\n").encode()


def escaped(data: bytes) -> str:
    """Bytes as text that has no control characters. What is not UTF-8 stands as ``\\xNN``."""
    if data.isascii() and data.isalnum():
        return data.decode()
    return _SPECIAL.sub(_escape, data.decode("utf-8", "surrogateescape"))


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    known = _ESCAPES.get(character)
    return known or "".join([f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape")])


def http_error(error: KeeperError, writes: bool) -> HttpError:
    """How a request ends that failed; of a write the text says whether it was applied."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
    text, headers = str(error), dict[str, str]()
    if isinstance(error, CompactedError):
        headers[COMPACT_REVISION] = str(error.compact_revision)
    if status == 401:
        headers |= WHO_ARE_YOU
    if writes and error.applied is None:
        status, text = 504, f"{text}: it is not known whether the write was applied"
    elif status >= 500:
        text += ": nothing was written" if writes else ""
        headers["retry-after"] = "1"
    return HttpError(status, f"{text}\n", headers)
