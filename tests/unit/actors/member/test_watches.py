"""A member's watches against a plain model: whatever is asked in whatever order, nothing is lost, repeated or early.

The store is the real one, over a disk in memory. What a stream is told is put together as a client does it, in the
order of the answers' numbers, and held against the list of all changes ever made.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.store_model import FIRST, Hand, Model, inside
from lab.turns import turn_of
from raykeeper.actors.member import watches as watches_module
from raykeeper.actors.member.watches import Watches
from raykeeper.limits import WATCH_STREAM_IDLE_S
from raykeeper.schema.answers import Item
from raykeeper.schema.frames import CreateWatch, Refusal, Refused, Watched, WatchEvent, WatchPoll
from raykeeper.schema.operations import Compact, Delete, KeyRange, Operation, Put, Txn
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

KEYS = [b"a", b"a\0", b"ab", b"b", b"c"]


class Seen:
    """One watch as its client sees it."""

    def __init__(self, create: CreateWatch) -> None:
        self.create = create
        self.start = create.start_revision
        self.position = create.start_revision - 1
        self.events: list[WatchEvent] = []
        self.live = False
        self.cancelled = False
        self.compacted = 0


class Stream:
    """One stream as its client sees it."""

    def __init__(self, id: bytes) -> None:
        self.id = id
        self.polled = False
        self.gone = False
        """The member has forgotten it."""
        self.watches: dict[int, Seen] = {}
        self.early: dict[int, Watched] = {}
        self.next = 1
        self.open: list[Callable[[], Any]] = []
        """Answers that the member would make now."""


class Interrupted:
    """The member's state; while somebody reads its history, other threads go on."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def revision(self) -> int:
        return self.world.hand.state.revision

    @property
    def users(self) -> Any:
        return self.world.hand.state.users

    def history(self, *arguments: Any, **options: Any) -> Any:
        state = self.world.hand.state
        meanwhile, self.world.meanwhile = self.world.meanwhile, None
        if meanwhile is not None and meanwhile < 0.5:
            self.world.apply(2)
            self.world.tell()
        found = state.history(*arguments, **options)
        if meanwhile is not None and meanwhile > 0.9:
            self.world.now += 2 * WATCH_STREAM_IDLE_S
            self.world.watches.answer_overdue_polls(self.world.now)
        elif meanwhile is not None:
            self.world.apply(2)
            self.world.tell()
        return found


class World:
    """One member, which may lag behind the log, and the streams that it serves."""

    def __init__(self) -> None:
        self.model = Model()
        self.log: list[Operation] = []
        self.hand = self._fresh(0)
        self.now = 0.0
        self.stale = False
        self.meanwhile: float | None = None
        """What happens inside the next reading."""
        self.watches = Watches(turn_of(lambda: Interrupted(self)), lambda: self.now, lambda: self.stale)  # type: ignore[arg-type, return-value]
        self.streams: list[Stream] = []
        self.last_id = 0
        self.pending = False

    def _fresh(self, count: int) -> Hand:
        """A state that has applied the first operations, this many."""
        hand = Hand(State.create(SimDisk(), "state", FIRST))
        self.applied = count
        for operation in self.log[:count]:
            hand.do(operation)
        return hand

    # -- what happens in the member -----------------------------------------------------------------------------------

    def write(self, operation: Operation) -> None:
        """The cluster agrees on an operation; the member does not know yet."""
        self.model.do(operation)
        self.log.append(operation)

    def apply(self, count: int) -> None:
        """The member applies; readers see it at once, the watches hear of it in :meth:`tell`."""
        self.tell()
        operations = self.log[self.applied : self.applied + count]
        if operations:
            self.hand.run(*operations)
            self.applied += len(operations)
            self.pending = True

    def tell(self) -> None:
        if self.pending:
            self.pending = False
            self.watches.keys_changed(self.hand.state.take_changed_keys(), self.hand.state.revision)
            self.watches.answer_others()

    def replace(self) -> None:
        """A snapshot arrives."""
        self.tell()
        if self.applied < len(self.log):
            old = self.hand
            self.hand = self._fresh(len(self.log))
            old.state.close()
            self.watches.state_replaced()

    # -- what clients do ----------------------------------------------------------------------------------------------

    def poll(self, stream: Stream, creates: tuple[CreateWatch, ...] = (), cancels: tuple[int, ...] = ()) -> None:
        if any(create.start_revision == 0 for create in creates):
            self.tell()  # such a poll comes by way of the loop
        poll = WatchPoll(1, 5.0, stream.id, not stream.polled, creates, cancels)
        stream.polled = True
        for create in creates:
            stream.watches[create.id] = Seen(create)
        for number in cancels:
            stream.watches[number].cancelled = True
        self.watches.poll(poll, self.now + 5.0, stream.open.append)

    def answer(self, stream: Stream, which: int) -> None:
        """One of the answers that could be made is made, and read as soon as all before it were."""
        if not stream.open:
            return
        answer = stream.open.pop(which % len(stream.open))()
        assert isinstance(answer, Watched)
        if not answer.number:
            assert answer.stale
            stream.gone = True
            return
        assert answer.number not in stream.early
        assert answer.number >= stream.next
        stream.early[answer.number] = answer
        while stream.next in stream.early:
            self._read(stream, stream.early.pop(stream.next))
            stream.next += 1

    def _read(self, stream: Stream, answer: Watched) -> None:
        for id, start in answer.created:
            seen = stream.watches[id]
            assert seen.create.start_revision in (0, start)
            seen.start, seen.live = start, not seen.compacted  # which an earlier answer may have said
            seen.position = max(seen.position, start - 1)
        for batch in answer.batches:
            seen = stream.watches[batch.id]
            if seen.cancelled:
                continue
            assert seen.live, "its news came before the word on where it begins"
            assert batch.upto > seen.position
            seen.position = batch.upto
            seen.events += batch.events
        for id, compact_revision in answer.compacted:
            seen = stream.watches[id]
            if not seen.cancelled:
                assert seen.position + 1 < compact_revision <= self.model.compacted or not seen.start
                seen.compacted, seen.live = compact_revision, False
        for id, seen in stream.watches.items():
            if seen.live and id not in answer.lagging and not seen.cancelled:
                seen.position = max(seen.position, answer.revision)
                self.check(seen)

    def check(self, seen: Seen) -> None:
        """The watch was told exactly what has happened up to its position."""
        expected = [self._event(seen, *change) for change in self.model.history if seen.start <= change[0]]
        expected = [event for event in expected if event is not None and event.item.mod_revision <= seen.position]
        assert len(seen.events) == len(expected), (seen.events, expected)
        for told, event in zip(seen.events, expected, strict=True):
            assert (told.deleted, told.item) == (event.deleted, event.item)
            if told.item.mod_revision > self.model.compacted:
                assert told.prev == event.prev
            else:
                assert told.prev in (None, event.prev)

    def _event(self, seen: Seen, revision: int, key: bytes, deleted: bool) -> WatchEvent | None:
        create = seen.create
        if not inside(key, create.keys) or not (create.deletes if deleted else create.puts):
            return None
        item = Item(key, b"", 0, revision, 0, 0) if deleted else self.model.past[revision][key]
        return WatchEvent(deleted, item, self.model.past[revision - 1].get(key) if create.prev else None)

    def settle(self) -> None:
        """Let everything arrive; then every watch has seen everything."""
        self.apply(len(self.log))
        self.tell()
        for stream in self.streams:
            self._settle(stream)

    def _settle(self, stream: Stream) -> None:
        for _ in range(200):
            while stream.open:
                self.answer(stream, 0)
            if stream.gone or all(s.position >= self.model.revision for s in self.alive(stream)):
                break
            self.poll(stream)
            self.now += 6.0
            self.watches.answer_overdue_polls(self.now)
        if not stream.gone:
            assert not stream.early
            for seen in self.alive(stream):
                assert seen.position >= self.model.revision
                assert seen.start
                self.check(seen)

    @staticmethod
    def alive(stream: Stream) -> list[Seen]:
        return [seen for seen in stream.watches.values() if not seen.cancelled and not seen.compacted]


def _key(rng: random.Random) -> bytes:
    return rng.choice(KEYS)


def _operation(rng: random.Random) -> Operation:
    kind = rng.random()
    value = b"%d" % rng.randrange(100) * rng.choice((1, 1, 1, 900))
    if kind < 0.5:
        return Put(_key(rng), value)
    if kind < 0.8:
        return Delete(KeyRange(_key(rng), rng.choice((None, None, b"", b"b"))))
    keys = rng.sample(KEYS, 2)
    return Txn((), (Put(keys[0], value), Delete(KeyRange(keys[1]))))


def _create(world: World, rng: random.Random) -> CreateWatch:
    world.last_id += 1
    key = _key(rng)
    keys = KeyRange(key, rng.choice((None, None, b"", b"b", b"\xff")))
    start = rng.choice((0, 0, rng.randrange(1, world.model.revision + 4)))
    puts, deletes = rng.choice(((True, True), (True, True), (True, False), (False, True)))
    return CreateWatch(world.last_id, keys, start, rng.random() < 0.5, puts, deletes)


ACTIONS = ("write", "write", "apply", "apply", "tell", "poll", "poll", "answer", "answer", "compact", "replace", "tick")


def act(world: World, action: str, rng: random.Random) -> None:
    if action == "write":
        world.write(_operation(rng))
    elif action == "apply":
        world.apply(rng.randrange(1, 5))
    elif action == "tell":
        world.tell()
    elif action == "compact":
        revision = rng.randrange(1, world.model.revision + 1)
        if revision > world.model.compacted:
            world.write(Compact(revision))
        world.hand.state.compact_slice(rng.choice((1, 3, 100)))
    elif action == "replace":
        world.replace()
    elif action == "tick":
        world.now += rng.choice((0.1, 0.1, 5.0))
        world.watches.answer_overdue_polls(world.now)
    elif action == "poll":
        if not world.streams or rng.random() < 0.2:
            world.streams.append(Stream(b"%d" % len(world.streams)))
        stream = rng.choice(world.streams)
        if stream.gone:
            return
        creates = tuple([_create(world, rng) for _ in range(rng.choice((0, 1, 1, 2)))])
        known = [id for id, seen in stream.watches.items() if seen.live and not seen.cancelled]
        cancels = tuple(rng.sample(known, 1)) if known and rng.random() < 0.15 else ()
        world.poll(stream, creates, cancels)
    elif world.streams:
        world.meanwhile = rng.choice((None, rng.random()))
        world.answer(rng.choice(world.streams), rng.randrange(4))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so tight that few events fill an answer."""
    monkeypatch.setattr(watches_module, "WATCH_REPLY_BYTES", 300)
    monkeypatch.setattr(watches_module, "WATCH_BATCH_BYTES", 150)
    monkeypatch.setattr(watches_module, "WATCH_SCAN_CHANGES", 3)


STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1 << 20)), max_size=60)


def run(steps: list[tuple[str, int]]) -> None:
    world = World()
    for action, seed in steps:
        act(world, action, random.Random(seed))
    world.settle()


@settings(max_examples=150)
@given(STEPS)
def test_streams_are_told_everything_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    run(steps)


@settings(max_examples=150)
@given(STEPS)
@pytest.mark.usefixtures("narrow")
def test_the_same_with_answers_that_hold_little(steps: list[tuple[str, int]]) -> None:
    run(steps)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("tight", [False, True])
def test_long_histories(seed: int, tight: bool, request: pytest.FixtureRequest) -> None:
    if tight:
        request.getfixturevalue("narrow")
    rng = random.Random(seed)
    run([(rng.choice(ACTIONS), rng.getrandbits(20)) for _ in range(300)])


# --- one thing at a time ---------------------------------------------------------------------------------------------


def told(world: World, stream: Stream) -> Watched:
    (make,) = stream.open
    stream.open.clear()
    answer = make()
    assert isinstance(answer, Watched)
    return answer


def begin(world: World, *creates: CreateWatch) -> tuple[Stream, Watched]:
    stream = Stream(b"one")
    world.poll(stream, creates)
    return stream, told(world, stream)


def put(world: World, *keys: bytes) -> None:
    for key in keys:
        world.write(Put(key, b"v"))
    world.apply(len(world.log))
    world.tell()


def revisions(answer: Watched) -> dict[int, list[int]]:
    return {batch.id: [event.item.mod_revision for event in batch.events] for batch in answer.batches}


def test_now_is_after_all_that_was_applied() -> None:
    world = World()
    put(world, b"a", b"a")
    stream, answer = begin(world, CreateWatch(1, KeyRange(b"a")))
    assert answer.created == ((1, 4),)
    world.poll(stream)
    assert stream.open == [], "the poll waits"
    put(world, b"b")
    assert stream.open == [], "nobody asked for that key"
    put(world, b"a")
    assert revisions(told(world, stream)) == {1: [5]}


def test_an_event_is_not_lost_when_compaction_hits_its_deletion() -> None:
    world = World()
    put(world, b"a")
    world.write(Delete(KeyRange(b"a")))
    put(world, b"b")
    world.write(Compact(3))
    world.apply(9)
    world.tell()
    while world.hand.state.compact_slice(1):
        pass
    _, answer = begin(world, CreateWatch(1, KeyRange(b"a", b"z"), 3), CreateWatch(2, KeyRange(b"a"), 3))
    assert revisions(answer) == {1: [3, 4], 2: [3]}
    assert answer.batches[0].events[0].deleted


def test_the_compacted_revision_itself_can_be_watched_from_and_the_one_before_it_not() -> None:
    world = World()
    put(world, b"a", b"a", b"a")
    world.write(Compact(3))
    world.apply(1)
    for physical in (False, True):
        if physical:
            while world.hand.state.compact_slice(10):
                pass
        stream = Stream(b"%d" % physical)
        world.poll(stream, (CreateWatch(1, KeyRange(b"a"), 3, prev=True), CreateWatch(2, KeyRange(b"a"), 2)))
        answer = told(world, stream)
        assert revisions(answer) == {1: [3, 4]}
        assert answer.compacted == ((2, 3),)
        (batch,) = answer.batches
        assert batch.events[0].prev is None, "what was before the compacted revision is gone everywhere"
        assert batch.events[1].prev is not None


def test_a_watch_of_a_future_revision_is_silent_until_then() -> None:
    world = World()
    stream, answer = begin(world, CreateWatch(1, KeyRange(b"a"), 5))
    for _ in range(3):
        assert revisions(answer) == {}
        world.poll(stream)
        put(world, b"a")
        answer = told(world, stream)
    world.poll(stream)
    put(world, b"a")
    assert revisions(told(world, stream)) == {1: [5]}


def test_no_progress_is_told_ahead_of_events() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    world.poll(stream)
    world.write(Put(b"a", b"v"))
    world.apply(1)  # readers see it, the watches do not know yet
    world.now += 9.0
    world.watches.answer_overdue_polls(world.now)
    answer = told(world, stream)
    assert (answer.revision, answer.batches) == (1, ())
    world.tell()
    world.poll(stream)
    assert revisions(told(world, stream)) == {1: [2]}


def test_who_got_no_room_in_one_answer_comes_first_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "WATCH_REPLY_BYTES", 100)
    monkeypatch.setattr(watches_module, "WATCH_BATCH_BYTES", 100)
    world = World()
    put(world, *[b"a"] * 20, b"b", b"c")
    put(world, *[b"b"] * 20)
    stream, answer = begin(
        world, CreateWatch(1, KeyRange(b"a"), 1), CreateWatch(2, KeyRange(b"b"), 1), CreateWatch(3, KeyRange(b"c"), 1)
    )
    assert set(revisions(answer)) == {1, 2}
    assert set(answer.lagging) == {1, 2, 3}
    world.poll(stream)
    answer = told(world, stream)
    assert 3 in revisions(answer), "the long history of one holds back nobody"


def test_a_poll_takes_over_from_the_one_before() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    world.poll(stream)
    world.poll(stream, (CreateWatch(2, KeyRange(b"b")),))
    first, second = (make() for make in stream.open)
    assert (first.number, second.number) == (2, 3)
    assert (first.created, second.created) == (((2, 2),), ()), "with the first answer, which may hold its first news"


def test_a_stream_that_nobody_polls_is_forgotten() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    world.now += WATCH_STREAM_IDLE_S
    world.watches.answer_overdue_polls(world.now)
    assert not world.watches.busy
    put(world, b"a")
    world.poll(stream)
    assert told(world, stream).stale


def test_a_stream_is_known_once_and_begun_once() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    stream.polled = False
    world.poll(stream, (CreateWatch(2, KeyRange(b"a")),))
    assert told(world, stream).stale, "a first poll that was doubled on its way"


def test_a_member_that_is_cut_off_says_so_to_all_who_wait() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    world.poll(stream)
    world.stale = True
    world.watches.answer_overdue_polls(world.now)
    assert told(world, stream).stale
    world.poll(stream)
    assert told(world, stream).stale


def test_a_snapshot_makes_every_watch_look_for_itself() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")), CreateWatch(2, KeyRange(b"b"), 3))
    world.poll(stream)
    for key in (b"a", b"b", b"a"):
        world.write(Put(key, b"v"))
    world.replace()
    assert revisions(told(world, stream)) == {1: [2, 4], 2: [3]}


def test_a_member_that_stops_sends_everybody_away() -> None:
    world = World()
    stream, _ = begin(world, CreateWatch(1, KeyRange(b"a")))
    world.poll(stream)
    world.watches.close()
    world.poll(stream)
    assert [make() for make in stream.open] == [Refused(Refusal.NOT_SERVING)] * 2


def test_the_watches_of_a_silent_stream_are_forgotten_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "WATCH_FORGET_AT_ONCE", 10)
    world = World()
    begin(world, *(CreateWatch(n, KeyRange(b"a%d" % n, b"b")) for n in range(25)))
    left = []
    now = world.now + watches_module.WATCH_STREAM_IDLE_S + 1
    for _ in range(4):
        world.watches.answer_overdue_polls(now)
        left.append(len(world.watches._index))
    assert left == [15, 5, 0, 0]


def test_a_few_changes_of_just_now_are_told_without_another_thread() -> None:
    hand = Hand(State.create(SimDisk(), "state", FIRST))
    watches = Watches(turn_of(lambda: hand.state), lambda: 0.0, lambda: False)
    answers: list[Callable[[], Any]] = []

    def poll(first: bool, *creates: CreateWatch) -> None:
        watches.poll(WatchPoll(1, 5.0, b"s", first, creates, ()), 5.0, answers.append)

    def change(count: int) -> None:
        hand.run(*(Put(b"a%d" % n, b"v") for n in range(count)))
        watches.keys_changed(hand.state.take_changed_keys(), hand.state.revision)
        watches.answer_others()

    everything = KeyRange(b"a", b"b")
    poll(True, CreateWatch(1, everything, 0, False, True, True))
    answers.pop()()
    poll(False)
    change(3)
    made = answers.pop()
    assert isinstance(made, watches_module.ReadyReply)
    assert [len(batch.events) for batch in made().batches] == [3]
    poll(False)
    change(watches_module.WATCH_QUICK_CHANGES + 1)
    assert not isinstance(answers[-1], watches_module.ReadyReply), "many changes are not work for the loop"
    assert len(answers.pop()().batches[0].events) == watches_module.WATCH_QUICK_CHANGES + 1
    change(1)
    change(1)
    poll(False)
    assert not isinstance(answers[-1], watches_module.ReadyReply), "nor is what was missed earlier"


def test_what_many_watches_have_missed_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[KeyRange] = []
    original = State.history

    def history(self: State, wanted: Any, low: int, high: int, **bounds: int) -> Any:
        reads.append(wanted.keys)
        return original(self, wanted, low, high, **bounds)

    monkeypatch.setattr(State, "history", history)
    hand = Hand(State.create(SimDisk(), "s", FIRST))
    watches = Watches(turn_of(lambda: hand.state), lambda: 0.0, lambda: False)
    create = tuple(
        [CreateWatch(number, KeyRange(b"a", b"b"), 0) for number in range(50)]
        + [CreateWatch(number, KeyRange(b"b", b"c"), 0) for number in range(50, 90)]
        + [CreateWatch(number, KeyRange(b"a", b"b"), 0, prev=True) for number in range(90, 100)]
    )
    answers: list[Any] = []
    watches.poll(WatchPoll(0, 0.0, b"1", True, create=create), 99.0, lambda make: answers.append(make()))
    for number in range(3):
        hand.do(Put(b"a%d" % number, b"1"))
        watches.keys_changed([b"a%d" % number], hand.state.revision)
        watches.answer_others()
    watches.poll(WatchPoll(0, 0.0, b"1", False), 99.0, lambda make: answers.append(make()))
    told = {batch.id: batch for answer in answers for batch in answer.batches}
    assert set(told) == {*range(50), *range(90, 100)}
    assert all(len(batch.events) == 3 for batch in told.values())
    assert [event.prev for event in told[90].events] == [None] * 3
    assert len(reads) == 2
