"""What a proxy holds for its clients: one bound, and turns for long messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raykeeper.actors.proxy.held_bytes import ByteShare, HeldBytes, LongMessage
from raykeeper.limits import PROXY_STREAM_WINDOW_BYTES


def shares(held: HeldBytes, count: int) -> tuple[list[ByteShare], list[int]]:
    closed: list[int] = []
    return [held.open_share(lambda number=number: closed.append(number)) for number in range(count)], closed


def test_the_largest_share_is_closed() -> None:
    held = HeldBytes(limit=100)
    (small, large, last), closed = shares(held, 3)
    small.add(10)
    large.add(80)
    last.add(10)
    assert closed == []
    last.add(1)
    assert closed == [1]
    assert held.held == 21
    large.add(1000)
    large.close()
    assert held.held == 21, "a closed share counts no more"


def test_a_single_holder_can_exceed_the_bound_once() -> None:
    held = HeldBytes(limit=100)
    (only,), closed = shares(held, 1)
    only.add(1000)
    assert closed == [0]
    assert held.held == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 100)), max_size=100))
def test_the_sum_is_that_of_the_shares(steps: list[tuple[int, int]]) -> None:
    held = HeldBytes(limit=200)
    opened, closed = shares(held, 4)
    for number, count in steps:
        share = opened[number]
        share.add(max(count, -share.held))
        assert held.held == sum(each.held for each in held.shares) <= 200
    assert len(held.shares) + len(closed) == 4


def test_what_handlers_work_at_counts_until_they_have_ended() -> None:
    held = HeldBytes(limit=100, reserve=0)
    (gone, other), closed = shares(held, 2)
    gone.begin_work(60)
    gone.add(20)
    gone.close()
    assert (held.held, held.running) == (60, 60)
    other.add(90)
    assert closed == [], "nobody is closed for what another has left"
    assert not other.make_room(11)
    gone.begin_work(10)
    assert (held.held, held.running) == (160, 70)
    gone.end_work(60)
    gone.end_work(10)
    assert (held.held, held.running) == (90, 0)
    assert other.make_room(11), "it is for what follows to make room by closing"
    other.begin_work(11)
    assert closed == [1]
    assert (held.held, held.running) == (11, 11)
    other.end_work(11)
    assert held.held == held.running == 0


def with_left(held: HeldBytes, count: int) -> ByteShare:
    """A connection that was closed, for which a handler still works at this many bytes."""
    gone = held.open_share(lambda: None)
    gone.begin_work(count)
    gone.close()
    return gone


def test_a_few_bytes_that_are_left_do_not_protect_who_holds_the_most() -> None:
    held = HeldBytes(limit=1000, reserve=0)
    gone = with_left(held, 5)
    (hog, good), closed = shares(held, 2)
    hog.add(990)
    assert good.make_room(5)
    assert closed == [], "it fits"
    assert good.make_room(20)
    good.begin_work(20)
    assert (closed, held.held) == ([0], 25)
    gone.end_work(5)
    good.end_work(20)
    assert held.held == 0


def test_who_holds_the_most_is_told_even_if_that_makes_no_room_yet() -> None:
    """Else what its handlers work at would keep others out for as long as any bytes are left."""
    held = HeldBytes(limit=1000, reserve=0)
    with_left(held, 5)
    (hog, other, good), closed = shares(held, 3)
    hog.begin_work(900)
    other.add(90)
    assert not good.make_room(20)
    assert (closed, held.held, held.running) == ([0], 995, 905)
    assert not good.make_room(20)
    assert closed == [0], "nobody is closed for what is left and is more"
    hog.end_work(900)
    assert good.make_room(20)


def test_a_request_of_who_holds_the_most_is_refused_and_nobody_is_closed() -> None:
    held = HeldBytes(limit=1000, reserve=0)
    with_left(held, 5)
    (hog, small), closed = shares(held, 2)
    hog.add(900)
    small.add(90)
    assert not hog.make_room(20)
    assert (closed, held.held) == ([], 995)


def test_who_holds_little_has_a_reserve() -> None:
    little = PROXY_STREAM_WINDOW_BYTES
    held = HeldBytes(limit=10 * little, reserve=2 * little)
    gone = with_left(held, 10 * little)
    (busy, quiet, other), closed = shares(held, 3)
    assert not busy.make_room(little + 1), "that is not little"
    for share in (busy, quiet):
        assert share.make_room(little)
        share.begin_work(little)
    assert not busy.make_room(1), "it holds enough"
    assert not other.make_room(1), "the reserve is used up"
    quiet.end_work(little)
    assert other.make_room(little)
    gone.end_work(10 * little)
    assert closed == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ask", "end", "close"]), st.integers(1, 90))))
def test_requests_exceed_the_bound_by_one_at_most(steps: list[tuple[int, str, int]]) -> None:
    """Whichever connection is closed meanwhile, and however long handlers go on."""
    held = HeldBytes(limit=200, reserve=0)
    opened, _ = shares(held, 4)
    work: list[tuple[ByteShare, int]] = []
    for number, what, count in steps:
        share = opened[number]
        if what == "ask" and share in held.shares and share.make_room(count):
            left = held.running
            share.begin_work(count)
            work.append((share, count))
            assert not left or held.held <= 200
        elif what == "end" and work:
            ended, size = work.pop(count % len(work))
            ended.end_work(size)
        elif what == "close" or share not in held.shares:
            share.close()
            opened[number] = held.open_share(lambda: None)
        assert held.held <= 200 + 90


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "begin", "end", "close"]), st.integers(1, 90))))
def test_nothing_is_counted_for_ever(steps: list[tuple[int, str, int]]) -> None:
    held = HeldBytes(limit=200, reserve=0)
    opened, _ = shares(held, 4)
    work: list[tuple[int, int]] = []
    for number, what, count in steps:
        if what == "add":
            opened[number].add(count)
        elif what == "begin":
            opened[number].begin_work(count)
            work.append((number, count))
        elif what == "end" and work:
            ended, size = work.pop(count % len(work))
            opened[ended].end_work(size)
        elif what == "close":
            opened[number].close()
        left = sum(size for number, size in work if opened[number] not in held.shares)
        assert held.running == left
        assert held.held == left + sum(each.held for each in held.shares)
        assert held.held - left <= 200
    for number, size in work:
        opened[number].end_work(size)
    for share in opened:
        share.close()
    assert held.held == held.running == 0


def test_long_messages_take_turns() -> None:
    held = HeldBytes(long_messages=100)
    begun: list[str] = []
    first = held.ask(60, lambda: begun.append("first"))
    second = held.ask(60, lambda: begun.append("second"))
    third = held.ask(30, lambda: begun.append("third"))
    assert begun == ["first"], "the third does not overtake"
    held.give_back(first)
    assert begun == ["first", "second", "third"]
    held.give_back(first)
    held.give_back(second)
    held.give_back(third)
    assert held._room == 100


def test_one_that_is_longer_than_all_room_comes_alone() -> None:
    held = HeldBytes(long_messages=100)
    begun: list[str] = []
    small = held.ask(10, lambda: begun.append("small"))
    huge = held.ask(1000, lambda: begun.append("huge"))
    last = held.ask(10, lambda: begun.append("last"))
    held.give_back(small)
    assert begun == ["small", "huge"]
    held.give_back(huge)
    assert begun == ["small", "huge", "last"]
    held.give_back(last)
    assert held._room == 100


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=60))
def test_nobody_waits_while_there_is_room(steps: list[tuple[bool, int]]) -> None:
    """Some give up while they wait."""
    held = HeldBytes(long_messages=100)
    open_messages: list[LongMessage] = []
    for ask, number in steps:
        if ask:
            open_messages.append(held.ask(number, lambda: None))
        elif open_messages:
            held.give_back(open_messages.pop(number % len(open_messages)))
        begun = [each.size for each in open_messages if each.begun]
        waiting = [each for each in open_messages if not each.begun]
        assert sum(begun) <= 100 or len(begun) == 1
        assert not waiting or (begun and waiting[0].size > 100 - sum(begun))
    for message in open_messages:
        held.give_back(message)
    assert held._room == 100
