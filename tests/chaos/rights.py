"""A user whose rights come and go, while it works: what is refused, and what is not, by the order of what was answered.

``grant`` and ``revoke``: root gives the user's role all rights to its keys, and takes them away. ``user_put`` and
``user_get``: the user does something with one of them; ``denied`` says whether it was refused. A change of unknown
outcome may happen at any time from then on, so the user is left alone, and another takes its place. The judge is
``promises.check_rights``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import raykeeper
from raykeeper import Client
from raykeeper.errors import PermissionDenied

from .work import Thread


@dataclass(frozen=True)
class Person:
    """A user with its keys.

    Attributes:
        name: of the user, and of its role.
        kv: its handle.
    """

    name: str
    kv: Client

    @property
    def prefix(self) -> str:
        return f"u/{self.name}/"


class RightsGiver(Thread):
    """Root: adds a user, and then gives and takes rights."""

    _has_rights = False

    def act(self) -> None:
        person = self.worker.person
        if person is None:
            self._add()
            return
        prefix, users = person.prefix, self.kv.users

        def call() -> dict[str, Any]:
            if self._has_rights:
                users.revoke_permission(person.name, prefix=prefix, timeout=8.0)
            else:
                users.grant_permission(person.name, "readwrite", prefix=prefix, timeout=8.0)
            return {}

        if self.do("revoke" if self._has_rights else "grant", call, user=person.name) is None:
            self.worker.person = None
        else:
            self._has_rights = not self._has_rights
        self.worker.stopping.wait(self.rng.uniform(0.0, 2.0))

    def _add(self) -> None:
        name = self.value().replace(":", "-")
        added: list[Person] = []

        def call() -> dict[str, Any]:
            users = self.kv.users
            users.add(name, name, timeout=8.0)
            users.add_role(name, timeout=8.0)
            users.grant_role(name, name, timeout=8.0)
            added.append(Person(name, raykeeper.connect(self.worker.cluster, user=name, password=name, timeout=20)))
            return {}

        if self.do("add_user", call, user=name) is not None:
            self._has_rights = False
            (self.worker.person,) = added


class RightsUser(Thread):
    """The user of the process: puts and gets."""

    def act(self) -> None:
        person = self.worker.person
        if person is None:
            return
        key, writes = f"{person.prefix}{self.rng.randrange(3)}", self.rng.random() < 0.5

        def call() -> dict[str, Any]:
            try:
                if writes:
                    person.kv.put(key, self.value(), timeout=4.0)
                else:
                    person.kv.get(key, timeout=4.0)
            except PermissionDenied:
                return {"denied": True}
            return {"denied": False}

        self.do("user_put" if writes else "user_get", call, user=person.name)
