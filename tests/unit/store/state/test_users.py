"""Users and roles in the state machine: what may be done by whom, from which entry on, and what survives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.limits import TOKEN_TTL_S
from raykeeper.schema.answers import AuthState, Done, Failed, Names, Permissions, Reason
from raykeeper.schema.auth_operations import (
    Access,
    AskAuth,
    AskRole,
    AskRoles,
    AskUser,
    AskUsers,
    AuthDisable,
    AuthEnable,
    AuthProblem,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
    UserSetPassword,
)
from raykeeper.schema.commands import (
    ByUser,
    Caller,
    ClientWrite,
    ClientWrites,
    CloseSession,
    Configure,
    HashContent,
    OpenSession,
    PassTime,
    RequestId,
)
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.operations import (
    Compact,
    Delete,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Relation,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.state.auth_table import AuthTable, Rights, RoleRecord, UserRecord
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

KEY = b"k" * 32


class UserHand:
    """Feeds the commands of one user."""

    def __init__(self, hand: Hand, name: str, until: float = TOKEN_TTL_S) -> None:
        self.hand = hand
        self.sequence = 0
        users = hand.state.users
        self.caller = Caller(name, users.users[name].since if name else users.head.since, until)
        self.session = 0

    def open(self) -> Any:
        opened: Any = self.hand.apply(ByUser(self.caller, OpenSession(self.caller.user.encode(), 60.0)))
        self.session = getattr(opened, "session", 0)
        return opened

    def do(self, operation: Operation, request_id: RequestId | None = None) -> Any:
        if not self.session:
            self.open()
        self.sequence += 1
        writes = ClientWrites(self.session, self.sequence, (ClientWrite(self.sequence, operation, request_id),))
        return self.hand.apply(ByUser(self.caller, writes))


class Shop:
    """A state with some users: root; ann, who may do everything under team/; bob, who may read it."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.state = State.create(self.disk, "state", FIRST)
        self.hand = Hand(self.state)
        for operation in (
            UserAdd("root", b"h"),
            UserGrantRole("root", "root"),
            UserAdd("ann", b"h"),
            UserAdd("bob", b"h"),
            RoleAdd("team"),
            RoleAdd("reader"),
            RoleGrantPermission("team", Permission(Access.READWRITE, KeyRange(b"team/", b"team0"))),
            RoleGrantPermission("reader", Permission(Access.READ, KeyRange(b"team/", b"team0"))),
            UserGrantRole("ann", "team"),
            UserGrantRole("bob", "reader"),
            AuthEnable(KEY),
        ):
            answer = self.hand.do(operation)
            assert isinstance(answer, Done), (operation, answer)
        self.root, self.ann, self.bob = (UserHand(self.hand, name) for name in ("root", "ann", "bob"))


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.state.close()


def reason(answer: Any) -> Reason | None:
    return answer.reason if isinstance(answer, Failed) else None


def test_without_a_user_nothing_is_done(shop: Shop) -> None:
    assert reason(shop.hand.do(Put(b"uteam/a", b"v"))) is Reason.NO_USER
    assert reason(shop.hand.apply(OpenSession(b"other", 60.0))) is Reason.NO_USER
    assert reason(shop.hand.apply(CloseSession(shop.hand.session))) is Reason.NO_USER
    assert reason(shop.hand.apply(Configure(b""))) is Reason.NO_USER
    assert reason(shop.hand.apply(HashContent())) is Reason.NO_USER
    assert reason(shop.hand.apply(PassTime(0.0, 1.0, 1, 1))) is None, "a leader's own"


ALLOWED: list[tuple[Operation, bool, bool]] = [
    (Put(b"uteam/a", b"v"), True, False),
    (Put(b"uteam", b"v"), False, False),
    (Put(b"uteam0", b"v"), False, False),
    (Put(b"rlock/team%2Fx/p/1", b"v"), True, False),
    (Put(b"rlock/other/p/1", b"v"), False, False),
    (Put(b"r\0quiet", b"v"), False, False),
    (Put(b"x", b"v"), False, False),
    (Delete(KeyRange(b"uteam/", b"uteam0")), True, False),
    (Delete(KeyRange(b"uteam/", b"uteam1")), False, False),
    (Delete(KeyRange(b"u", b"v")), False, False),
    (Range(KeyRange(b"uteam/a")), True, True),
    (Range(KeyRange(b"r\0quiet")), True, True),
    (Range(KeyRange(b"uteam/", b"v")), False, False),
    (Range(KeyRange(b"", b"")), False, False),
    (Txn(success=(Put(b"uteam/a", b"v"),)), True, False),
    (Txn(success=(Range(KeyRange(b"uteam/a")),)), True, True),
    (Txn(failure=(Put(b"uother", b"v"),)), False, False),
    (Txn(success=(Txn(failure=(Put(b"uother", b"v"),)),)), False, False),
    (Txn((TxnCompare(KeyRange(b"uother"), Target.VERSION, Relation.EQUAL, 0),)), False, False),
    (Txn((TxnCompare(KeyRange(b"uteam/z"), Target.VERSION, Relation.EQUAL, 0),)), True, True),
    (Compact(2), True, True),
    (LeaseGrant(0, 10.0), True, True),
    (AskAuth(), False, False),
    (AskUsers(), False, False),
    (AskRoles(), False, False),
    (AskUser("ann"), True, False),
    (AskRole("team"), True, False),
    (AskRole("reader"), False, True),
    (UserAdd("eve", b"h"), False, False),
    (UserDelete("bob"), False, False),
    (UserSetPassword("ann", b"h"), False, False),
    (UserGrantRole("ann", "root"), False, False),
    (UserRevokeRole("bob", "reader"), False, False),
    (RoleAdd("more"), False, False),
    (RoleDelete("reader"), False, False),
    (RoleGrantPermission("team", Permission(Access.READ, KeyRange(b"", b""))), False, False),
    (RoleRevokePermission("reader", KeyRange(b"team/", b"team0")), False, False),
    (AuthEnable(KEY), False, False),
    (AuthDisable(), False, False),
]


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: str(case[0])[:60])
def test_who_may_do_what(shop: Shop, case: tuple[Operation, bool, bool]) -> None:
    operation, ann, bob = case
    for user, may in ((shop.bob, bob), (shop.ann, ann), (shop.root, True)):
        assert (reason(user.do(operation)) is not Reason.DENIED) is may


def test_a_lease_is_ended_only_by_who_may_write_its_keys(shop: Shop) -> None:
    shop.root.do(LeaseGrant(7, 10.0))
    shop.root.do(Put(b"uother", b"v", 7))
    assert reason(shop.ann.do(LeaseRevoke(7))) is Reason.DENIED
    assert reason(shop.ann.do(Put(b"uteam/a", b"v", 7))) is Reason.DENIED, "or it would end with a key of ann's"
    assert reason(shop.ann.do(Txn(success=(LeaseRevoke(7),)))) is Reason.DENIED
    shop.root.do(Delete(KeyRange(b"uother")))
    assert reason(shop.ann.do(Put(b"uteam/a", b"v", 7))) is None
    assert reason(shop.bob.do(LeaseRevoke(7))) is Reason.DENIED
    assert reason(shop.ann.do(LeaseRevoke(7))) is None


def test_what_a_put_replaces_is_shown_only_to_readers(shop: Shop) -> None:
    shop.root.do(RoleGrantPermission("team", Permission(Access.WRITE, KeyRange(b"team/", b"team0"))))
    assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is None
    assert reason(shop.ann.do(Put(b"uteam/a", b"v", prev=True))) is Reason.DENIED
    assert reason(shop.ann.do(Delete(KeyRange(b"uteam/a"), prev=True))) is Reason.DENIED
    assert reason(shop.ann.do(Range(KeyRange(b"uteam/a")))) is Reason.DENIED


REVOCATIONS: list[Operation] = [
    UserRevokeRole("ann", "team"),
    RoleDelete("team"),
    RoleRevokePermission("team", KeyRange(b"team/", b"team0")),
    RoleGrantPermission("team", Permission(Access.READ, KeyRange(b"team/", b"team0"))),
]


@pytest.mark.parametrize("revocation", REVOCATIONS, ids=lambda each: type(each).__name__)
def test_a_right_ends_at_its_entry(shop: Shop, revocation: Operation) -> None:
    """All in one write of the state: the entries before it may write, the entries after it may not."""
    ann, root = shop.ann, shop.root
    ann.open()
    root.open()
    ann_writes = [ClientWrites(ann.session, n, (ClientWrite(n, Put(b"uteam/a", b"%d" % n)),)) for n in (1, 2)]
    put = [ByUser(ann.caller, writes) for writes in ann_writes]
    revoke = ByUser(root.caller, ClientWrites(root.session, 1, (ClientWrite(1, revocation),)))
    (first,), (done,), (second,) = shop.hand.apply_all([put[0], revoke, put[1]])
    assert reason(first) is None
    assert isinstance(done, Done)
    assert reason(second) is Reason.DENIED


@pytest.mark.parametrize("end", [UserDelete("ann"), UserSetPassword("ann", b"new"), AuthDisable()], ids=str)
def test_a_token_ends(shop: Shop, end: Operation) -> None:
    shop.ann.open()
    assert isinstance(shop.root.do(end), Done)
    if isinstance(end, AuthDisable):
        assert isinstance(shop.hand.do(AuthEnable(KEY)), Done)
        shop.root.session = 0
        cluster = Caller("", 1, TOKEN_TTL_S)
        assert reason(shop.hand.apply(ByUser(cluster, HashContent()))) is Reason.BAD_TOKEN, "of the time before"
        assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is None, "a user keeps its password"
        return
    assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is Reason.BAD_TOKEN
    if isinstance(end, UserDelete):
        shop.root.do(UserAdd("ann", b"h"))
        shop.root.do(UserGrantRole("ann", "team"))
        assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is Reason.BAD_TOKEN, "of the user of that name before"


def test_a_token_ends_with_its_time(shop: Shop) -> None:
    assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is None
    shop.hand.apply(PassTime(0.0, TOKEN_TTL_S, 1, 1))
    assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is None
    shop.hand.apply(PassTime(TOKEN_TTL_S, 1.0, 1, 1))
    assert reason(shop.ann.do(Put(b"uteam/a", b"v"))) is Reason.BAD_TOKEN


def test_the_cluster_itself_only_administers(shop: Shop) -> None:
    cluster = UserHand(shop.hand, "")
    assert reason(shop.hand.apply(ByUser(cluster.caller, HashContent()))) is None
    assert reason(cluster.open()) is Reason.DENIED
    assert reason(shop.hand.apply(ByUser(shop.ann.caller, HashContent()))) is Reason.DENIED
    assert reason(shop.hand.apply(ByUser(shop.root.caller, HashContent()))) is None
    wrong = Caller("", cluster.caller.since + 1, TOKEN_TTL_S)
    assert reason(shop.hand.apply(ByUser(wrong, HashContent()))) is Reason.BAD_TOKEN


def test_a_session_is_its_users_own(shop: Shop) -> None:
    shop.ann.do(Put(b"uteam/a", b"v"))
    shop.bob.session = shop.ann.session
    assert reason(shop.bob.do(Range(KeyRange(b"uteam/a")))) is Reason.SESSION_EXPIRED
    assert reason(shop.hand.apply(ByUser(shop.bob.caller, CloseSession(shop.ann.session)))) is Reason.SESSION_EXPIRED
    assert shop.ann.session in shop.state.sessions
    assert shop.state.sessions[shop.ann.session].user == "ann"


def test_a_request_id_is_its_users_own(shop: Shop) -> None:
    """Nobody is given an answer that was another's, or kept from using a name."""
    named = RequestId(b"u\0job", b"meaning")
    shop.root.do(Put(b"uteam/secret", b"s"))
    assert reason(shop.ann.do(Put(b"uteam/secret", b"v", prev=True), named)) is None
    assert reason(shop.bob.do(Put(b"uteam/secret", b"v", prev=True), named)) is Reason.DENIED
    shop.root.do(UserGrantRole("bob", "team"))
    assert reason(shop.bob.do(Put(b"uteam/secret", b"v", prev=True), named)) is None, "a denial is not remembered"


def test_what_was_tried_before_users_were_needed_is_not_done_again(shop: Shop) -> None:
    """A client that got no answer tries again, now as a user: it is the same request."""
    shop.root.do(AuthDisable())
    named = RequestId(b"u\0job", b"meaning")
    shop.hand.sequence += 1
    first = ClientWrite(shop.hand.sequence, Put(b"uteam/n", b"1", prev=True), named)
    before: Any = shop.hand.apply(ClientWrites(shop.hand.session, shop.hand.sequence, (first,)))
    shop.hand.do(AuthEnable(KEY))
    assert shop.ann.do(Put(b"uteam/n", b"1", prev=True), named) == before
    assert reason(shop.bob.do(Put(b"uteam/n", b"1", prev=True), named)) is Reason.DENIED, (
        "who may not do it sees nothing"
    )
    other = RequestId(b"u\0job", b"another meaning")
    assert shop.ann.do(Put(b"uteam/n", b"1", prev=True), other).revision > before.revision


def test_everything_is_there_after_a_start(shop: Shop) -> None:
    shop.ann.open()
    before = shop.state.content_hash()
    users = shop.state.users
    shop.state.flush()
    shop.state.close()
    shop.state = State.open(shop.disk, "state")
    again = shop.state.users
    assert (again.head, again.users, again.roles) == (users.head, users.users, users.roles)
    assert shop.state.sessions[shop.ann.session].user == "ann"
    assert shop.state.content_hash() == before


def test_a_new_cluster_of_a_backup_keeps_them(shop: Shop) -> None:
    users = shop.state.users
    shop.state.reset_for_new_cluster(FIRST, b"")
    shop.state.close()
    shop.state = State.open(shop.disk, "state")
    assert shop.state.users.users == users.users
    assert shop.state.users.enabled


def test_users_are_part_of_the_content() -> None:
    hashes = set()
    for operations in ([], [UserAdd("a", b"h")], [UserAdd("a", b"i")], [RoleAdd("a")]):
        state = State.create(SimDisk(), "state", FIRST)
        hand = Hand(state)
        for operation in [*operations, Compact(9), Compact(9)][:2]:
            hand.do(operation)  # type: ignore[arg-type]
        hashes.add(state.content_hash())
        state.close()
    assert len(hashes) == 4


PROBLEMS: list[tuple[Operation, AuthProblem]] = [
    (UserAdd("", b"h"), AuthProblem.USER_EMPTY),
    (UserAdd("ann", b"h"), AuthProblem.USER_EXISTS),
    (UserAdd("x" * 257, b"h"), AuthProblem.FULL),
    (UserDelete("eve"), AuthProblem.USER_MISSING),
    (UserDelete("root"), AuthProblem.INVALID_MANAGEMENT),
    (UserSetPassword("eve", b"h"), AuthProblem.USER_MISSING),
    (UserGrantRole("eve", "team"), AuthProblem.USER_MISSING),
    (UserGrantRole("ann", "none"), AuthProblem.ROLE_MISSING),
    (UserRevokeRole("eve", "team"), AuthProblem.USER_MISSING),
    (UserRevokeRole("ann", "reader"), AuthProblem.ROLE_NOT_GRANTED),
    (UserRevokeRole("root", "root"), AuthProblem.INVALID_MANAGEMENT),
    (RoleAdd(""), AuthProblem.ROLE_EMPTY),
    (RoleAdd("team"), AuthProblem.ROLE_EXISTS),
    (RoleDelete("none"), AuthProblem.ROLE_MISSING),
    (RoleDelete("root"), AuthProblem.INVALID_MANAGEMENT),
    (RoleGrantPermission("none", Permission(Access.READ, KeyRange(b"a"))), AuthProblem.ROLE_MISSING),
    (RoleRevokePermission("none", KeyRange(b"a")), AuthProblem.ROLE_MISSING),
    (RoleRevokePermission("team", KeyRange(b"a")), AuthProblem.PERMISSION_NOT_GRANTED),
    (AskUser("eve"), AuthProblem.USER_MISSING),
    (AskRole("none"), AuthProblem.ROLE_MISSING),
]


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: str(case[0])[:50])
def test_refusals_change_nothing(shop: Shop, case: tuple[Operation, AuthProblem]) -> None:
    operation, problem = case
    before = shop.state.users
    answer = shop.root.do(operation)
    assert (answer.reason, answer.detail) == (Reason.AUTH, problem)
    assert shop.state.users is before


def test_answers(shop: Shop) -> None:
    state = shop.root.do(AskAuth())
    assert isinstance(state, AuthState)
    assert (state.enabled, state.auth_revision) == (True, 11)
    assert shop.root.do(AskUsers()) == Names(1, ("ann", "bob", "root"))
    assert shop.root.do(AskRoles()) == Names(1, ("reader", "team"))
    assert shop.root.do(AskUser("ann")) == Names(1, ("team",))
    expected = (Permission(Access.READWRITE, KeyRange(b"team/", b"team0")),)
    assert shop.root.do(AskRole("team")) == Permissions(1, expected)


def test_enabling_needs_root() -> None:
    state = State.create(SimDisk(), "state", FIRST)
    hand = Hand(state)

    def refusal() -> int:
        answer = hand.do(AuthEnable(KEY))
        assert isinstance(answer, Failed)
        return answer.detail

    assert refusal() == AuthProblem.ROOT_USER_MISSING
    hand.do(UserAdd("root", b"h"))
    assert refusal() == AuthProblem.ROOT_ROLE_MISSING
    hand.do(UserGrantRole("root", "root"))
    assert isinstance(hand.do(AuthEnable(KEY)), Done)
    state.close()


def test_ranges_of_permissions_unite() -> None:
    """Against a model: every name of a range is looked up in every permission."""
    rng = random.Random(1)
    letters = [b"", b"a", b"b", b"c", b"d", b"e"]
    for _ in range(300):
        granted = tuple(
            Permission(rng.choice(list(Access)), KeyRange(rng.choice(letters), rng.choice([None, *letters])))
            for _ in range(rng.randrange(4))
        )
        roles = {"r": RoleRecord("r", granted)}
        rights = Rights(UserRecord("a", b"", 1, ("r",)), roles)
        names = [name + more for name in letters for more in (b"", b"\0", b"z")]

        def inside(name: bytes, keys: KeyRange) -> bool:
            if keys.end is None:
                return name == keys.key
            return keys.key <= name and (keys.end == b"" or name < keys.end)

        for start in letters:
            for end in [None, *letters[1:]]:
                if end is not None and end <= start:
                    continue
                wanted = KeyRange(start, end)
                for access, may in ((Access.READ, rights.may_read), (Access.WRITE, rights.may_write)):
                    fit = [each.names for each in granted if each.access in (access, Access.READWRITE)]
                    expected = all(any(inside(name, each) for each in fit) for name in names if inside(name, wanted))
                    stored = KeyRange(b"u" + start, None if end is None else b"u" + end)
                    assert may(stored) == expected, (granted, wanted, access)


def test_a_table_is_never_changed(shop: Shop) -> None:
    table = shop.state.users
    users, roles = dict(table.users), dict(table.roles)
    shop.root.do(UserDelete("ann"))
    shop.root.do(RoleDelete("team"))
    assert (table.users, table.roles) == (users, roles)
    assert isinstance(shop.state.users, AuthTable)
    assert "ann" not in shop.state.users.users
