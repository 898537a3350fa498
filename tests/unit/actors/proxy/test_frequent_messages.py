"""The messages that are read and made by their bytes: protobuf is the oracle, and nothing that was answered is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.http2.port_process import PLAIN_MALLOC
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.etcdpb.kv_pb2 import KeyValue
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse, ResponseHeader
from raykeeper.actors.proxy.frequent_messages import key_and_value, only_key
from raykeeper.actors.proxy.kv_service import KvService
from raykeeper.schema.answers import Item, PutAnswer, RangeAnswer

KEYS = st.binary(max_size=300)
NUMBERS = st.integers(0, (1 << 63) - 1)
IDS = st.integers(0, (1 << 64) - 1)


def service(cluster: int = 7, member: int = 1, term: int = 3) -> KvService:
    handle: Any = SimpleNamespace(_view=SimpleNamespace(space=b"u"), cluster_id=cluster, cluster_name="test")
    backend = EtcdBackend(handle, member)
    backend._hub = cast(Any, SimpleNamespace(term=term))
    return KvService(backend, cast(Any, None))


@example(b"")
@example(b"\x0a")
@example(b"\x0a\0")
@example(b"\x0a\x80")
@given(st.binary(max_size=140) | st.builds(lambda key: RangeRequest(key=key).SerializeToString(), KEYS))
def test_a_key_is_taken_from_bytes_only_if_protobuf_reads_the_same(request: bytes) -> None:
    key = only_key(request)
    if key:
        assert RangeRequest.FromString(request) == RangeRequest(key=key)


@given(KEYS, st.booleans(), NUMBERS)
def test_all_that_asks_for_more_is_left_to_protobuf(key: bytes, serializable: bool, limit: int) -> None:
    request = RangeRequest(key=key, serializable=serializable, limit=limit)
    plain = not serializable and not limit and len(key) < 0x80
    assert only_key(request.SerializeToString()) == (key if plain else b"")


@example(b"")
@example(b"\x0a\x01k\x12")
@example(b"\x0a\x01k\x12\x00")
@example(b"\x0a\x01k\x12\x80")
@example(b"\x0a\x01k\x12\x80\x80\x00")
@example(b"\x0a\x00\x12\x01v")
@example(b"\x0a\x01k\x12\x01v\x18\x01")
@given(
    st.binary(max_size=140)
    | st.builds(lambda head, tail: b"\x0a\x01k\x12" + head + tail, st.binary(max_size=3), st.binary(max_size=140))
)
def test_key_and_value_are_taken_from_bytes_only_if_protobuf_reads_the_same(request: bytes) -> None:
    if found := key_and_value(request):
        key, value = found
        assert key
        assert PutRequest.FromString(request) == PutRequest(key=key, value=value)


@example(b"k", bytes(127), 0, False)
@example(b"k", bytes(128), 0, False)
@example(b"k", bytes(16_383), 0, False)
@example(b"k", bytes(16_384), 0, False)
@example(bytes(128), b"v", 0, False)
@given(KEYS, st.binary(max_size=300), NUMBERS, st.booleans())
def test_all_puts_that_ask_for_more_are_left_to_protobuf(key: bytes, value: bytes, lease: int, prev: bool) -> None:
    request = PutRequest(key=key, value=value, lease=lease, prev_kv=prev).SerializeToString()
    plain = not lease and not prev and 0 < len(key) < 0x80 and 0 < len(value) < 0x4000
    assert key_and_value(request) == ((key, value) if plain else None)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)), max_size=8))
def test_a_header_that_is_given_out_again_is_of_the_same_numbers(numbers: list[tuple[int, int, int]]) -> None:
    kv = service()
    for revision, member, term in numbers:
        kv._backend.member, cast(Any, kv._backend.hub).term = member, term
        header = ResponseHeader(cluster_id=7, member_id=member, revision=revision, raft_term=term)
        assert kv._encode_header(revision) == RangeResponse(header=header).SerializeToString()


@given(KEYS, st.binary(max_size=40_000), st.lists(NUMBERS, min_size=4, max_size=4), IDS, IDS, NUMBERS, NUMBERS)
def test_an_answer_is_what_protobuf_makes(
    key: bytes, value: bytes, numbers: list[int], cluster: int, member: int, term: int, revision: int
) -> None:
    kv, header = (
        service(cluster, member, term),
        ResponseHeader(cluster_id=cluster, member_id=member, revision=revision, raft_term=term),
    )
    create, mod, version, lease = numbers
    pair = KeyValue(key=key, create_revision=create, mod_revision=mod, version=version, value=value, lease=lease)
    found = RangeAnswer(revision, (Item(b"u" + key, value, create, mod, version, lease),), 1)
    assert kv._one_key(found) == RangeResponse(header=header, kvs=[pair], count=1).SerializeToString()
    assert kv._one_key(RangeAnswer(revision, (), 0)) == RangeResponse(header=header).SerializeToString()
    assert kv._put_response(PutAnswer(revision)) == RangeResponse(header=header).SerializeToString()


_PROGRAM = """
import os
from types import SimpleNamespace

from lab.http2.port_process import memory
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.etcdpb import rpc_pb2
from raykeeper.actors.proxy.kv_service import KvService
from raykeeper.schema.answers import Item, PutAnswer, RangeAnswer
from raykeeper.schema.operations import Put

handle = SimpleNamespace(_view=SimpleNamespace(space=b"u"), cluster_id=7, cluster_name="test")
backend = EtcdBackend(handle, 1)
backend._hub = SimpleNamespace(term=3)
asked = []


def ask_directly(request, call, make):
    assert type(request) is Put and len(request.value) == 10_000
    asked.append(len(make(PutAnswer(9))))
    return True


backend.ask_directly = ask_directly
kv, value = KvService(backend, None), bytes(100_000)
found = RangeAnswer(9, (Item(b"uk", value, 2, 9, 3, 0),), 1)
request = rpc_pb2.PutRequest(key=b"k", value=value[:10_000]).SerializeToString()


def go_on(rounds):
    for _ in range(rounds):
        assert len(kv._one_key(found)) > 100_000
        for _ in range(10):
            assert kv.put_directly(request, None)


go_on(10)
before = memory(os.getpid())
go_on(3000)
assert len(asked) == 30_100 and all(asked)
print(memory(os.getpid()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is not to be seen here")
def test_no_value_that_was_answered_or_written_is_kept() -> None:
    """300 MB of each in all, in a process of its own."""
    command = (sys.executable, "-c", _PROGRAM)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=PLAIN_MALLOC)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 100_000_000
