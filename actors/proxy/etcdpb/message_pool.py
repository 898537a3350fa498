"""The descriptors of all files of this package, in a pool of their own."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

_FOLDER = "raykeeper/actors/proxy/etcdpb/"
_pool = descriptor_pool.DescriptorPool()
_files = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("descriptors.binpb").read_bytes())
for _file in _files.file:
    _pool.AddSerializedFile(_file.SerializeToString())


def add_messages(module: dict[str, Any], proto: str) -> None:
    """Add the classes of a file's messages, and its enums with their values, to a module's names."""
    file = _pool.FindFileByName(_FOLDER + proto)
    for name, message in file.message_types_by_name.items():
        module[name] = message_factory.GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(enum)
        module.update({value.name: value.number for value in enum.values})


class Method(NamedTuple):
    """A remote procedure."""

    path: str
    """As gRPC names it: ``/etcdserverpb.KV/Range``."""
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool


@cache
def methods() -> dict[str, Method]:
    """All remote procedures, by path."""
    found = {}
    for file in _files.file:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            for method in _pool.FindServiceByName(name).methods:
                path = f"/{name}/{method.name}"
                found[path] = Method(
                    path,
                    message_factory.GetMessageClass(method.input_type),
                    message_factory.GetMessageClass(method.output_type),
                    method.client_streaming,
                    method.server_streaming,
                )
    return found
