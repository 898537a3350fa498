"""The leader's countdown of promises."""

from hypothesis import given
from hypothesis import strategies as st

from raykeeper.actors.member.deadlines import DeadlineQueue


def test_a_promise_runs_out_at_its_deadline_and_is_handed_out_once():
    countdown = DeadlineQueue()
    countdown.start([(1, 10.0), (2, 5.0)], now=100.0)
    assert countdown.due(104.9, most=10) == []
    assert countdown.due(105.0, most=10) == [2]
    assert countdown.due(105.0, most=10) == []
    assert countdown.expiring == (2,)


def test_a_renewal_moves_the_deadline_and_never_backwards():
    countdown = DeadlineQueue()
    countdown.start([(1, 10.0)], now=0.0)
    assert countdown.renew(1, until=30.0)
    assert countdown.renew(1, until=20.0)
    assert countdown.due(29.9, most=10) == []
    assert countdown.due(30.0, most=10) == [1]


def test_an_expiring_promise_cannot_be_renewed_until_its_expiry_came_back_void():
    countdown = DeadlineQueue()
    countdown.start([(1, 10.0)], now=0.0)
    assert countdown.due(10.0, most=10) == [1]
    assert not countdown.renew(1, until=50.0)
    countdown.retry(1, until=12.0)
    assert countdown.renew(1, until=20.0)
    assert countdown.due(19.9, most=10) == []
    assert countdown.due(20.0, most=10) == [1]


def test_a_promise_that_is_new_is_counted_from_its_first_renewal():
    countdown = DeadlineQueue()
    countdown.start([], now=0.0)
    countdown.renew(7, until=3.0)
    assert 7 in countdown
    assert countdown.due(3.0, most=10) == [7]


def test_what_was_forgotten_does_not_run_out():
    countdown = DeadlineQueue()
    countdown.start([(1, 1.0)], now=0.0)
    countdown.forget(1)
    assert countdown.due(5.0, most=10) == []


def test_a_bound_on_what_is_handed_out_at_once():
    countdown = DeadlineQueue()
    countdown.start([(i, 1.0) for i in range(10)], now=0.0)
    assert len(countdown.due(2.0, most=4)) == 4
    assert len(countdown.due(2.0, most=40)) == 6


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 10)), max_size=60))
def test_nothing_ends_early_and_all_ends_in_time(steps):
    """Against a dict of deadlines: whatever the order of renewals, ``due`` hands out exactly what ran out."""
    countdown, deadlines, now = DeadlineQueue(), {}, 0.0
    countdown.start([], now=0.0)
    for promise, length in steps:
        now += 0.5
        ended = set(countdown.due(now, most=100))
        assert ended == {p for p, deadline in deadlines.items() if deadline <= now}
        for p in ended:
            countdown.forget(p)
            del deadlines[p]
        countdown.renew(promise, until=now + length)
        deadlines[promise] = max(deadlines.get(promise, 0.0), now + length)
        assert countdown.next_deadline() <= min(deadlines.values())


def test_what_was_forgotten_takes_no_room():
    countdown = DeadlineQueue()
    countdown.start([(0, 5.0)], now=0.0)
    for promise in range(1, 5000):
        countdown.renew(promise, until=86_400.0)
        countdown.renew(promise, until=90_000.0)
        countdown.forget(promise)
        assert len(countdown._heap) <= 2 + countdown.SPARE
    assert countdown.due(5.0, most=10) == [0]
