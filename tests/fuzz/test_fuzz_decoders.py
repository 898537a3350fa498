"""Every decoder that reads what others wrote: from the network, from files, from users.

`make fuzz MINUTES=n` runs these for as long, each time with other examples; `make test` runs a few of each.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.shapes import damaged, shaped
from lab.http2.recording_transport import RecordingTransport
from lab.http2.wire import BLOCK, HELLO, RecordingOwner
from raykeeper import proxy_notices
from raykeeper.actors.cluster.markers import Marker, read_markers
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.actor import deadline_of
from raykeeper.actors.member.tokens import make_token, read_token
from raykeeper.actors.proxy.console_actions import ConsoleActions
from raykeeper.actors.proxy.etcdpb.message_pool import methods
from raykeeper.actors.proxy.gateway import Method, find_method, request_of
from raykeeper.actors.proxy.header_blocks import HeaderDecoder
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http1_protocol import Http1Protocol
from raykeeper.actors.proxy.http2_connection import Http2Error
from raykeeper.actors.proxy.http2_frames import END_HEADERS, HEADERS, pack_frame
from raykeeper.actors.proxy.http_exchange import HttpError, answer_not_found
from raykeeper.actors.proxy.key_requests import basic_credentials, parse_preconditions, parse_request
from raykeeper.actors.proxy.key_values import METHODS
from raykeeper.actors.proxy.proxy_context import ProxyContext
from raykeeper.actors.proxy.proxy_registry import ProxyEntry, read_entry
from raykeeper.actors.proxy.rpc_messages import decompress
from raykeeper.actors.proxy.rpc_methods import RpcMethods
from raykeeper.actors.proxy.rpc_status import RpcError
from raykeeper.actors.recipes import in_use
from raykeeper.actors.recipes.rate_shares import RateState, decoded_state
from raykeeper.actors.tracing import parse_traceparent
from raykeeper.actors.transport.lane import (
    FrameDecoder,
    FrameKind,
    Hello,
    LaneBroken,
    LaneOffer,
    pack,
    pack_hello,
    unpack_hello,
)
from raykeeper.actors.transport.peer_frames import PeerFrame, decode_frame
from raykeeper.actors.transport.relay import RelayMembers, RelayReply, RelayRequest
from raykeeper.cli.etcd_gateway import json_object
from raykeeper.errors import DataCorrupted, InvalidArgument, KeeperError, RequestTooLarge, SpecError
from raykeeper.limits import (
    HTTP_PAGE_ITEMS,
    MAX_FRAME_DEADLINE_S,
    MAX_RPC_MESSAGE_BYTES,
    Limits,
    Settings,
    decode_settings,
)
from raykeeper.raft.configuration import InvalidChange, decode_change
from raykeeper.raft.messages import ConfigurationChange, Entry, EntryKind, HardState
from raykeeper.schema.commands import Caller, Command, CommandUnknown, decode_newer
from raykeeper.schema.frame_validation import check_request
from raykeeper.schema.frames import Request, is_poll
from raykeeper.schema.replies import Reply
from raykeeper.schema.said_by import said_by
from raykeeper.spec import ClusterSpec, check
from raykeeper.store.backup_file import Header, encode_header, verify
from raykeeper.store.data_copies import Served, read_served
from raykeeper.store.data_dir import DataDir, FormatUnknown, Identity
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log.raft_log import RaftLog
from raykeeper.store.membership_note import MembershipNote, read_note
from raykeeper.store.snapshot_file import _Manifest, unpack_image

EXAMPLES = int(os.environ.get("RAYKEEPER_FUZZ_EXAMPLES", "20"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)

ACTIONS = ConsoleActions(cast(Any, None))
CONDITIONS = st.sampled_from(["if-match", "if-none-match", "last-event-id"])


def nested() -> st.SearchStrategy[bytes]:
    """JSON that is deeper than a decoder goes."""
    return st.sampled_from([b"[" * 50_000, b'{"x":' * 10_000, b'{"x":' + b"[" * 50_000])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- from the network ------------------------------------------------------------------------------------------------

FRAMES = st.lists(
    st.builds(pack, st.sampled_from(FrameKind), st.integers(0, (1 << 64) - 1), st.binary(max_size=300)), max_size=5
).map(b"".join)


@fuzzed
@given(damaged(FRAMES), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_frames_of_a_lane(data: bytes, cuts: list[int]) -> None:
    decoder, position, turn = FrameDecoder(1 << 16), 0, 0
    try:
        while position < len(data):
            size = cuts[turn % len(cuts)]
            decoder.feed(data[position : position + size])
            position, turn = position + size, turn + 1
            assert decoder.buffered <= (1 << 16) + 64
    except LaneBroken:
        pass


@fuzzed
@given(
    damaged(st.builds(Hello, st.binary(min_size=16, max_size=16), st.integers(0, 9), st.integers(0, 9)).map(pack_hello))
)
def test_a_hello(data: bytes) -> None:
    whole = len(pack_hello(Hello(bytes(16), 0, 0)))
    unpack_hello(data[:whole].ljust(whole, b"\0"))


@fuzzed
@given(damaged(shaped(PeerFrame)), st.booleans())
def test_frames_between_members(body: bytes, signed: bool) -> None:
    check = zlib.crc32(body).to_bytes(4, "big") if signed else b""
    frame = decode_frame(check + body)
    assert frame is None or all((each.sender, each.to) == (frame.sender, frame.to) for each in frame.messages)


@fuzzed
@given(damaged(shaped(Request)))
def test_requests_of_clients(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, InvalidArgument, RequestTooLarge):
        check_request(msgspec.msgpack.decode(data, type=Request), Limits())


@fuzzed
@given(st.text() | damaged(st.just(b"Basic YW5uOnNlY3JldA==")).map(lambda header: header.decode("latin-1")))
def test_passwords_of_http(header: str) -> None:
    with contextlib.suppress(HttpError):
        given = basic_credentials({"authorization": header})
        assert given is None or given[0]


@fuzzed
@given(damaged(shaped(Caller)), damaged(st.just(make_token(Caller("ann", 1, 2.0), b"key", 7))))
def test_tokens(caller: bytes, token: bytes) -> None:
    """Whatever somebody makes up names nobody, unless a member has signed it."""
    for made_up in (caller, base64.urlsafe_b64encode(caller + bytes(32)), token):
        found = read_token(made_up, b"key", 7)
        assert found is None or found == Caller("ann", 1, 2.0)
        assert read_token(made_up, b"another", 7) is None
        assert read_token(made_up, b"", 7) is None


@fuzzed
@given(damaged(shaped(Request)), st.binary(max_size=60))
def test_requests_before_they_are_decoded(frame: bytes, said: bytes) -> None:
    """What is read of a frame on the way: its deadline, its kind, and who says to have sent it."""
    for each in (frame, said_by(frame, said)):
        assert 0.0 <= deadline_of(each) <= MAX_FRAME_DEADLINE_S
        assert isinstance(is_poll(each), bool)


RELAYED = (RelayRequest, RelayReply, RelayMembers, LaneOffer)


@fuzzed
@given(st.one_of([damaged(shaped(kind)) for kind in RELAYED]), st.sampled_from(RELAYED))
def test_frames_between_a_shell_and_its_proxy(frame: bytes, kind: Any) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        msgspec.msgpack.decode(frame, type=kind)


@fuzzed
@given(damaged(shaped(Settings, msgspec.json.encode)))
def test_settings(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, SpecError):
        settings = decode_settings(data)
        check("settings", settings.timings, settings.limits)


@fuzzed
@given(damaged(shaped(ConfigurationChange)))
def test_changes_of_the_configuration(data: bytes) -> None:
    with contextlib.suppress(InvalidChange):
        decode_change(data)


@fuzzed
@given(damaged(st.just(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")) | st.binary(max_size=80))
def test_traceparents(header: bytes) -> None:
    found = parse_traceparent(header.decode("latin-1"))
    assert found is None or parse_traceparent(found.traceparent) == found


@fuzzed
@given(damaged(shaped(ProxyEntry)), damaged(shaped(RateState, msgspec.json.encode)))
def test_what_proxies_and_rates_keep_in_the_cluster(entry: bytes, state: bytes) -> None:
    read_entry(entry)
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        decoded_state(state)


PATHS = damaged(st.just(b"/kv/team/a%2Fb")).map(lambda path: "/kv/" + path.decode("latin-1"))
QUERIES = damaged(st.sampled_from([b"prefix&limit=5&start=team/b", b"watch&from=7&prev", b"lease=0x1f", b""])).map(
    lambda query: query.decode("latin-1")
)


@fuzzed
@given(st.sampled_from(METHODS), PATHS, QUERIES, st.dictionaries(CONDITIONS, damaged(st.just(b'W/"7"')), max_size=3))
def test_requests_to_keys(method: str, path: str, query: str, headers: dict[str, bytes]) -> None:
    given = {name: value.decode("latin-1") for name, value in headers.items()}
    exchange: Any = SimpleNamespace(method=method, path=path, query=query, headers=given)
    with contextlib.suppress(HttpError):
        asked = parse_request(exchange)
        assert 1 <= asked.limit <= HTTP_PAGE_ITEMS
        assert asked.start.startswith(asked.key)
    with contextlib.suppress(HttpError):
        assert all(each.revision >= 0 for each in parse_preconditions(given))


BODIES = st.one_of([shaped(kind, msgspec.json.encode) for kind, _ in ACTIONS._actions.values()])


class Reached(Exception):
    """An action was about to be done."""


class Here:
    """Has this, and is asked for nothing else before an action is done."""

    def __init__(self, **there: Any) -> None:
        self.__dict__.update(there)

    def __getattr__(self, name: str) -> Any:
        raise Reached(name)


PROXY: Any = Here(
    backend=Here(user="ann", handle=Here(reserved=lambda kind: Here())),
    audit=SimpleNamespace(acted=lambda user, client, what, error: None),
)


@fuzzed
@given(st.sampled_from(sorted(ACTIONS._actions)), damaged(BODIES) | nested())
def test_actions_of_the_console(name: str, body: bytes) -> None:
    """What has the right form comes as far as to the members, of which there are none here; the rest is refused."""
    with pytest.raises((RpcError, Reached)):
        asyncio.run(ACTIONS.run(name, PROXY, body, cast(Any, SimpleNamespace(client="10.0.0.1"))))


@fuzzed
@given(
    st.integers(0, 2), damaged(st.binary(max_size=500).map(gzip.compress)), st.sampled_from(["", "identity", "gzip"])
)
def test_compressed_messages(flag: int, message: bytes, encoding: str) -> None:
    with contextlib.suppress(RpcError):
        assert len(decompress(flag, message, encoding)) <= MAX_RPC_MESSAGE_BYTES


@fuzzed
@given(damaged(st.just(b'{"result": {"header": {"revision": "7"}, "events": []}}\n')) | nested())
def test_answers_of_gateways(data: bytes) -> None:
    found = json_object(data)
    assert found is None or isinstance(found, dict)


@fuzzed
@given(damaged(st.just(b'{"address": "h:1", "metadata": {}}')) | nested())
def test_addresses_that_recipes_show(raw: bytes) -> None:
    assert isinstance(in_use._address(raw), str)


HEADS = st.sampled_from(
    [
        b"GET /kv/a HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PUT /kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
        b"POST /v3/kv/range HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ]
)


@fuzzed
@given(st.lists(damaged(HEADS), min_size=1, max_size=4), st.integers(1, 200))
def test_http1(requests: list[bytes], size: int) -> None:
    """Each connection is answered or closed, and leaves nothing behind."""

    async def serve() -> None:
        context = ProxyContext(
            asyncio.get_running_loop(), RpcMethods(), answer_not_found, MemberLog("proxy", "c", "p"), HeldBytes(), 10
        )
        protocol, transport = Http1Protocol(context), RecordingTransport()
        context.add(protocol)
        protocol.connection_made(transport)
        data = b"".join(requests)
        for at in range(0, len(data), size):
            if transport.is_closing():
                break
            protocol.data_received(data[at : at + size])
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not transport.written or transport.written.startswith(b"HTTP/1.1 ")
        protocol.connection_lost(None)
        context.deadlines.close()

    asyncio.run(serve())


@fuzzed
@given(damaged(shaped(Reply)))
def test_replies_of_members(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        msgspec.msgpack.decode(data, type=Reply)


@fuzzed
@given(st.lists(damaged(st.just(pack_frame(HEADERS, END_HEADERS, 1, BLOCK))), max_size=6), st.integers(1, 300))
def test_http2(frames: list[bytes], size: int) -> None:
    owner, data = RecordingOwner(), HELLO + b"".join(frames)
    for at in range(0, len(data), size):
        owner.feed(data[at : at + size])
        if owner.connection.failed:
            break


@fuzzed
@given(damaged(st.just(BLOCK)))
def test_header_blocks(block: bytes) -> None:
    with contextlib.suppress(Http2Error):
        HeaderDecoder(lambda fields: fields, HeldBytes().open_share(lambda: None)).decode(block)


GATEWAY: list[Method] = [
    found for path in ("kv/range", "kv/put", "kv/txn", "lease/grant", "watch") if (found := find_method(f"/v3/{path}"))
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["key", "value", "range_end", "success", "compare", "requestPut", "TTL", "ID", "?"]), inner
        ),
    ),
    max_leaves=12,
)


@fuzzed
@given(st.sampled_from(GATEWAY), damaged(JSON.map(msgspec.json.encode)))
def test_json_of_the_gateway(method: Method, body: bytes) -> None:
    with contextlib.suppress(RpcError):
        request_of(method, body)


@fuzzed
@given(st.sampled_from(sorted(methods())), st.binary(max_size=100))
def test_messages_of_etcd(path: str, data: bytes) -> None:
    from google.protobuf.message import DecodeError

    with contextlib.suppress(DecodeError):
        methods()[path].request.FromString(data)


# --- from files ------------------------------------------------------------------------------------------------------


NOTICE = json.dumps(
    dict(zip(proxy_notices.ProxyNotice._fields, ("c", 1, "ray", "http://x:1", "", False, 1, 2, ""), strict=True))
).encode()


@fuzzed
@given(damaged(st.just(NOTICE)))
def test_notices_of_proxies(folder: Path, data: bytes) -> None:
    path = folder / "proxy-1-2.json"
    path.write_bytes(data)
    path.chmod(0o600)
    notice = proxy_notices._read(str(path))
    assert notice is None or notice.pid > 0


@fuzzed
@given(damaged(shaped(Command)))
def test_entries_of_the_log(data: bytes) -> None:
    for decode in (decode_newer, lambda data: msgspec.msgpack.decode(data, type=Command)):
        with contextlib.suppress(msgspec.MsgspecError, RecursionError, CommandUnknown):
            decode(data)


@pytest.fixture(scope="module")
def segments(folder: Path) -> dict[str, bytes]:
    """The files of a small log."""
    path = folder / "log"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=1 << 20, segment_bytes=8192)
    for index in range(1, 9):
        log.append([Entry(index, 1, EntryKind.NORMAL, b"%d" % index * 700)], HardState(1, 1, index - 1), sync=True)
    log.close()
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@fuzzed
@given(st.data())
def test_segments_of_the_log(segments: dict[str, bytes], folder: Path, data: st.DataObject) -> None:
    """Whatever happens to one file: what is read is what was written, from its beginning, or nothing is."""
    name = data.draw(st.sampled_from(sorted(segments)))
    changed = data.draw(damaged(st.just(segments[name])))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for each, content in segments.items():
            path = Path(place, each)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(changed if each == name else content)
        try:
            log = RaftLog.open(RocksDisk(), place, cache_bytes=1 << 20, segment_bytes=8192)
        except KeeperError:
            return
        try:
            for entry in log.entries(log.first_index(), log.last_index() + 1, 1 << 30):
                assert entry.data == b"%d" % entry.index * 700
        except DataCorrupted:
            pass
        finally:
            log.close()


@fuzzed
@given(damaged(shaped(Identity, msgspec.json.encode)))
def test_the_identity_of_a_member(folder: Path, data: bytes) -> None:
    (folder / "identity.json").write_bytes(data)
    with contextlib.suppress(DataCorrupted, FormatUnknown):
        DataDir.read_identity(RocksDisk(), str(folder))


@fuzzed
@given(damaged(shaped(MembershipNote, msgspec.json.encode)), damaged(shaped(Served, msgspec.json.encode)))
def test_notes_beside_the_data(folder: Path, note: bytes, served: bytes) -> None:
    for name in ("membership.json", "served.json"):
        (folder / name).write_bytes(note if name == "membership.json" else served)
    read_note(RocksDisk(), str(folder))
    read_served(str(folder))


@fuzzed
@given(damaged(shaped(Marker, msgspec.json.encode)))
def test_markers(folder: Path, data: bytes) -> None:
    (folder / "cluster-000000000000004d.json").write_bytes(data)
    assert {marker.cluster for marker in read_markers(str(folder), "c")} <= {0x4D}


@fuzzed
@given(damaged(shaped(Header, msgspec.json.encode)), st.binary(max_size=100), st.booleans())
def test_backups(folder: Path, header: bytes, image: bytes, signed: bool) -> None:
    path = folder / "backup"
    head = encode_header(Header("c", 1, 1, 1, 0, 1, 1, "i", len(image), "", 0.0))
    magic = head[: head.index(b"{") - 4] if b"{" in head else head[:8]
    body = len(header).to_bytes(4, "big") + header + (hashlib.sha256(header).digest() if signed else bytes(32))
    path.write_bytes(magic + body + image)
    with contextlib.suppress(DataCorrupted):
        verify(RocksDisk(), str(path))


@fuzzed
@given(damaged(shaped(_Manifest)), st.binary(max_size=100), st.booleans())
def test_images_of_snapshots(folder: Path, manifest: bytes, rest: bytes, signed: bool) -> None:
    """Also one that somebody has made up, with the right digest: nothing is written outside of its folder."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        stream = Path(place, "stream")
        stream.write_bytes(len(manifest).to_bytes(8, "big") + manifest + rest)
        id = hashlib.sha256(manifest).hexdigest() if signed else "0" * 64
        before = set(os.listdir(place))
        with contextlib.suppress(DataCorrupted):
            unpack_image(RocksDisk(), str(stream), 0, stream.stat().st_size, id, f"{place}/target")
        assert set(os.listdir(place)) <= before | {"target"}


def load_spec(spec: Any) -> None:
    said = ""
    try:
        ClusterSpec.load(spec)
    except SpecError as error:
        said = str(error)
    assert "\n" not in said


YAML = Path(__file__).resolve().parents[2] / "cluster.yaml"


@fuzzed
@given(damaged(st.just(YAML.read_bytes())))
def test_specs(folder: Path, data: bytes) -> None:
    (folder / "cluster.yaml").write_bytes(data)
    load_spec(folder / "cluster.yaml")


@fuzzed
@given(shaped(ClusterSpec, lambda value: value if isinstance(value, dict) else {}))
def test_specs_of_any_values(value: Any) -> None:
    load_spec(value)
