"""Passwords and their hashes (bcrypt, of the library of that name).

A password is hashed by the process that is told it, and checked by a member, on a thread of its own: each takes about a
twentieth of a second of a processor, on purpose.
"""

from __future__ import annotations

import bcrypt

from ..limits import MAX_PASSWORD_BYTES, PASSWORD_HASH_ROUNDS


def hash_password(password: str) -> bytes:
    """The hash to keep of a password. bcrypt looks at the first 72 bytes only."""
    return bcrypt.hashpw(_bytes(password), bcrypt.gensalt(PASSWORD_HASH_ROUNDS))


def password_matches(password: str, hash: bytes) -> bool:
    """Whether a password is the one that a hash was made of."""
    try:
        return bcrypt.checkpw(_bytes(password), hash)
    except ValueError:  # what was given as a hash is none
        return False


def _bytes(password: str) -> bytes:
    return password.encode(errors="surrogatepass")[:MAX_PASSWORD_BYTES]
