"""A proxy that was started as a user: no client passes for it."""

from __future__ import annotations

from lab.onemember import one_member
from raykeeper import connect
from raykeeper.actors.client import hub_pool


def test_a_handle_without_its_user() -> None:
    with one_member() as member:
        anyone = connect(member.name)
        anyone.users.add("root", "r")
        anyone.users.grant_role("root", "root")
        anyone.users.enable()
        root = connect(member.name, user="root", password="r").namespace("a/")
        bare = root._without_user()
        assert (root.user, bare.user, bare.prefix) == ("root", None, root.prefix)
        assert bare._credentials is None
        assert bare._without_user() is bare
        hub_pool._close_all()
