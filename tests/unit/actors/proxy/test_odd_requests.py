"""Whatever a client sends, it gets an answer or one of etcd's errors, and nothing is left behind in the services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.proxy.etcd_errors import LAST_VOTER
from raykeeper.actors.proxy.etcdpb.message_pool import methods
from raykeeper.actors.proxy.rpc_status import RpcCode

WAITING = {"/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"}
"""These may wait for others."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[LabProxy]:
    with lab_proxy() as proxy:
        yield proxy


NUMBERS = [0, 1, 2, 7, (1 << 31) - 1, 1 << 62, (1 << 63) - 1]
SIGNED = [*NUMBERS, -1, -7, -(1 << 63)]
VALUES: dict[int, Any] = {
    FieldDescriptor.TYPE_BYTES: st.sampled_from([b"", b"\0", b"a", b"\xff\xff", b"k" * 20_000]),
    FieldDescriptor.TYPE_STRING: st.sampled_from(["", "a", "ä\0", "3.5.0"]),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT64: st.sampled_from(SIGNED),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([*NUMBERS, (1 << 64) - 1]),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 4, 5, 99, -1]),
}


def messages(kind: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any message of a type, with extreme values in any fields."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        message = kind()
        for field in kind.DESCRIPTOR.fields:
            if depth > 3 or not draw(st.booleans()):
                continue
            nested = field.message_type is not None
            value = messages(field.message_type._concrete_class, depth + 1) if nested else VALUES[field.type]
            if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
                getattr(message, field.name).extend(draw(st.lists(value, max_size=3)))
            elif nested:
                getattr(message, field.name).CopyFrom(draw(value))
            else:
                setattr(message, field.name, draw(value))
        return message

    return build()


@pytest.mark.parametrize("path", sorted(path for path in methods() if path not in WAITING))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_extreme_values(proxy: LabProxy, path: str, data: st.DataObject) -> None:
    if path not in proxy.services.unary:
        return
    answer = proxy.call(path, data.draw(messages(methods()[path].request)).SerializeToString())
    if isinstance(answer, tuple):
        known = answer == LAST_VOTER or path.startswith("/v3")
        assert known or answer[0] not in (RpcCode.UNKNOWN, RpcCode.INTERNAL), answer
    else:
        methods()[path].response.FromString(answer)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40))
def test_what_is_not_a_message(proxy: LabProxy, junk: bytes) -> None:
    for path in ("/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn", "/etcdserverpb.Cluster/MemberAdd"):
        answer = proxy.call(path, junk)
        try:
            methods()[path].request.FromString(junk)
        except Exception:
            assert isinstance(answer, tuple)
            assert answer[0] == RpcCode.INTERNAL
            assert answer[1].startswith("grpc: error unmarshalling request: ")


@pytest.mark.parametrize("path", ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"])
@pytest.mark.parametrize("junk", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x08"])
def test_what_is_not_a_message_ends_a_stream(proxy: LabProxy, path: str, junk: bytes) -> None:
    stream = proxy.stream(path)
    stream.send(junk)
    answer = stream.receive()
    assert isinstance(answer, tuple)
    assert answer[0] == RpcCode.INTERNAL
    stream.close()


def test_the_services_hold_nothing_afterwards(proxy: LabProxy) -> None:
    hub = proxy.backend.hub
    assert hub.read_locked(lambda: len(hub.watch_core)) == 0
    assert not proxy._called
