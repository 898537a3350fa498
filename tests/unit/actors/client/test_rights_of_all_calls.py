"""The right of every public call is checked: those of handles and of all that they make, every frame, every remote
procedure of etcd's, every method of a member's actor.

The tables that are walked through are held whole by other tests: a call without a row fails there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from lab.client import surface
from lab.client.surface import ROWS, chosen
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy, lab_proxy
from raykeeper import AuthFailed, Client, KeeperError, PermissionDenied, connect
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.watch import Watch
from raykeeper.actors.member.member_actor import MemberHost
from raykeeper.actors.recipes.change_stream import ChangeStream
from raykeeper.actors.recipes.sync_async import run_sync
from raykeeper.raft.messages import ChangeKind, MemberChange
from raykeeper.schema import frames
from raykeeper.schema import operator_frames as operators
from raykeeper.schema.answers import Failed, Reason
from raykeeper.schema.call_rights import CONTROL_RULES, RULES, Rule
from raykeeper.schema.commands import ClientWrite, ClientWrites, HashContent
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.operations import Put, Range

FREE_TO_ANY_USER = {
    ("Client", "compact"),
    ("Client", "lease"),
    ("Client", "leases"),
    ("Client", "on_connection"),
    ("Client", "revision"),
    ("Client", "time_to_live"),  # of a lease without keys
}
"""Calls that need a user, and no permission (``call_rights.py``)."""
ENDS = {"__exit__", "cancel", "close", "deregister", "leave", "nack", "release", "resign"}
"""Calls that give up what a user has: nothing is raised. What may not be ended is left to its TTL."""
NEEDS_NOTHING = {
    ("Lease", "keys"),
    ("Lease", "revoke"),  # of a lease without keys, as in the row
    ("Cached", "__len__"),
}
ACKNOWLEDGES = ("Claim", "__exit__")
OF_ROOT = {("Client", "in_use")}
"""It lists all names."""
WAITS_FOR_OTHERS = {(kind, "__enter__") for kind in ("Lock", "Semaphore", "Election", "RWLock")}
"""... for as long as it takes: whose turn it is, the row holds it."""
SENDS_NOTHING = {("Client", "on_connection")}


class Shop:
    """A member with users: root; ann, who may do everything under team/; and nobody."""

    def __init__(self, member: OneMember) -> None:
        self.member = member
        self.nobody = connect(member.name, timeout=PATIENCE)
        users = self.nobody.users
        for name in ("root", "ann"):
            users.add(name, name)
        users.grant_role("root", "root")
        users.add_role("team")
        users.grant_permission("team", "readwrite", prefix="team/")
        users.grant_role("ann", "team")
        users.enable()
        self.root, self.ann = (
            connect(member.name, user=name, password=name, timeout=PATIENCE) for name in ("root", "ann")
        )
        self.ann.put("team/k", "v")

    def token(self, user: str) -> bytes:
        login = hub_pool._hubs[self.member.name, self.member.cluster, (user, "")].hub.login
        assert login is not None
        return login.current_token()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with one_member() as member:
        yield Shop(member)
        hub_pool._close_all()


def outcome(call: Callable[[], Any], seconds: float = PATIENCE) -> object:
    """What becomes of a call; a watch that is refused says so when it is asked for an event."""
    try:
        made = call()
        if isinstance(made, (Watch, ChangeStream)):
            made.next(seconds)
        return made
    except (KeeperError, StopIteration) as error:
        return error


def prepared(kv: Client, row: tuple[str, str]) -> Callable[[], Any]:
    call: Callable[[], Any] = run_sync(ROWS[row](kv))
    return call


@pytest.mark.parametrize("row", [row for row in chosen(False) if row not in WAITS_FOR_OTHERS], ids=".".join)
def test_a_user_may_do_everything_under_its_names(shop: Shop, row: tuple[str, str]) -> None:
    found = outcome(prepared(shop.ann.namespace(f"team/{'.'.join(row)}/"), row), 0)
    assert isinstance(found, (PermissionDenied, AuthFailed)) == (row in OF_ROOT), found


@pytest.mark.parametrize("row", chosen(False), ids=".".join)
def test_nothing_once_the_right_has_ended(shop: Shop, row: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "TIMEOUT", PATIENCE)
    call = prepared(shop.ann.namespace(f"team/ends {'.'.join(row)}/"), row)
    shop.root.users.revoke_role("ann", "team")
    try:
        found = outcome(call)
    finally:
        shop.root.users.grant_role("ann", "team")
    free = row in FREE_TO_ANY_USER | NEEDS_NOTHING or (row[1] in ENDS and row != ACKNOWLEDGES)
    assert isinstance(found, PermissionDenied) == (not free), found


@pytest.mark.parametrize("row", chosen(False, surface.PLAIN), ids=".".join)
def test_nothing_without_a_user(shop: Shop, row: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "TIMEOUT", PATIENCE)
    found = outcome(prepared(shop.nobody.namespace("team/"), row))
    assert isinstance(found, AuthFailed) == (row not in SENDS_NOTHING), found


def test_what_a_user_may_not_end_is_there_until_its_ttl(shop: Shop) -> None:
    kv = shop.ann.namespace("team/left/")
    held = kv.lock("l", ttl=surface.TTL)
    assert held.acquire()
    lease = kv.lease(surface.TTL)
    kv.put("k", "v", lease=lease)
    shop.root.users.revoke_role("ann", "team")
    try:
        held.release()
        with pytest.raises(PermissionDenied):
            lease.revoke()
        # Not later: what ends the lock's lease in the background may be sent once the right is back.
        assert shop.root.get("team/left/k") is not None
        assert list(shop.root.reserved("lock").range(prefix="team%2Fleft%2Fl/p/"))
    finally:
        shop.root.users.grant_role("ann", "team")


# --- frames ----------------------------------------------------------------------------------------------------------

OUTSIDE = KeyRange(b"uother")
EXAMPLES: dict[type, Callable[[int], Any]] = {
    frames.Writes: lambda c: frames.Writes(c, 60.0, ClientWrites(1, 1, (ClientWrite(1, Put(b"uother", b"v")),))),
    frames.Reads: lambda c: frames.Reads(c, 60.0, False, (frames.Read(Range(OUTSIDE)),)),
    frames.LoneRead: lambda c: frames.LoneRead(c, 60.0, frames.Read(Range(OUTSIDE))),
    frames.AskTerm: lambda c: frames.AskTerm(c, 60.0),
    frames.Open: lambda c: frames.Open(c, 60.0, b"nonce"),
    frames.KeepAlive: lambda c: frames.KeepAlive(c, 60.0, 1),
    frames.Close: lambda c: frames.Close(c, 60.0, 1),
    operators.AskStatus: lambda c: operators.AskStatus(),
    frames.KeepLeases: lambda c: frames.KeepLeases(c, 60.0, (1,)),
    frames.AskLeases: lambda c: frames.AskLeases(c, 60.0, (1,)),
    frames.WatchPoll: lambda c: frames.WatchPoll(c, 60.0, b"s", True, (frames.CreateWatch(1, OUTSIDE, 0),)),
    operators.Administer: lambda c: operators.Administer(c, 60.0, HashContent()),
    operators.ChangeMembership: lambda c: operators.ChangeMembership(c, 60.0, (MemberChange(ChangeKind.REMOVE, 9),)),
    operators.HashKeys: lambda c: operators.HashKeys(c, 60.0, 0),
    operators.AwaitCompaction: lambda c: operators.AwaitCompaction(c, 60.0, 0),
    operators.Defragment: lambda c: operators.Defragment(c, 60.0),
    frames.Login: lambda c: frames.Login(c, 60.0, "ann", "ann"),
    operators.BeginBackup: lambda c: operators.BeginBackup(c, 60.0, 0.0),
    operators.ReadBackup: lambda c: operators.ReadBackup(c, 60.0, "none", 0, 1),
    operators.EndBackup: lambda c: operators.EndBackup(c, 60.0, "none"),
    operators.AskClients: lambda c: operators.AskClients(c, 60.0),
    frames.MonitorProcess: lambda c: frames.MonitorProcess(c, 60.0, 1),
    operators.AskEvents: lambda c: operators.AskEvents(c, 60.0),
    operators.AskFigures: lambda c: operators.AskFigures(),
    operators.AskLoad: lambda c: operators.AskLoad(c, 60.0),
}
"""A frame of each kind, of this cluster; keys are outside of what ann may touch."""
KINDS = get_args(frames.BareRequest)
DENIED = {frames.Refusal.NO_USER, frames.Refusal.BAD_TOKEN, frames.Refusal.DENIED}


def refusal(reply: object) -> frames.Refusal | None:
    return reply.refusal if isinstance(reply, frames.Refused) and reply.refusal in DENIED else None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_frame_is_checked(shop: Shop, kind: type) -> None:
    rule, request = RULES[kind], EXAMPLES[kind](shop.member.cluster)
    is_open, is_administration = rule is Rule.OPEN, rule is Rule.ADMINISTRATION

    def by(token: bytes) -> frames.Refusal | None:
        return refusal(shop.member.ask(frames.AsUser(token, request)))

    assert by(b"") == refusal(shop.member.ask(request)) == (None if is_open else frames.Refusal.NO_USER)
    assert by(b"no token") == (None if is_open else frames.Refusal.BAD_TOKEN)
    assert by(shop.token("ann")) == (frames.Refusal.DENIED if is_administration else None)
    if not is_administration:  # what root and the cluster itself may really do is tested where it is done
        assert by(shop.member.loop.handler.own_token()) == (None if is_open else frames.Refusal.DENIED)


def test_keys_are_checked_frame_by_frame(shop: Shop) -> None:
    cluster, token = shop.member.cluster, shop.token("ann")
    read = shop.member.ask(frames.AsUser(token, EXAMPLES[frames.Reads](cluster)))
    assert [answer.reason for answer in read.answers if isinstance(answer, Failed)] == [Reason.DENIED]
    opened = shop.member.ask(frames.AsUser(token, frames.Open(cluster, 60.0, b"another nonce")))
    write = frames.Writes(cluster, 60.0, ClientWrites(opened.session, 1, (ClientWrite(1, Put(b"uother", b"v")),)))
    written = shop.member.ask(frames.AsUser(token, write))
    assert [answer.reason for answer in written.answers if isinstance(answer, Failed)] == [Reason.DENIED]
    assert shop.root.get("other") is None


# --- actors ----------------------------------------------------------------------------------------------------------


def test_every_method_of_a_member_has_a_rule() -> None:
    """Ray decides who may call an actor, and does not say who it was."""
    methods = {name for name, method in vars(MemberHost).items() if callable(method) and not name.startswith("_")}
    assert set(CONTROL_RULES) == methods


# --- etcd's procedures -----------------------------------------------------------------------------------------------

FREE_TO_ANYONE = {
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/grpc.health.v1.Health/Check",
}
"""As in etcd; so are log-ins, and watches of the health."""
LOGIN = "/etcdserverpb.Auth/Authenticate"


@pytest.fixture(scope="module")
def proxy() -> Iterator[LabProxy]:
    with lab_proxy() as made:
        users = made.kv.users
        users.add("root", "root")
        users.grant_role("root", "root")
        users.enable()
        yield made
        hub_pool._close_all()


def test_no_procedure_of_etcds_without_a_user(proxy: LabProxy) -> None:
    for metadata in ({}, {"token": "made up"}):
        answered = {
            path for path in proxy.services.unary if isinstance(proxy.call(path, b"", metadata=metadata), bytes)
        }
        assert answered - {LOGIN} == (FREE_TO_ANYONE if not metadata else set())
