"""What a member holds, as of one index of its log.

It is taken in the member's own loop, between two calls of ``apply``. Another thread would open one iterator after the
other while entries are applied, and might find a key of one index with the history of an earlier one: it would look
damaged, and is not.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import ray

from raykeeper.actors.member.events import BackgroundDone
from raykeeper.store.state.content_hash import ContentHasher

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # members know nothing of the tests


def content(member: Any) -> tuple[int, str]:
    """A member's applied index, and the hash of its content as of it."""
    return ray.get(member.actor.__ray_call__.remote(_content), timeout=300)  # type: ignore[no-any-return]


def _content(host: Any) -> tuple[int, str]:
    loop, taken, ready = host.member._loop, [], threading.Event()

    def take() -> None:
        taken.append(ContentHasher(loop.replica.state))
        ready.set()

    loop.inbox.put_own(BackgroundDone(take))
    if not ready.wait(60):
        raise TimeoutError("the member's loop stands still")
    return taken[0].index, taken[0].digest()
