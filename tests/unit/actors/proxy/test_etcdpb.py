"""Our messages are etcd's: every name, number and type, compared with those that a client of etcd brings along."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from raykeeper.actors.proxy import etcdpb
from raykeeper.actors.proxy.etcdpb import auth_pb2, authdata_pb2, cluster_pb2, election_pb2, kv_pb2, lock_pb2, rpc_pb2
from raykeeper.actors.proxy.etcdpb.message_pool import methods

FOLDER = Path(etcdpb.__file__).parent
NEWER = {
    "HashKVResponse.hash_revision",
    "SnapshotResponse.version",
    "StatusResponse.storageVersion",
    "StatusResponse.dbSizeQuota",
    "StatusResponse.downgradeInfo",
    "DowngradeInfo.enabled",
    "DowngradeInfo.targetVersion",
}
"""What etcd 3.6 has added."""


def fields(messages: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """(number, type, repeated, message or enum, oneof) of every field, by name; nested messages included."""
    found = {}
    for message in messages.values():
        for field in message.fields:
            kind = field.message_type or field.enum_type
            found[f"{message.name}.{field.name}"] = (
                field.number,
                field.type,
                field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED,
                kind.name if kind else "",
                field.containing_oneof.name if field.containing_oneof else "",
            )
        for enum in message.enum_types:
            found.update({f"{message.name}.{enum.name}.{value.name}": (value.number,) for value in enum.values})
        found.update(fields({nested.name: nested for nested in message.nested_types}))
    return found


def of_modules(*modules: Any) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for module in modules:
        classes = {name: each.DESCRIPTOR for name, each in vars(module).items() if hasattr(each, "FromString")}
        found.update(fields(classes))
    return found


def test_every_field_is_that_of_a_client_of_etcd() -> None:
    aetcd = pytest.importorskip("aetcd")
    theirs = of_modules(*(sys.modules[f"{aetcd.__name__}.rpc.{name}_pb2"] for name in ("rpc", "kv", "auth")))
    ours = of_modules(rpc_pb2, cluster_pb2, auth_pb2, kv_pb2, authdata_pb2)
    assert {name for name in ours if name not in theirs} == NEWER
    internal = re.compile("LeaseCheckpoint|LeaseCheckpointRequest")
    assert {name for name in theirs if name not in ours and not internal.match(name)} == set()
    assert {name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]} == {}


def test_every_method_is_that_of_a_client_of_etcd() -> None:
    pytest.importorskip("aetcd")
    theirs = {
        f"/{service.full_name}/{method.name}": (method.input_type.full_name, method.output_type.full_name)
        for service in sys.modules["aetcd.rpc.rpc_pb2"].DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    ours = {
        path: (each.request.DESCRIPTOR.full_name, each.response.DESCRIPTOR.full_name)
        for path, each in methods().items()
        if path.startswith("/etcdserverpb.")
    }
    assert ours == theirs
    streams = {path for path, each in methods().items() if each.client_streaming or each.server_streaming}
    assert streams == {
        "/etcdserverpb.Watch/Watch",
        "/etcdserverpb.Lease/LeaseKeepAlive",
        "/etcdserverpb.Maintenance/Snapshot",
        "/v3electionpb.Election/Observe",
        "/grpc.health.v1.Health/Watch",
    }


def test_locks_and_elections() -> None:
    """No package brings these along; a real etcd understands them in ``test_against_etcd``."""
    assert {name: number for name, (number, *_) in of_modules(lock_pb2, election_pb2).items()} == {
        "LockRequest.name": 1,
        "LockRequest.lease": 2,
        "LockResponse.header": 1,
        "LockResponse.key": 2,
        "UnlockRequest.key": 1,
        "UnlockResponse.header": 1,
        "CampaignRequest.name": 1,
        "CampaignRequest.lease": 2,
        "CampaignRequest.value": 3,
        "CampaignResponse.header": 1,
        "CampaignResponse.leader": 2,
        "LeaderKey.name": 1,
        "LeaderKey.key": 2,
        "LeaderKey.rev": 3,
        "LeaderKey.lease": 4,
        "LeaderRequest.name": 1,
        "LeaderResponse.header": 1,
        "LeaderResponse.kv": 2,
        "ResignRequest.leader": 1,
        "ResignResponse.header": 1,
        "ProclaimRequest.leader": 1,
        "ProclaimRequest.value": 2,
        "ProclaimResponse.header": 1,
    }


def test_what_is_checked_in_was_made_from_the_proto_files() -> None:
    """Every line of a field or a value, by file; ``make proto`` makes the descriptors."""
    compiled = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "descriptors.binpb").read_bytes())
    names = {Path(file.name).name: file for file in compiled.file}
    sources = {path.name: path.read_text() for path in FOLDER.glob("*.proto")}
    assert set(names) == set(sources)
    for name, text in sources.items():
        written = sorted(re.findall(r"(\w+) = (\d+);", text))
        made: list[tuple[str, str]] = []

        def walk(messages: Any, made: list[tuple[str, str]] = made) -> None:
            for message in messages:
                made += [(field.name, str(field.number)) for field in message.field]
                made += [(value.name, str(value.number)) for enum in message.enum_type for value in enum.value]
                walk(message.nested_type)

        walk(names[name].message_type)
        made += [(value.name, str(value.number)) for enum in names[name].enum_type for value in enum.value]
        assert sorted(made) == written, name
        assert (FOLDER / f"{name[:-6]}_pb2.py").exists()
        stub = (FOLDER / f"{name[:-6]}_pb2.pyi").read_text()
        assert all(f"{field.upper()}_FIELD_NUMBER" in stub or f"{field}: " in stub for field, _ in written), name
