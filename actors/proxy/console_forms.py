"""The forms in which the console's page gets what is in the store: bounded, as text or in hexadecimal, and never as
numbers that a browser would round.

A key is shown by ``key``, with what is not printable escaped, and named in requests by ``path``, percent-encoded. Ids
of clusters, sessions and leases have 64 bits, so they are text in hexadecimal, as the shell prints them.
"""

from __future__ import annotations

import codecs
import re
from typing import Any
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from ...limits import CONSOLE_CUT_BYTES, MAX_HTTP_PARAMETERS
from ..client.client_info import ClientInfo, client_fields
from .key_forms import escaped
from .rpc_status import RpcCode, RpcError

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def bad_request(text: str) -> RpcError:
    """What was asked for makes no sense."""
    return RpcError(RpcCode.INVALID_ARGUMENT, text)


def key_form(key: bytes, skip: int = 0) -> dict[str, Any]:
    """A key; ``skip`` is how much of it is not shown, since it is shown elsewhere."""
    return {"key": name_form(key[skip:]), "path": quote_from_bytes(key)}


def name_form(name: bytes) -> str:
    """A name for people, cut."""
    more = len(name) - CONSOLE_CUT_BYTES
    return escaped(name) if more <= 0 else f"{escaped(name[:CONSOLE_CUT_BYTES])}... ({more} bytes more)"


def value_form(data: bytes, most: int) -> dict[str, Any]:
    """A value: ``text`` or ``hex``, of this many bytes at most; ``size``; and whether it is ``cut``."""
    part = data[:most]
    form: dict[str, Any] = {"size": len(data), "cut": len(data) > most}
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(part, len(data) <= most)
    except UnicodeDecodeError:
        text = "\0"
    if not _CONTROL.search(text):
        return {"text": text, **form}
    return {"hex": part.hex(" ", 1), **form}


def client_form(client: ClientInfo) -> dict[str, Any]:
    """A client."""
    fields = client_fields(client)
    return {**fields, "session": id_form(client.session)}


def id_form(id: int) -> str:
    """An id."""
    return f"{id:x}"


def parameters(query: str, known: tuple[str, ...]) -> dict[str, bytes]:
    """The parameters of a request, percent-decoded.

    Raises:
        RpcError: there is one that is not known, or one twice.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_HTTP_PARAMETERS)
    except ValueError:
        raise bad_request(f"more than {MAX_HTTP_PARAMETERS} parameters") from None
    given = dict(pairs)
    if len(given) < len(pairs):
        raise bad_request("a parameter is given twice")
    for name in given:
        if name not in known:
            raise bad_request(f"there is no parameter {name[:100]!r}; known: {', '.join(known) or 'none'}")
    return {name: value.encode("latin-1") for name, value in given.items()}


def path_bytes(text: str) -> bytes:
    """The bytes that percent-encoded text in a body stands for."""
    return unquote_to_bytes(text)
