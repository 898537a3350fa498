"""Requests to ``/kv/<key>``: what their path, query and headers ask for, checked.

The key is the rest of the path, percent-decoded, whatever bytes that gives. Each kind of request knows its parameters,
and any other is refused: a misspelled one must not change what a request means. A flag is given by its name alone, or
with ``true`` or ``false``.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from ...limits import HTTP_PAGE_ITEMS, MAX_HTTP_PARAMETERS
from ...schema.operations import KeyRange, Relation, Target, TxnCompare
from .http_exchange import HttpError, HttpExchange

KEYS_PATH = "/kv/"
"""What the paths begin with."""

_MOST = (1 << 63) - 1
_FLAGS = {"prefix", "watch", "serializable", "keys_only", "text", "prev"}
_NUMBERS = {"revision", "limit", "from", "lease"}
_OF_KIND = {
    "get": ("revision", "serializable"),
    "list": ("prefix", "revision", "serializable", "limit", "start", "keys_only", "text"),
    "watch": ("watch", "prefix", "from", "prev", "text"),
    "put": ("lease",),
    "delete": (),
    "delete all": ("prefix",),
}
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_TAG = re.compile(r'(?:W/)?"(\d{1,19})"|(\d{1,19})')


class KeyRequest(NamedTuple):
    """A request, checked.

    A parameter that was not given is ``False``, 0 or empty.
    """

    kind: str
    """get, list, watch, put, delete or "delete all"."""
    key: bytes
    """The key, or the prefix."""
    start: bytes
    """The first key of the page."""
    limit: int
    revision: int
    from_revision: int
    """The first revision to be watched."""
    lease: int
    flags: frozenset[str]


def parse_request(exchange: HttpExchange) -> KeyRequest:
    """What a request asks for.

    Raises:
        HttpError: 400, it is not well-formed.
    """
    key = _decoded(exchange.path[len(KEYS_PATH) :].encode("latin-1"), "the path")
    given = _parameters(exchange.query)
    flags = frozenset(name for name in given.keys() & _FLAGS if _flag(name, given[name]))
    kind = _kind(exchange.method, flags)
    for name in given:
        if name not in _OF_KIND[kind]:
            known = ", ".join(_OF_KIND[kind]) or "none"
            raise HttpError(400, f"a request to {kind} does not take the parameter {name[:100]!r}; it takes: {known}\n")
    if not key and "prefix" not in flags:
        raise HttpError(400, "the key is empty: give one after /kv/, or ?prefix for all keys\n")
    numbers = {name: _number(name, given[name]) for name in given.keys() & _NUMBERS}
    start = given["start"].encode("latin-1") if "start" in given else key
    if not start.startswith(key):
        raise HttpError(400, "start does not begin with the prefix\n")
    limit = numbers.get("limit", HTTP_PAGE_ITEMS)
    if not 1 <= limit <= HTTP_PAGE_ITEMS:
        raise HttpError(400, f"limit must be from 1 to {HTTP_PAGE_ITEMS}\n")
    first = _resumed(exchange.headers) if kind == "watch" else 0
    return KeyRequest(
        kind,
        key,
        start,
        limit,
        numbers.get("revision", 0),
        first or numbers.get("from", 0),
        numbers.get("lease", 0),
        flags,
    )


def _kind(method: str, flags: frozenset[str]) -> str:
    if method == "PUT":
        return "put"
    if method == "DELETE":
        return "delete all" if "prefix" in flags else "delete"
    if "watch" in flags:
        return "watch"
    return "list" if "prefix" in flags else "get"


def _parameters(query: str) -> dict[str, str]:
    """The parameters; values stand for bytes, as in latin-1."""
    _check_escapes(query.encode("latin-1"), "the query")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_HTTP_PARAMETERS)
    except ValueError:
        raise HttpError(400, f"more than {MAX_HTTP_PARAMETERS} parameters\n") from None
    given = dict(pairs)
    if len(given) < len(pairs):
        raise HttpError(400, "a parameter is given twice\n")
    return given


def _decoded(text: bytes, what: str) -> bytes:
    _check_escapes(text, what)
    return unquote_to_bytes(text)


def _check_escapes(text: bytes, what: str) -> None:
    if _BAD_ESCAPE.search(text):
        raise HttpError(400, f"{what} has a % without two hexadecimal digits; % itself is %25\n")


def _flag(name: str, text: str) -> bool:
    if text not in ("", "true", "false"):
        raise HttpError(400, f"{name} is a flag: give ?{name}, or true or false\n")
    return text != "false"


def _number(name: str, text: str) -> int:
    base = 16 if name == "lease" and text[:2].lower() == "0x" else 10
    digits = text[2:] if base == 16 else text
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}" if base == 16 else r"[0-9]{1,19}", digits):
        also = ", or 0x and a hexadecimal one" if name == "lease" else ""
        raise HttpError(400, f"{name} must be a whole number{also}\n")
    number = int(digits, base)
    if not 0 < number <= _MOST:
        raise HttpError(400, f"{name} must be from 1 to {_MOST}\n")
    return number


def _resumed(headers: Mapping[str, str]) -> int:
    """The revision after the last that the client has seen; 0 if it names none."""
    text = headers.get("last-event-id", "")
    if not text:
        return 0
    if not re.fullmatch(r"\d{1,19}", text) or int(text) >= _MOST:
        raise HttpError(400, "Last-Event-ID must be a revision\n")
    return int(text) + 1


def basic_credentials(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The user and password of a request that gives them (RFC 7617); ``None`` for one that does not.

    Raises:
        HttpError: 400, they are not well-formed.
    """
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(" "), validate=True).decode().partition(":")
    except ValueError:
        user, colon, password = "", "", ""
    if not user or not colon:
        raise HttpError(400, "Authorization: Basic is not followed by USER:PASSWORD in base64\n")
    return user, password


# --- conditions ------------------------------------------------------------------------------------------------------


class Precondition(NamedTuple):
    """One of ``If-Match`` and ``If-None-Match`` (RFC 9110, 13.1).

    A weak tag counts as a strong one: it names the same
    revision, and stands where a value was compressed on its way.
    """

    match: bool
    """Whether it is ``If-Match``."""
    revision: int
    """The mod revision; 0 stands for ``*``, any."""

    def compare(self, stored: bytes) -> TxnCompare:
        """The comparison, of a stored key."""
        keys = KeyRange(stored)
        if self.revision:
            relation = Relation.EQUAL if self.match else Relation.NOT_EQUAL
            return TxnCompare(keys, Target.MOD_REVISION, relation, self.revision)
        return TxnCompare(keys, Target.VERSION, Relation.GREATER if self.match else Relation.EQUAL, 0)

    def holds(self, mod_revision: int) -> bool:
        """Whether it holds for a key that was changed last at this revision; 0 for none."""
        same = mod_revision == self.revision if self.revision else mod_revision > 0
        return same == self.match


def parse_preconditions(headers: Mapping[str, str]) -> list[Precondition]:
    """The conditions of a request, ``If-Match`` first.

    Raises:
        HttpError: 400, one is neither ``*`` nor one revision.
    """
    found = []
    for name, match in (("If-Match", True), ("If-None-Match", False)):
        text = headers.get(name.lower())
        if text is None:
            continue
        tag = _TAG.fullmatch(text.strip())
        revision = 0 if text.strip() == "*" else int(tag[1] or tag[2]) if tag else -1
        if revision < 0 or (tag and not 0 < revision <= _MOST):
            raise HttpError(400, f'{name} must be * or one mod revision, such as "7"\n')
        found.append(Precondition(match, revision))
    return found
