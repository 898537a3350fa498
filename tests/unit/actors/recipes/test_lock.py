"""Locks: order, tokens, guards, losses, and that nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE
from raykeeper import Client, CompactedError, Compare, InvalidArgument, LeaseLost, LockLost, Op
from raykeeper.actors.recipes.contenders import Predecessor, Ticket, head, tail
from raykeeper.actors.recipes.sync_async import TimeLimit, run_sync
from raykeeper.schema.frames import Request

decode = msgspec.msgpack.Decoder(Request).decode

Until = Callable[..., None]


def test_a_lock_is_held_by_one_and_handed_on_in_order(kv: Client, until: Until) -> None:
    turns: list[int] = []
    tokens: list[int] = []
    with kv.lock("a") as first:
        tokens.append(first.token)
        others = []
        for number in range(5):

            def contend(number: int = number) -> None:
                with kv.lock("a") as lock:
                    turns.append(number)
                    tokens.append(lock.token)

            others.append(in_thread(contend))
            until(lambda number=number: len(first.waiters()) == number + 1)
        assert turns == []
        assert [waiter.token for waiter in first.waiters()] == sorted(waiter.token for waiter in first.waiters())
        holder = first.holder()
        assert holder is not None
        assert holder.token == first.token
    for other in others:
        other.result()
    assert turns == [0, 1, 2, 3, 4]
    assert tokens == sorted(set(tokens))
    assert first.holder() is None


def test_trying_takes_no_place(kv: Client) -> None:
    with kv.lock("a") as held:
        other = kv.lock("a")
        assert other.acquire(timeout=0) is False
        assert other.acquire(timeout=0.1) is False
        assert held.waiters() == []
        assert not other.held
    assert other.acquire(timeout=0) is True
    other.release()


def test_one_who_gives_up_in_the_middle_lets_the_next_one_by(kv: Client, until: Until) -> None:
    first = kv.lock("a")
    for seconds in (0.4, 4.0, PATIENCE / 2):  # on a slow machine the second may be gone before the third has come
        first.acquire()
        second = in_thread(lambda seconds=seconds: kv.lock("a").acquire(timeout=seconds))
        until(lambda second=second: second.done or len(first.waiters()) == 1)
        third_lock = kv.lock("a")
        third = in_thread(third_lock.acquire)
        until(lambda second=second: second.done or len(first.waiters()) == 2)
        both_waited = len(first.waiters()) == 2
        assert second.result() is False
        until(lambda: len(first.waiters()) == 1)
        assert not third.done
        first.release()
        assert third.result() is True
        third_lock.release()
        if both_waited:
            return
    pytest.fail("the second was gone each time")


def test_a_guard_writes_only_under_its_token(kv: Client) -> None:
    first = kv.lock("a")
    first.acquire()
    guard = first.guard()
    guard.put("k", "1")
    assert guard.get("k").value == b"1"  # type: ignore[union-attr]
    assert guard.txn([Compare.value("k") == "0"], [Op.put("k", "x")], [Op.put("k", "2")]).succeeded is False
    assert guard.delete("nothing").deleted == 0
    assert guard.namespace("n/").put("k", "3", prev=True).prev is None
    sent = pickle.loads(pickle.dumps(guard))
    sent.put("k", "4")
    first.release()
    for write in (
        lambda: guard.put("k", "5"),
        lambda: guard.delete("k"),
        lambda: guard.txn([], [], [Op.put("k", "5")]),
        lambda: guard.txn([], [Op.txn([], [Op.put("k", "5")])]),
        lambda: guard.namespace("n/").put("k", "5"),
        lambda: guard.counter("c").add(1),
        lambda: sent.put("k", "5"),
    ):
        with pytest.raises(LockLost) as refused:
            write()
        assert refused.value.applied is False
    assert kv.get("k").value == b"4"  # type: ignore[union-attr]
    assert guard.get("k").value == b"4"  # type: ignore[union-attr]
    with pytest.raises(LockLost):
        first.guard()
    with pytest.raises(LockLost):
        _ = first.token


def test_guards_of_guards_need_both(kv: Client) -> None:
    outer, inner = kv.lock("outer"), kv.lock("inner")
    outer.acquire()
    inner.acquire()
    from raykeeper.actors.client.guard import guarded

    contenders, place = inner._holder.contenders, inner._holder.current_ticket()
    both = guarded(outer.guard(), contenders.space, place.key, place.token)
    both.put("k", "1")
    outer.release()
    with pytest.raises(LockLost):
        both.put("k", "2")
    inner.release()


def test_lost_is_set_when_somebody_deletes_the_key(kv: Client) -> None:
    lock = kv.lock("a", ttl=30)
    lock.acquire()
    assert not lock.lost.is_set()
    space = kv.reserved("lock")
    assert space.delete(lock._holder.current_ticket().key).deleted == 1
    assert lock.lost.wait(PATIENCE)
    assert not lock.held
    with pytest.raises(LockLost):
        lock.guard().put("k", "1")
    lock.release()  # says nothing: it was lost


def test_a_forgotten_lock_is_free_within_its_ttl(kv: Client, until: Until) -> None:
    def forget() -> None:
        lock = kv.lock("a", ttl=1)
        lock.acquire()

    forget()
    gc.collect()
    other = kv.lock("a")
    assert other.acquire(timeout=PATIENCE)
    other.release()


def test_a_holder_that_is_cut_off_learns_it_within_the_ttl(member: OneMember, kv: Client) -> None:
    lock = kv.lock("a", ttl=1)
    lock.acquire()
    member.cut = True
    try:
        assert lock.lost.wait(PATIENCE), "though it hears of nobody"
    finally:
        member.cut = False
    lock.release()


def test_a_waiter_that_is_cut_off_loses_its_place(member: OneMember, kv: Client, until: Until) -> None:
    held = kv.lock("a", ttl=30)
    held.acquire()
    waiting = in_thread(lambda: kv.lock("a", ttl=6).acquire())
    until(lambda: len(held.waiters()) == 1)
    member.cut = True
    try:
        with pytest.raises(LeaseLost):
            waiting.result()
    finally:
        member.cut = False
    until(lambda: held.waiters() == [])
    held.release()


def test_history_may_be_compacted_under_those_who_wait(kv: Client, until: Until) -> None:
    held = kv.lock("a")
    held.acquire()
    waiters = [kv.lock("a") for _ in range(3)]
    waiting = []
    for number, lock in enumerate(waiters):
        waiting.append(in_thread(lock.acquire))
        until(lambda number=number: len(held.waiters()) == number + 1)
    kv.put("k", "1")
    kv.compact(kv.revision())
    assert not any(each.done for each in waiting)
    held.release()
    for lock, each in zip(waiters, waiting, strict=True):
        assert each.result() is True
        kv.compact(kv.put("k", "2").revision)
        lock.release()


def test_history_that_is_gone_before_it_was_looked_at(
    kv: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiters that compaction overtakes between entry and first look: one has one before it, and the other two."""
    from raykeeper.actors.recipes.contenders import Contenders

    wait_for = Contenders.wait_for
    compactions: list[int] = []

    async def compacted(self: Any, ticket: Any, ahead: Any, deadline: Any) -> Any:
        if ahead.revision <= kv.put("k", "1").revision:
            compactions.append(ahead.revision)
            with suppress(CompactedError):  # the other waiter was faster
                kv.compact(kv.put("k", "2").revision)
        return await wait_for(self, ticket, ahead, deadline)

    monkeypatch.setattr(Contenders, "wait_for", compacted)
    held, other, last = (kv.lock("a") for _ in range(3))
    held.acquire()
    waiting = []
    for number, lock in enumerate((other, last), 1):
        waiting.append(in_thread(lock.acquire))
        until(lambda number=number: len(held.waiters()) == number and len(compactions) >= number)
    assert not any(each.done for each in waiting)
    held.release()
    assert waiting[0].result() is True
    assert not waiting[1].done
    other.release()
    assert waiting[1].result() is True
    last.release()


def test_to_hand_over_between_two_nothing_is_read(kv: Client, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    holder = kv.lock("a")
    holder.acquire()
    hub = kv._hub(5)
    send = hub._send

    def counted(core: Any, frame: Any, waiter: Any) -> None:
        asked.append(type(decode(frame.frame)).__name__)
        send(core, frame, waiter)

    monkeypatch.setattr(hub, "_send", counted)
    for _ in range(3):
        other = kv.lock("a")
        waiting = in_thread(other.acquire)
        until(lambda: "WatchPoll" in asked)
        asked.clear()
        holder.release()
        assert waiting.result() is True
        assert not {"Reads", "LoneRead"} & set(asked)
        holder = other
        asked.clear()
    holder.release()


def test_only_who_finds_others_there_writes_the_tail_and_so_learns_who_was_last(kv: Client, until: Until) -> None:
    """A ticket whose key alone was deleted may be named there still: it misleads nobody."""
    contenders = kv.lock("a")._holder.contenders
    space, last = contenders.space, tail(contenders.ticket_prefix)

    def join() -> Ticket:
        ticket = run_sync(contenders.join(b"me"))
        assert ticket is not None
        return ticket

    def named() -> bytes | None:
        found = space.get(last)
        return None if found is None else found.raw

    first = join()
    assert named() is None
    assert first.uncontended
    second = join()
    assert second.alone_before == first.key
    third = join()
    assert third.predecessor == Predecessor(second.key, second.token)
    assert named() == third.key
    for ticket in (first, second):
        run_sync(contenders.leave(ticket))
    space.delete(third.key)
    fourth = join()
    assert fourth.uncontended
    assert named() == third.key
    fifth, sixth = join(), join()
    assert fifth.alone_before == fourth.key
    assert sixth.predecessor == Predecessor(fifth.key, fifth.token)
    run_sync(contenders.give_back(fourth))
    assert run_sync(contenders.wait_turn(fifth, TimeLimit(PATIENCE))) is True
    for ticket in (third, fifth, sixth):
        run_sync(contenders.leave(ticket))
    until(lambda: named() is None)


def test_a_tail_that_is_left_of_a_deleted_ticket_gives_nobody_the_turn(kv: Client) -> None:
    """Not even one that history is compacted under, and whose only hold is what it learned as it joined."""
    contenders = kv.lock("a")._holder.contenders

    def join() -> Ticket:
        ticket = run_sync(contenders.join(b"me"))
        assert ticket is not None
        return ticket

    first, taken_away = join(), join()
    run_sync(contenders.give_back(first))
    assert run_sync(contenders.wait_turn(taken_away, TimeLimit(PATIENCE))) is True
    contenders.space.delete(taken_away.key)
    holder = join()
    assert run_sync(contenders.wait_turn(holder, TimeLimit(PATIENCE))) is True
    waiter = join()
    assert waiter.predecessor is None
    run_sync(contenders.give_back(taken_away))  # it has not noticed yet
    given_back = contenders.space.get(head(contenders.ticket_prefix))
    assert given_back is not None
    assert int(given_back.raw) == taken_away.token
    kv.compact(kv.put("k", "1").revision)  # before the waiter's watch is open
    assert run_sync(contenders.wait_turn(waiter, TimeLimit(0.2))) is False
    run_sync(contenders.give_back(holder))
    assert run_sync(contenders.wait_turn(waiter, TimeLimit(PATIENCE))) is True
    run_sync(contenders.give_back(waiter))


@pytest.mark.parametrize("how", ["released", "given up", "deleted"])
def test_who_waits_for_the_only_one_before_it_gets_its_turn_however_that_one_goes(
    kv: Client, until: Until, how: str
) -> None:
    first = kv.lock("a")
    first.acquire()
    second = kv.lock("a")
    waiting = in_thread(second.acquire)
    until(lambda: len(first.waiters()) == 1)
    third = kv.lock("a")
    last = in_thread(third.acquire)
    until(lambda: len(first.waiters()) == 2)
    ticket = first._holder.current_ticket()
    if how == "released":
        first.release()
    elif how == "given up":
        ticket.lease.revoke()
    else:
        kv.reserved("lock").delete(ticket.key)
    assert waiting.result() is True
    assert not last.done
    second.release()
    assert last.result() is True
    third.release()


def test_an_interrupt_leaves_no_place(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from raykeeper.actors.recipes import contenders

    held = kv.lock("a")
    held.acquire()

    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contenders, "next_event", interrupted)
    other = kv.lock("a")
    with pytest.raises(KeyboardInterrupt):
        other.acquire()
    assert held.waiters() == []
    monkeypatch.undo()
    held.release()
    assert other.acquire(timeout=0)
    other.release()


def test_an_object_is_one_contender(kv: Client) -> None:
    lock = kv.lock("a")
    with pytest.raises(InvalidArgument):
        lock.release()
    with lock:
        with pytest.raises(InvalidArgument):
            lock.acquire()
        assert lock.held
    with lock:
        pass
    assert lock.lost.is_set()


def test_names(kv: Client) -> None:
    with kv.lock("a/b") as one, kv.lock("a") as two, kv.namespace("n").lock("b") as three, kv.lock(b"\xff%2F") as four:
        assert len({one.token, two.token, three.token, four.token}) == 4
        assert [len(each.waiters()) for each in (one, two, three, four)] == [0, 0, 0, 0]
        other = kv.lock("a%2Fb")
        assert other.acquire(timeout=0)
        other.release()
        # As with keys, a namespace is a beginning of the name.
        assert not kv.namespace("a/").lock("b").acquire(timeout=0)
    for name in ("", 5, None):
        with pytest.raises(InvalidArgument):
            kv.lock(name)  # type: ignore[arg-type]
    for ttl in (0, -1, "5", float("inf"), float("nan"), True):
        with pytest.raises(InvalidArgument):
            kv.lock("a", ttl=ttl).acquire()  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        kv.lock("a").acquire(timeout=-1)


def test_what_it_keeps_lies_outside_every_range(kv: Client, member: OneMember) -> None:
    everything = member.client()
    before = everything.range(prefix=b"").count
    with kv.lock("a"):
        assert everything.range(prefix=b"").count == before
        assert everything.delete(prefix=b"x").deleted == 0


def test_nothing_is_left_behind(kv: Client, member: OneMember, until: Until) -> None:
    before = member.leases
    for _ in range(3):
        with kv.lock("x"):
            kv.lock("x").acquire(timeout=0)
    until(lambda: member.leases <= before)
    assert kv.reserved("lock").range(prefix=kv.prefix.replace(b"/", b"%2F") + b"x").count == 0


def test_many_locks_held_cost_no_thread_each_and_each_sees_its_key_go(
    kv: Client, member: OneMember, until: Until
) -> None:
    kv.lock("warm").acquire(timeout=PATIENCE)
    before = member.thread_count()
    locks = [kv.lock(f"many-{number}", 60) for number in range(100)]
    for lock in locks:
        assert lock.acquire(timeout=PATIENCE)
    space = kv.reserved("lock")
    places = [lock._holder.current_ticket().key for lock in locks]
    watching = kv._hub(1.0).watch_core
    until(lambda: len(watching) >= 100)
    assert member.thread_count() <= before + 2
    for key in places[::2]:
        space.delete(key)
    until(lambda: all(lock.lost.is_set() for lock in locks[::2]))
    assert not any(lock.lost.is_set() for lock in locks[1::2])
    for lock in locks[1::2]:
        lock.release()
    until(lambda: len(watching) == 0)


def test_a_key_that_goes_where_history_is_compacted_is_missed_all_the_same(kv: Client, until: Until) -> None:
    kept, gone = kv.lock("kept", 60), kv.lock("gone", 60)
    assert kept.acquire(timeout=PATIENCE)
    assert gone.acquire(timeout=PATIENCE)
    kv.reserved("lock").delete(gone._holder.current_ticket().key)
    kv.compact(kv.revision())
    until(lambda: gone.lost.is_set())
    assert not kept.lost.is_set()
    kv.reserved("lock").delete(kept._holder.current_ticket().key)
    until(lambda: kept.lost.is_set())


def test_locks_do_not_pickle(kv: Client) -> None:
    with pytest.raises(TypeError, match=r"\.token"):
        pickle.dumps(kv.lock("a"))
    with pytest.raises(TypeError, match=r"\.token"):
        pickle.dumps(kv.aio.lock("a"))


# --- asyncio ---------------------------------------------------------------------------------------------------------


def test_coroutines_take_turns(kv: Client) -> None:
    async def main() -> None:
        turns: list[int] = []
        tokens: list[int] = []
        held = kv.aio.lock("a")
        await held.acquire()

        async def contend(number: int) -> None:
            async with kv.aio.lock("a") as lock:
                turns.append(number)
                tokens.append(lock.token)
                await lock.guard().put("k", str(number))

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(contend(number)))
            while len(await held.waiters()) != number + 1:
                await asyncio.sleep(0.005)
        await held.release()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert turns == [0, 1, 2, 3, 4]
        assert tokens == sorted(tokens)
        assert await held.holder() is None

    asyncio.run(main())


def test_a_cancelled_coroutine_leaves_no_place(kv: Client) -> None:
    async def main() -> None:
        async with kv.aio.lock("a") as held:
            lock = kv.aio.lock("a")
            waiting = asyncio.create_task(lock.acquire())
            while not await held.waiters():
                await asyncio.sleep(0.005)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await held.waiters() == []
            assert await lock.acquire(timeout=0.1) is False
        assert await lock.acquire(timeout=PATIENCE) is True
        await lock.release()
        with pytest.raises(LockLost):
            lock.guard()

    asyncio.run(main())
