"""Handles with a user, over one real member: who may do what, and what becomes of tokens, watches and recipes."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread, one_member
from lab.patience import PATIENCE
from raykeeper import AuthFailed, Client, InvalidArgument, LeaseNotFound, Op, PermissionDenied, connect
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.aio_users import AsyncUsers
from raykeeper.actors.client.login import Credentials
from raykeeper.actors.client.users import Users
from raykeeper.schema.commands import HashContent
from raykeeper.schema.frames import AsUser, LoggedIn, Login, Refusal, Refused, Written
from raykeeper.schema.operator_frames import Administer


class Shop:
    """One member with users: root; ann, who may do everything under team/; bob, who may read it."""

    def __init__(self, member: OneMember) -> None:
        self.member = member
        self.anyone = connect(member.name, timeout=PATIENCE)
        users = self.anyone.users
        for name in ("root", "ann", "bob"):
            users.add(name, f"{name}'s")
        users.grant_role("root", "root")
        users.add_role("team")
        users.add_role("reader")
        users.grant_permission("team", "readwrite", prefix="team/")
        users.grant_permission("reader", "read", prefix="team/")
        users.grant_role("ann", "team")
        users.grant_role("bob", "reader")
        users.enable()
        self.root, self.ann, self.bob = (self.connect(name) for name in ("root", "ann", "bob"))

    def connect(self, name: str) -> Client:
        return connect(self.member.name, user=name, password=f"{name}'s", timeout=PATIENCE)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with one_member() as member:
        shop = Shop(member)
        yield shop
        hub_pool._close_all()


def eventually(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_who_may_do_what(shop: Shop) -> None:
    with pytest.raises(AuthFailed):
        shop.anyone.get("team/a")
    with pytest.raises(AuthFailed):
        shop.anyone.put("team/a", "1")
    shop.ann.put("team/a", "1")
    assert shop.bob.get("team/a").value == b"1"  # type: ignore[union-attr]
    with pytest.raises(PermissionDenied) as denied:
        shop.bob.put("team/a", "2")
    assert denied.value.applied is not True  # it is unknown if an answer was late, and the call was sent again
    for call in (lambda: shop.ann.get("other"), lambda: shop.ann.range(prefix=""), lambda: shop.ann.delete("other")):
        with pytest.raises(PermissionDenied):
            call()
    assert len(shop.ann.range(prefix="team/").items) == 1
    shop.root.put("other", "3")
    assert shop.root.get("other").value == b"3"  # type: ignore[union-attr]


def test_a_wrong_password_gets_nothing(shop: Shop) -> None:
    with pytest.raises(AuthFailed):
        connect(shop.member.name, user="ann", password="wrong")
    with pytest.raises(AuthFailed):
        connect(shop.member.name, user="nobody", password="ann's")
    with pytest.raises(AuthFailed):
        connect(shop.member.name, user="root", password="")
    for wrong in ({"user": "ann"}, {"password": "x"}, {"user": "a", "password": "x", "password_file": "y"}):
        with pytest.raises(InvalidArgument):
            connect(shop.member.name, **wrong)  # type: ignore[arg-type]


def test_a_password_can_lie_in_a_file(shop: Shop, tmp_path: Any) -> None:
    file = tmp_path / "password"
    file.write_text("ann's\n")
    kv = connect(shop.member.name, user="ann", password_file=str(file))
    kv.put("team/a", "1")
    again = pickle.loads(pickle.dumps(kv))
    assert again.user == "ann"
    with pytest.raises(InvalidArgument):
        connect(shop.member.name, user="bob", password_file=str(tmp_path / "none"))


def test_a_pickled_handle_takes_no_password_along(shop: Shop) -> None:
    pickled = pickle.dumps(shop.ann)
    assert b"ann's" not in pickled
    hub_pool._close_all()  # as in another process
    again = pickle.loads(pickled)
    again.put("team/a", "1")
    assert again.aio.user == again.namespace("x").user == "ann"


def test_a_right_ends_while_it_is_used(shop: Shop) -> None:
    shop.ann.put("team/a", "1")
    shop.root.users.revoke_role("ann", "team")
    with pytest.raises(PermissionDenied):
        shop.ann.put("team/a", "2")
    with pytest.raises(PermissionDenied):
        shop.ann.get("team/a")
    shop.root.users.grant_role("ann", "team")
    shop.ann.put("team/a", "3")


@pytest.mark.parametrize("watched", ["team/a", "team/"])
def test_a_watch_ends_with_the_right(shop: Shop, watched: str) -> None:
    with shop.ann.watch(watched) as watch:
        shop.ann.put(watched, "1")
        assert next(watch).kv.value == b"1"
        shop.root.users.revoke_role("ann", "team")
        shop.root.put(watched, "2")
        with pytest.raises(PermissionDenied):
            next(watch)
    with pytest.raises(PermissionDenied), shop.ann.watch(watched) as watch:
        next(watch)


def test_a_local_copy_ends_with_the_right(shop: Shop) -> None:
    shop.ann.put("team/a", "1")
    with shop.bob.cached("team/") as copy:
        assert copy.get("team/a").value == b"1"  # type: ignore[union-attr]
        shop.root.users.revoke_role("bob", "reader")

        def refused() -> bool:
            try:
                copy.get("team/a")
            except PermissionDenied:
                return True
            return False

        shop.root.put("team/a", "2")
        eventually(refused)


def test_a_deleted_user_ends(shop: Shop) -> None:
    shop.bob.get("team/a")
    shop.root.users.delete("bob")
    with pytest.raises(AuthFailed):
        shop.bob.get("team/a")
    with pytest.raises(AuthFailed):
        shop.connect("bob")


def test_a_changed_password_is_needed(shop: Shop) -> None:
    shop.ann.put("team/a", "1")
    shop.root.users.set_password("ann", "new")
    with pytest.raises(AuthFailed) as failed:
        shop.ann.put("team/a", "2")
    assert failed.value.applied is not True
    connect(shop.member.name, user="ann", password="new").put("team/a", "3")
    shop.ann.put("team/a", "4")  # the handles of a user share what proves it


def test_a_token_that_ended_is_renewed(shop: Shop) -> None:
    """Users were disabled and enabled again: all tokens have ended, and no call notices."""
    shop.ann.put("team/a", "1")
    shop.root.users.disable()
    shop.anyone.put("team/a", "2")
    shop.ann.put("team/a", "3")
    shop.root.users.enable()
    shop.ann.put("team/a", "4")
    assert shop.bob.get("team/a").value == b"4"  # type: ignore[union-attr]
    with pytest.raises(AuthFailed):
        shop.anyone.put("team/a", "5")


def test_a_handle_without_a_password_ends_with_its_token(shop: Shop) -> None:
    token = hub_pool._hubs[shop.member.name, shop.member.cluster, ("ann", "")].hub.login.token  # type: ignore[union-attr]
    shop.root.users.set_password("ann", "new")
    hub_pool._close_all()
    late = Client(shop.member.name, shop.member.cluster, credentials=Credentials("ann", token=token))
    with pytest.raises(AuthFailed):
        late.put("team/a", "1")


def test_leases(shop: Shop) -> None:
    lease = shop.root.lease(30)
    shop.root.put("other", "1", lease=lease)
    with pytest.raises(PermissionDenied):
        shop.ann.put("team/a", "1", lease=lease.id)
    own = shop.ann.lease(30)
    shop.ann.put("team/a", "1", lease=own)
    own.revoke()
    assert shop.ann.get("team/a") is None
    lease.revoke()
    with pytest.raises(LeaseNotFound):
        shop.root.put("other", "1", lease=lease.id)


RECIPES: dict[str, Callable[[Client, str], Any]] = {
    "lock": lambda kv, name: kv.lock(name).acquire(),
    "rwlock": lambda kv, name: kv.rwlock(name).write().acquire(),
    "semaphore": lambda kv, name: kv.semaphore(name, 2).acquire(),
    "semaphore with weights": lambda kv, name: kv.semaphore(name, 4, weight=3).acquire(),
    "election": lambda kv, name: kv.election(name).campaign("me"),
    "barrier": lambda kv, name: kv.barrier(name, 1).wait(),
    "latch": lambda kv, name: kv.latch(name, 1).count_down(),
    "queue": lambda kv, name: kv.queue(name).put(b"item"),
    "claim": lambda kv, name: [kv.queue(name).put(b"item"), kv.queue(name).claim().ack()],
    "counter": lambda kv, name: kv.counter(name).add(1),
    "registry": lambda kv, name: [kv.registry(name).register("s", "a:1"), kv.registry(name).lookup("s")],
    "partitioner": lambda kv, name: kv.partitioner(name, 2).join(),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_work_under_ones_names_and_nowhere_else(shop: Shop, recipe: str) -> None:
    kv = shop.ann.with_timeout(5.0)
    RECIPES[recipe](kv, "team/x")
    RECIPES[recipe](kv.namespace("team/"), "y")
    with pytest.raises(PermissionDenied):
        RECIPES[recipe](kv, "other")
    with pytest.raises(PermissionDenied):
        RECIPES[recipe](shop.bob.with_timeout(5.0), "team/x")


def test_administration_needs_root_or_the_cluster_itself(shop: Shop) -> None:
    request = Administer(shop.member.cluster, 5.0, HashContent())
    login = hub_pool._hubs[shop.member.name, shop.member.cluster, ("ann", "")].hub.login
    assert login is not None
    assert shop.member.ask(request) == Refused(Refusal.NO_USER, 0, shop.member.ask(request).message)
    assert shop.member.ask(AsUser(login.token, request)).refusal is Refusal.DENIED
    assert shop.member.ask(AsUser(login.token[:-4] + b"AAA=", request)).refusal is Refusal.BAD_TOKEN
    own = shop.member.loop.handler.own_token()
    assert isinstance(shop.member.ask(AsUser(own, request)), Written)


def test_only_the_cluster_itself_vouches_for_a_user(shop: Shop) -> None:
    users, cluster = shop.member.loop.handler._users, shop.member.cluster
    own = users.own_token()
    anns = users.log_in(Login(cluster, 1.0, "ann", token=own))
    assert isinstance(anns, LoggedIn)
    assert anns.user == "ann"
    for login, refusal in (
        (Login(cluster, 1.0, "root", token=anns.token), Refusal.DENIED),
        (Login(cluster, 1.0, "nobody", token=own), Refusal.WRONG_PASSWORD),
        (Login(cluster, 1.0, "root", token=b"nonsense"), Refusal.BAD_TOKEN),
    ):
        refused = users.log_in(login)
        assert isinstance(refused, Refused)
        assert refused.refusal is refusal


def test_what_users_may_ask(shop: Shop) -> None:
    assert shop.ann.users.roles_of("ann") == ("team",)
    ((access, key, end),) = shop.ann.users.permissions("team")
    assert (access, key, end) == ("readwrite", b"team/", b"team0")
    for call in (lambda: shop.ann.users.roles_of("bob"), lambda: shop.ann.users.list(), shop.ann.users.enabled):
        with pytest.raises(PermissionDenied):
            call()
    assert shop.root.users.list() == ["ann", "bob", "root"]
    assert shop.root.users.roles() == ("reader", "team")
    assert shop.root.users.enabled()


def test_users_are_administered_from_asyncio_too(shop: Shop) -> None:
    for name, method in inspect.getmembers(Users, inspect.isfunction):
        if not name.startswith("_"):
            twin = getattr(AsyncUsers, name)
            assert inspect.signature(method) == inspect.signature(twin), name
            assert inspect.iscoroutinefunction(twin), name

    async def main() -> None:
        users = shop.root.aio.users
        await users.add("eve", "eve's")
        await users.add("robot", None)
        await users.set_password("eve", "new")
        await users.add_role("other")
        await users.grant_permission("other", "read", "a", "c")
        await users.grant_permission("other", "write", prefix="x")
        assert await users.permissions("other") == (("read", b"a", b"c"), ("write", b"x", b"y"))
        await users.revoke_permission("other", prefix="x")
        await users.grant_role("eve", "other")
        assert await users.roles_of("eve") == ("other",)
        await users.revoke_role("eve", "other")
        assert await users.list() == ["ann", "bob", "eve", "robot", "root"]
        assert await users.roles() == ("other", "reader", "team")
        await users.delete("robot")
        await users.delete_role("other")
        before = await users.auth_revision()
        for wrong in (users.set_password("eve", None), users.add("x" * 10, 7), users.delete("nobody")):  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument):
                await wrong
        with pytest.raises(PermissionDenied):
            await shop.ann.aio.users.list()
        assert await users.auth_revision() == before
        assert await users.enabled()
        await users.disable()
        await shop.anyone.aio.put("other", "1")
        await shop.anyone.aio.users.enable()

    asyncio.run(main())
    assert connect(shop.member.name, user="eve", password="new").user == "eve"
    with pytest.raises(AuthFailed):
        shop.anyone.get("other")


def test_the_audit_log_says_who_did_what(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.audit")
    with pytest.raises(PermissionDenied):
        shop.bob.put("team/a", "secret")
    with pytest.raises(PermissionDenied):
        shop.bob.get("other")
    with pytest.raises(AuthFailed):
        connect(shop.member.name, user="ann", password="guess")
    shop.root.users.add("eve", "eve's")
    lines = [record.getMessage() for record in caplog.records if record.name == "raykeeper.audit"]
    assert [line for line in lines if "denied: user='bob'" in line and "Put b'team/a'" in line and "DENIED" in line]
    assert [line for line in lines if "denied: user='bob'" in line and "b'other'" in line]
    assert [line for line in lines if "denied: user='ann'" in line and "WRONG_PASSWORD" in line]
    assert [line for line in lines if "change: user='root'" in line and "UserAdd name='eve' outcome=done" in line]
    assert [line for line in lines if f"from=an actor call that says it is process {os.getpid()} on " in line]
    assert not [line for line in lines if "secret" in line or "guess" in line or "eve's" in line]


def test_the_audit_log_has_each_denied_call(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever way it was refused: where it arrived, at a control call of an actor, in a transaction and beside calls
    that were allowed."""
    caplog.set_level(logging.INFO, "raykeeper.audit")

    def has(*parts: str) -> bool:
        lines = [record.getMessage() for record in caplog.records if record.name == "raykeeper.audit"]
        return any(all(part in line for part in parts) for line in lines)

    with pytest.raises(AuthFailed):
        shop.anyone.put("team/a", "1")
    assert has("denied: user=''", "from=an actor call", "what=Writes", "outcome=NO_USER")
    with pytest.raises(AuthFailed):
        shop.anyone.get("team/a")
    assert has("denied: user=''", "Reads", "outcome=NO_USER") or has("denied: user=''", "LoneRead", "outcome=NO_USER")
    handler = shop.member.loop.handler
    with pytest.raises(AuthFailed):
        handler.check_root(b"nonsense", "begin_backup")
    assert has("denied: user='?'", "from=an actor call", "what=begin_backup", "outcome=BAD_TOKEN")
    with pytest.raises(AuthFailed):
        handler.check_root(b"", "begin_backup")
    assert has("denied: user=''", "what=begin_backup", "outcome=NO_USER")
    with pytest.raises(PermissionDenied):
        shop.bob.txn(success=[Op.put("team/b", "1")])
    assert has("denied: user='bob'", "what=Txn", "outcome=DENIED")
    with pytest.raises(PermissionDenied):
        shop.bob.users.add("eve", "eve's")
    assert has("denied: user='bob'", "what=UserAdd name='eve'", "outcome=DENIED")
    with pytest.raises(PermissionDenied):
        shop.ann.range(prefix="x")
    assert has("denied: user='ann'", "what=Range of b'x'..b'y'", "outcome=DENIED")


def test_a_flood_of_denials_is_not_a_flood_of_lines(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.audit")
    for _ in range(200):
        with pytest.raises(PermissionDenied):
            shop.bob.put("team/a", "1")
    assert 0 < sum("denied" in record.getMessage() for record in caplog.records) < 100


def test_many_processes_log_in_at_once(shop: Shop) -> None:
    """More than are checked at a time: the others try again."""
    hub_pool._close_all()
    logins = [in_thread(lambda: shop.connect("ann").put("team/a", "1")) for _ in range(6)]
    for login in logins:
        login.result(PATIENCE)
