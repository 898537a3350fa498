"""As whom the processes of a campaign come: as nobody, or as root where the cluster needs users (mix ``rights``)."""

from __future__ import annotations

import os

import raykeeper
from raykeeper import Client

ROOT = "root"
PASSWORD = "chaos"
VARIABLE = "RAYKEEPER_CHAOS_PASSWORD"
"""Environment of a campaign whose cluster needs users; the spec names it, too."""


def connect(cluster: str, *, timeout: float) -> Client:
    """A handle that may do everything."""
    if VARIABLE not in os.environ:
        return raykeeper.connect(cluster, timeout=timeout)
    return raykeeper.connect(cluster, user=ROOT, password=os.environ[VARIABLE], timeout=timeout)


def need_users(cluster: str) -> None:
    """From now on, every call needs a user."""
    with raykeeper.connect(cluster, timeout=60) as kv:
        kv.users.add(ROOT, PASSWORD)
        kv.users.grant_role(ROOT, ROOT)
        kv.users.enable()
