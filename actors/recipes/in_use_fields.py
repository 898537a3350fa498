"""What is in use, as fields by name: what the shell prints as JSON and the console shows."""

from __future__ import annotations

from typing import Any

from ..client.client_info import client_fields
from .in_use import InUse, Participant, RecipeKind

LISTS: dict[str, tuple[RecipeKind, ...]] = {
    "locks": ("lock", "rwlock"),
    "semaphores": ("semaphore",),
    "elections": ("election",),
    "queues": ("queue",),
    "barriers": ("barrier",),
    "services": ("registry",),
}
"""The lists that there are, each with the kinds that it shows."""


def in_use_fields(found: InUse) -> dict[str, Any]:
    """What is in use under one name."""
    return {
        "kind": found.kind,
        "name": found.name,
        "holders": [participant_fields(each) for each in found.holders],
        "waiters": [participant_fields(each) for each in found.waiters],
        "size": found.size,
        "more": found.more,
        "stuck": found.stuck,
    }


def participant_fields(each: Participant) -> dict[str, Any]:
    """One that holds or waits. A text is empty, and a number 0, where it is not known."""
    owner = each.owner
    who = {} if owner is None else client_fields(owner.client)
    return {
        "token": each.token,
        "what": each.what,
        "weight": each.weight,
        **{name: who.get(name, "") for name in ("host", "node", "address", "actor", "job", "program", "user")},
        "pid": who.get("pid", 0),
        "task": "" if owner is None else owner.task,
        "since": 0.0 if owner is None else owner.since,
        "session": who.get("session", 0),
        "session_open": who.get("open", False),
        "lease": each.lease,
        "ttl": each.ttl,
        "remaining": each.remaining,
        "stuck": each.stuck,
    }
