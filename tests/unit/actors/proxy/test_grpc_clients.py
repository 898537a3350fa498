"""gRPC's own Python client, over real sockets, against the proxy's port."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lab.http2.port import Port
from lab.patience import PATIENCE, until, until_still
from raykeeper.actors.proxy.http2_sender import Stream
from raykeeper.actors.proxy.rpc_calls import WireStreamCall, WireUnaryCall
from raykeeper.limits import MAX_RPC_MESSAGE_BYTES, PROXY_STREAM_SEND_BYTES

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
def channel(port: Port) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(port.target, options=UNLIMITED) as channel:
        yield channel


def fails(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("method", ["Echo", "Direct"])
@pytest.mark.parametrize("size", [0, 1, 100, 16_379, 16_380, 65_530, 65_531, 1_000_000, MAX_RPC_MESSAGE_BYTES])
def test_unary_calls(channel: grpc.Channel, method: str, size: int) -> None:
    echo = channel.unary_unary(f"/test.Test/{method}")
    assert echo(b"e" * size, timeout=PATIENCE) == b"e" * size
    assert echo(b"f" * size) == b"f" * size


def test_large_answers(channel: grpc.Channel) -> None:
    assert len(channel.unary_unary("/test.Test/Size")(b"30000000", timeout=PATIENCE)) == 30_000_000


def test_many_at_once(channel: grpc.Channel, port: Port) -> None:
    """Also long messages, more than may be on their way at one time."""
    port.held._room = port.held._all_room = 4_000_000
    echo = channel.unary_unary("/test.Test/Echo")
    calls = [(size, echo.future(b"x" * size, timeout=PATIENCE)) for size in [10, 1_500_000, 70_000, 100_000] * 25]
    assert [len(call.result()) for _, call in calls] == [size for size, _ in calls]
    until(lambda: port.held.held == 0 and port.held._room == 4_000_000)


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.NoCompression])
def test_compressed_requests(port: Port, algorithm: grpc.Compression) -> None:
    with grpc.insecure_channel(port.target, compression=algorithm) as channel:
        text = b"the same again " * 1000
        assert channel.unary_unary("/test.Test/Echo")(text, timeout=PATIENCE) == text
        both = channel.stream_stream("/test.Test/Both")(iter([text, b"", text]), timeout=PATIENCE)
        assert list(both) == [text, b"", text]


def test_a_compression_that_there_is_not(port: Port) -> None:
    with grpc.insecure_channel(port.target, compression=grpc.Compression.Deflate) as channel:
        code, text = fails(lambda: channel.unary_unary("/test.Test/Echo")(b"x" * 10_000, timeout=PATIENCE))
    assert (code, text) == (
        grpc.StatusCode.UNIMPLEMENTED,
        'grpc: Decompressor is not installed for grpc-encoding "deflate"',
    )


def test_streams_of_answers(channel: grpc.Channel) -> None:
    count = channel.unary_stream("/test.Test/Count")
    assert [int(each) for each in count(b"5000", timeout=PATIENCE)] == list(range(5000))
    assert list(count(b"0", timeout=PATIENCE)) == []


def test_streams_of_requests(channel: grpc.Channel) -> None:
    messages = [b"a" * size for size in (0, 1, 100_000, 5, 1_500_000, 70_000)] * 3
    total = channel.stream_unary("/test.Test/Sum")(iter(messages), timeout=PATIENCE)
    assert int(total) == sum(map(len, messages))


def test_streams_both_ways(channel: grpc.Channel) -> None:
    messages = [b"%d" % number * 1000 for number in range(2000)]
    assert list(channel.stream_stream("/test.Test/Both")(iter(messages), timeout=PATIENCE)) == messages


def test_an_answer_comes_before_the_next_request(channel: grpc.Channel) -> None:
    """A keep-alive each: neither side waits for more."""
    got = threading.Event()

    def requests() -> Iterator[bytes]:
        for number in range(20):
            yield b"%d" % number
            assert got.wait(PATIENCE)
            got.clear()

    answers = []
    for answer in channel.stream_stream("/test.Test/Both")(requests(), timeout=PATIENCE):
        answers.append(answer)
        got.set()
    assert answers == [b"%d" % number for number in range(20)]


def test_errors(channel: grpc.Channel) -> None:
    fail = channel.unary_unary("/test.Test/Fail")
    for text in ("etcdserver: mvcc: required revision has been compacted", "100% \u00e9\n\t", "", "x" * 3000):
        assert fails(lambda text=text: fail(text.encode(), timeout=PATIENCE)) == (grpc.StatusCode.OUT_OF_RANGE, text)
    code, _ = fails(lambda: fail(b"y" * 1_000_000, timeout=PATIENCE))
    assert code == grpc.StatusCode.OUT_OF_RANGE


def test_an_error_that_is_raised_again_and_again_keeps_nothing(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.Test/FailAlike")
    for _ in range(100):
        assert fails(lambda: call(b"", timeout=PATIENCE)) == (grpc.StatusCode.NOT_FOUND, "the same")
    assert Port.ALIKE.__traceback__ is None
    assert Port.ALIKE.__context__ is None


def test_an_error_after_an_answer(channel: grpc.Channel) -> None:
    answers = channel.unary_stream("/test.Test/FailLater")(b"", timeout=PATIENCE)
    assert next(answers) == b"first"
    assert fails(lambda: next(answers))[0] == grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/test.Test/Nothing", "unknown method Nothing for service test.Test"),
        ("/no.Service/Echo", "unknown service no.Service"),
        ("/nothing", 'malformed method name: "/nothing"'),
    ],
)
def test_unknown_methods(channel: grpc.Channel, path: str, text: str) -> None:
    call = channel.unary_unary(path)
    assert fails(lambda: call(b"x" * 100_000, timeout=PATIENCE)) == (grpc.StatusCode.UNIMPLEMENTED, text)


@pytest.mark.parametrize("method", ["Bug", "DirectBug"])
def test_a_mistake_of_ours_ends_one_call(channel: grpc.Channel, port: Port, method: str) -> None:
    code, text = fails(lambda: channel.unary_unary(f"/test.Test/{method}")(b"", timeout=PATIENCE))
    assert code == grpc.StatusCode.UNKNOWN
    assert text.startswith("internal error")
    assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"


def test_a_message_that_is_too_long(channel: grpc.Channel) -> None:
    text = f"grpc: received message larger than max ({MAX_RPC_MESSAGE_BYTES + 1} vs. {MAX_RPC_MESSAGE_BYTES})"
    expected = grpc.StatusCode.RESOURCE_EXHAUSTED, text
    long = b"x" * (MAX_RPC_MESSAGE_BYTES + 1)
    assert fails(lambda: channel.unary_unary("/test.Test/Echo")(long, timeout=PATIENCE)) == expected
    assert fails(lambda: channel.stream_unary("/test.Test/Sum")(iter([b"x", long]), timeout=PATIENCE)) == expected


def test_a_bomb(port: Port) -> None:
    with grpc.insecure_channel(port.target, compression=grpc.Compression.Gzip, options=UNLIMITED) as channel:
        code, text = fails(lambda: channel.unary_unary("/test.Test/Echo")(bytes(100_000_000), timeout=PATIENCE))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text == f"grpc: received message after decompression larger than max {MAX_RPC_MESSAGE_BYTES}"


def test_metadata(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.Test/Metadata")
    assert call(b"hasleader", metadata=[("hasleader", "true")], timeout=PATIENCE) == b"/test.Test/Metadata true True"
    assert call(b"hasleader", timeout=PATIENCE) == b"/test.Test/Metadata None True"
    assert call(b"hasleader") == b"/test.Test/Metadata None False"
    assert call(b"x-bin", metadata=[("x-bin", b"\x01\x02")]).split()[1] == b"AQI"
    for number in range(3000):
        value = f"v{number}"
        assert call(b"n", metadata=[("n", value), ("n", "second")]).split()[1] == value.encode()


@pytest.mark.parametrize("method", ["Sleep", "Never"])
def test_deadlines(channel: grpc.Channel, port: Port, method: str) -> None:
    def has_begun() -> bool:  # on a slow machine the time may be over before the call has come
        code, _ = fails(lambda: channel.unary_unary(f"/test.Test/{method}")(b"", timeout=0.3))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        return port.begun > 0

    until(has_begun)
    until(lambda: port.cancelled == port.begun)
    code, _ = fails(lambda: list(channel.unary_stream("/test.Test/Count")(b"1000000000", timeout=0.3)))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", ["Sleep", "Never"])
def test_cancelled_by_the_client(channel: grpc.Channel, port: Port, method: str) -> None:
    call = channel.unary_unary(f"/test.Test/{method}").future(b"", timeout=PATIENCE)
    until(lambda: port.begun == 1)
    call.cancel()
    until(lambda: port.cancelled == 1)
    for late in port.never:  # an answer for nobody
        port.loop.call_soon_threadsafe(late.answer, b"late")
    assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"


def test_a_lost_connection_ends_its_calls(port: Port) -> None:
    channel = grpc.insecure_channel(port.target)
    sleeping = [channel.unary_unary("/test.Test/Sleep").future(b"") for _ in range(10)]
    stream = channel.unary_stream("/test.Test/Flood")(b"")
    next(stream)
    until(lambda: port.begun == 11)
    channel.close()
    until(lambda: port.cancelled == 11)
    assert len(sleeping) == 10
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.held.held == 0)


def test_a_client_that_reads_slowly_makes_the_handler_wait(channel: grpc.Channel, port: Port) -> None:
    stream = channel.unary_stream("/test.Test/Flood")(b"")
    next(stream)
    before = until_still(lambda: port.sent)
    assert before < 200_000_000, "it does not wait"
    assert port.held.held < 2 * PROXY_STREAM_SEND_BYTES
    assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x", "others are not held up"
    for _ in range(before // 50_000 + 400):  # its library has taken as much as its windows have grown to
        if port.sent > before:
            break
        next(stream)
    until(lambda: port.sent > before)
    stream.cancel()
    until(lambda: port.ended == 1)


def test_a_handler_that_takes_slowly_makes_the_client_wait(channel: grpc.Channel, port: Port) -> None:
    given = 0

    def requests() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield bytes(10_000)

    call = channel.stream_unary("/test.Test/Slow").future(requests())
    time.sleep(1.0)
    assert port.held.held < 100_000
    assert given < 100
    call.cancel()
    until(lambda: port.held.held == 0)


def test_a_stop_lets_calls_end(port: Port) -> None:
    with grpc.insecure_channel(port.target) as channel:
        running = channel.unary_unary("/test.Test/Never").future(b"", timeout=PATIENCE)
        stream = channel.unary_stream("/test.Test/Flood")(b"", timeout=PATIENCE)
        next(stream)
        until(lambda: port.begun == 2)
        with ThreadPoolExecutor() as pool:
            port.loop.call_soon_threadsafe(port.loop.call_later, 0.3, port.never[0].answer, b"in time")
            stopping = pool.submit(port.run, port.listener.close(1.0))
            assert running.result() == b"in time"
            code, text = fails(lambda: [*stream])
            stopping.result()
        assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
        assert port.listener.connection_count() == 0
        code, _ = fails(lambda: channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE))
        assert code == grpc.StatusCode.UNAVAILABLE


def test_calls_leave_no_cycles(channel: grpc.Channel) -> None:
    """So they are freed when they end, and not by a collection, which would stop the loop."""
    paths = ["Echo", "Direct", "Size", "Fail"]
    calls = [channel.unary_unary(f"/test.Test/{path}") for path in paths]
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            for call in calls:
                call.future(b"100000", timeout=PATIENCE).exception()
            assert len(list(channel.unary_stream("/test.Test/Count")(b"10"))) == 10
        kinds = (WireUnaryCall, WireStreamCall, Stream)
        left = [each for each in gc.get_objects() if isinstance(each, kinds)]
        assert len(left) < 20
    finally:
        gc.enable()


def test_clients_that_ping(port: Port) -> None:
    options = [("grpc.keepalive_time_ms", 100), ("grpc.keepalive_permit_without_calls", 1)]
    options += [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.min_time_between_pings_ms", 50)]
    with grpc.insecure_channel(port.target, options=options) as channel:
        call = channel.unary_unary("/test.Test/Sleep").future(b"", timeout=1.0)
        assert fails(call.result)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"
