"""Tokens: who a client is, signed by any member and checked by any other.

    token = base64url( msgpack(Caller) + HMAC-SHA256(key, cluster id + msgpack(Caller)) )

The key is part of the replicated state, drawn when users are enabled. So a token needs no entry of the log and no table
of tokens: a flood of logins writes nothing. A token ends with its time, with its user's password, with its user, and
with the key. It ends earlier for nobody alone: rights are looked up when a call is applied, not when a token is made.

A token hides nothing: it shows a user's name and two numbers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

from ...limits import TOKENS_KNOWN
from ...schema.commands import Caller

_SIGNATURE_BYTES = hashlib.sha256().digest_size
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Caller).decode


def make_token(caller: Caller, key: bytes, cluster: int) -> bytes:
    """The token of a caller."""
    data = _encode(caller)
    return base64.urlsafe_b64encode(data + _signature(data, key, cluster))


def read_token(token: bytes, key: bytes, cluster: int) -> Caller | None:
    """The caller that a token names; ``None`` if no member of this cluster has made it, with this key."""
    try:
        signed = base64.b64decode(token, altchars=b"-_", validate=True)
        data, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not key or not hmac.compare_digest(signature, _signature(data, key, cluster)):
            return None
        return _decode(data)
    except (ValueError, msgspec.MsgspecError):
        return None


def _signature(data: bytes, key: bytes, cluster: int) -> bytes:
    return hmac.digest(key, cluster.to_bytes(8, "big") + data, "sha256")


class KnownTokens:
    """Tokens that were checked before: a client sends the same with every frame. Any thread.

    Args:
        cluster: the cluster's id.
    """

    def __init__(self, cluster: int) -> None:
        self._cluster = cluster
        self._key = b""
        self._callers: dict[bytes, Caller] = {}

    def caller(self, token: bytes, key: bytes) -> Caller | None:
        """As :func:`read_token`."""
        if key != self._key or len(self._callers) >= TOKENS_KNOWN:
            self._key, self._callers = key, {}
        known = self._callers
        caller = known.get(token)
        if caller is None:
            caller = read_token(token, key, self._cluster)
            if caller is not None and key == self._key:
                known[token] = caller
        return caller
