"""Calls of one key are answered without a coroutine, in batches, to the same effect as with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.lanes import until
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy, LabUnaryCall, lab_proxy
from raykeeper.actors.client.loop_bridge import bridge_to
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, PutResponse, RangeRequest, RangeResponse
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError
from raykeeper.limits import PROXY_LONG_ANSWER_BYTES

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"


@pytest.fixture
def proxy() -> Iterator[LabProxy]:
    with lab_proxy() as made:
        yield made


def put(key: bytes, value: bytes = b"v") -> bytes:
    return PutRequest(key=key, value=value).SerializeToString()


def on_loop(proxy: LabProxy, work: Callable[[], Any]) -> Any:
    """What a function returns that runs in one step of the loop."""

    async def run() -> Any:
        return work()

    return proxy.run(run())


def begin(proxy: LabProxy, path: str, request: bytes, timeout: float = math.inf) -> LabUnaryCall:
    """Begin a call; for one step of the loop."""
    call = LabUnaryCall(path, timeout, None)
    assert proxy.services.direct[path](request, call)
    return call


def open_calls(proxy: LabProxy) -> int:
    async def count() -> int:
        return bridge_to(proxy.backend.hub)._open

    return proxy.run(count())


def test_puts_of_one_step_travel_in_one_frame(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(proxy.call(PUT, put(b"first")), bytes)  # a session is open
    until(lambda: not proxy.backend.hub._dispatch_core.pending, "nothing is in flight")
    hub, frames = proxy.backend.hub, []
    send = hub._send

    def counted(core: Any, outgoing: Any, reader: Any) -> None:
        frames.append(outgoing)
        send(core, outgoing, reader)

    monkeypatch.setattr(hub, "_send", counted)
    calls = on_loop(proxy, lambda: [begin(proxy, PUT, put(b"k%d" % n)) for n in range(50)])
    revisions = [PutResponse.FromString(call.answered.result(PATIENCE)).header.revision for call in calls]
    assert revisions == list(range(revisions[0], revisions[0] + 50))
    writes = [frame for frame in frames if b"k49" in frame.frame]
    assert len(writes) == 1
    assert b"k0" in writes[0].frame
    assert open_calls(proxy) == 0


def test_a_range_sees_the_put_before(proxy: LabProxy) -> None:
    assert isinstance(proxy.call(PUT, put(b"a", b"1")), bytes)
    answer = proxy.call(RANGE, RangeRequest(key=b"a").SerializeToString())
    assert isinstance(answer, bytes)
    found = RangeResponse.FromString(answer)
    assert [(pair.key, pair.value) for pair in found.kvs] == [(b"a", b"1")]
    assert found.count == 1


def test_what_has_no_effect_says_so(proxy: LabProxy) -> None:
    assert proxy.call(PUT, put(b"")) == (3, "etcdserver: key is not provided")
    assert proxy.call(PUT, put(b"k", bytes(2_000_000))) == (3, "etcdserver: request is too large")
    assert proxy.call(PUT, PutRequest(key=b"k", lease=77).SerializeToString()) == (
        5,
        "etcdserver: requested lease not found",
    )
    unreadable = proxy.call(PUT, b"\xff")
    assert isinstance(unreadable, tuple)
    assert unreadable[0] == 13


def test_a_call_whose_client_is_gone_is_given_up(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(proxy.call(PUT, put(b"first")), bytes)
    monkeypatch.setattr(proxy.backend.hub, "_send", lambda core, outgoing, reader: None)  # nothing arrives
    call = on_loop(proxy, lambda: begin(proxy, PUT, put(b"k")))
    until(lambda: proxy.backend.hub._dispatch_core.pending == 1, "it was submitted")
    assert call.when_ended is not None
    on_loop(proxy, call.when_ended)
    error = call.answered.exception(20)
    assert isinstance(error, RpcError)
    assert error.code is RpcCode.UNAVAILABLE
    assert open_calls(proxy) == 0
    assert proxy.backend.hub._dispatch_core.pending == 0


def test_a_deadline_ends_a_call(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(proxy.call(PUT, put(b"first")), bytes)
    monkeypatch.setattr(proxy.backend.hub, "_send", lambda core, outgoing, reader: None)  # nothing arrives
    call = on_loop(proxy, lambda: begin(proxy, PUT, put(b"k"), 0.05))
    error = call.answered.exception(20)
    assert isinstance(error, RpcError)
    assert (error.code, error.text) == (RpcCode.UNAVAILABLE, "etcdserver: request timed out")
    assert open_calls(proxy) == 0


def test_a_mistake_in_one_answer_ends_that_call_alone(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    set_header = proxy.backend.set_header

    def mistaken(header: Any, revision: int) -> None:
        if not revision % 2:
            raise KeyError("a mistake of ours")
        set_header(header, revision)

    monkeypatch.setattr(proxy.backend, "set_header", mistaken)
    calls = on_loop(proxy, lambda: [begin(proxy, PUT, put(b"k%d" % n)) for n in range(10)])
    ended = [call.answered.exception(20) for call in calls]
    assert [type(error) for error in ended].count(KeyError) == 5
    assert ended.count(None) == 5
    assert open_calls(proxy) == 0


def test_long_answers_are_made_in_turn(proxy: LabProxy) -> None:
    value = bytes(PROXY_LONG_ANSWER_BYTES + 1)
    assert isinstance(proxy.call(PUT, put(b"long", value)), bytes)
    request = RangeRequest(key=b"long").SerializeToString()
    calls = on_loop(proxy, lambda: [begin(proxy, RANGE, request) for _ in range(5)])
    for call in calls:
        assert RangeResponse.FromString(call.answered.result(PATIENCE)).kvs[0].value == value
    until(lambda: not proxy.backend._answering, "no task is left")


def test_a_call_that_is_not_submitted_yet_is_given_up_at_once(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(proxy.call(PUT, put(b"k", b"first")), bytes)
    until(lambda: not proxy.backend.hub._dispatch_core.pending, "nothing is in flight")

    def begin_and_give_up() -> LabUnaryCall:
        call = begin(proxy, PUT, put(b"k", b"given up"))
        assert call.when_ended is not None
        call.when_ended()
        assert call.answered.done()
        return call

    error = on_loop(proxy, begin_and_give_up).answered.exception(PATIENCE)
    assert isinstance(error, RpcError)
    answer = proxy.call(RANGE, RangeRequest(key=b"k").SerializeToString())
    assert isinstance(answer, bytes)
    assert RangeResponse.FromString(answer).kvs[0].value == b"first", "it was not sent"
    assert open_calls(proxy) == 0


class HeldTurns:
    """Nobody's turn to make a long answer comes."""

    def __init__(self, proxy: LabProxy) -> None:
        self._proxy = proxy

    def __enter__(self) -> None:
        self._proxy.run(self._proxy.backend._long_answers.acquire())

    def __exit__(self, *error: object) -> None:
        on_loop(self._proxy, self._proxy.backend._long_answers.release)


def test_a_long_answer_counts_while_it_waits_for_its_turn(proxy: LabProxy) -> None:
    value, backend = bytes(PROXY_LONG_ANSWER_BYTES + 1), proxy.backend
    assert isinstance(proxy.call(PUT, put(b"long", value)), bytes)
    request = RangeRequest(key=b"long").SerializeToString()
    backend._room.limit = 5 * len(value) // 2
    with HeldTurns(proxy):
        calls = on_loop(proxy, lambda: [begin(proxy, RANGE, request) for _ in range(5)])
        until(lambda: sum(call.answered.done() for call in calls) == 3, "there is no room for them")
        assert 2 * len(value) < backend._room.held < backend._room.limit
        for call in calls:
            if call.answered.done():
                error = call.answered.exception()
                assert isinstance(error, RpcError)
                assert error.text == "etcdserver: too many requests"
    assert sum(call.answered.exception(PATIENCE) is None for call in calls) == 2
    until(lambda: backend._room.held == 0)


def test_a_call_that_ends_gives_up_its_turn(proxy: LabProxy) -> None:
    value, backend = bytes(PROXY_LONG_ANSWER_BYTES + 1), proxy.backend
    assert isinstance(proxy.call(PUT, put(b"long", value)), bytes)
    request = RangeRequest(key=b"long").SerializeToString()

    def end(call: LabUnaryCall) -> None:
        """As when its client is gone."""
        call.ended = True
        assert call.when_ended is not None
        call.when_ended()

    with HeldTurns(proxy):
        calls = on_loop(proxy, lambda: [begin(proxy, RANGE, request) for _ in range(5)])
        until(lambda: len(backend._answering) == 5)
        assert backend._room.held > 5 * len(value)
        on_loop(proxy, lambda: [end(call) for call in calls])
        for call in calls:
            assert isinstance(call.answered.exception(PATIENCE), RpcError), "no answer is made"
        until(lambda: backend._room.held == 0)
        assert not backend._answering


def test_no_answer_is_made_for_a_call_that_has_ended(proxy: LabProxy) -> None:
    assert isinstance(proxy.call(PUT, put(b"k")), bytes)

    def begin_and_end() -> LabUnaryCall:
        call = begin(proxy, RANGE, RangeRequest(key=b"k").SerializeToString())
        call.ended = True
        return call

    assert isinstance(on_loop(proxy, begin_and_end).answered.exception(PATIENCE), RpcError)


def test_other_calls_are_left_to_a_coroutine(proxy: LabProxy) -> None:
    whole = RangeRequest(key=b"a", range_end=b"b").SerializeToString()
    assert not on_loop(proxy, lambda: proxy.services.direct[RANGE](whole, LabUnaryCall(RANGE, 1, None)))
    named = LabUnaryCall(PUT, 1, {"token": "x"})
    assert not on_loop(proxy, lambda: proxy.services.direct[PUT](put(b"k"), named))
    assert not named.answered.done()


def test_who_calls_is_looked_at_whatever_was_called_before(proxy: LabProxy) -> None:
    """Each call is looked at by itself, also after one of which nothing had to be checked."""
    request = RangeRequest(key=b"a").SerializeToString()

    def taken(metadata: dict[str, str]) -> bool:
        call = LabUnaryCall(RANGE, PATIENCE, metadata)
        return bool(proxy.services.direct[RANGE](request, call))

    def look() -> list[bool]:
        plain, named = {"x": "1"}, {"x": "1", "token": "t"}
        return [taken(each) for each in (plain, plain, named, plain, {"hasleader": "true"}, named, {"x": "1"})]

    assert on_loop(proxy, look) == [True, True, False, True, False, False, True]


def test_before_the_hub_is_open_a_coroutine_opens_it(proxy: LabProxy) -> None:
    proxy.backend._bridge, bridge = None, proxy.backend._bridge
    call = LabUnaryCall(PUT, 1, None)
    assert not on_loop(proxy, lambda: proxy.backend.ask_directly(None, call, lambda answer: b""))  # type: ignore[arg-type]
    proxy.backend._bridge = bridge
