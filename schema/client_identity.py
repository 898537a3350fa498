"""Who a client is: the process that opened a session, as it says of itself.

It is replicated with the session, so that any member can tell who holds a lock, and a process on the same machine can
tell whether that process still lives: the kernel gives an id again, but not with the same start, and not under the same
boot. What it says is for people and for that comparison; it gives no right to anything.
"""

from __future__ import annotations

import msgspec

from ..limits import MAX_IDENTITY_LETTERS
from .operations import Number, Span


class ClientIdentity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A client process. A text is empty, and a number 0, where it is not known.

    Each text has ``MAX_IDENTITY_LETTERS`` at most (:func:`cut`).
    """

    host: str = ""
    """The name of its host."""
    pid: Number = 0
    """Its process id, as it sees it itself: in a container that is not the host's."""
    started: Number = 0
    """When it was started, in clock ticks since the host's boot (field 22 of ``/proc/<pid>/stat``): no other process of
    that id, in that boot, has the same."""
    boot: str = ""
    """The id of its host's boot (``/proc/sys/kernel/random/boot_id``)."""
    pid_namespace: Number = 0
    """The inode of the namespace that its process id is of (``/proc/self/ns/pid``)."""
    node: str = ""
    """The id of the Ray node that it runs on, in hexadecimal."""
    address: str = ""
    """The address of that node."""
    job: str = ""
    """The id of its Ray job."""
    actor: str = ""
    """If it is an actor: its name; without one, its class and the beginning of its id."""
    actor_id: str = ""
    since: Span = 0.0
    """When it opened the hub that the session is of: seconds since 1970, by its own clock."""
    program: str = ""
    """What runs in it: the script, or Ray's title of the process."""


def cut(text: str) -> str:
    """A text as an identity may hold it."""
    return text.encode(errors="replace").decode()[:MAX_IDENTITY_LETTERS]


def is_bounded(identity: ClientIdentity) -> bool:
    """Whether no text of an identity is longer than it may be."""
    texts = (getattr(identity, name) for name in identity.__struct_fields__)
    return all(len(text) <= MAX_IDENTITY_LETTERS for text in texts if isinstance(text, str))
