"""What a supervisor is started with, and its encoding."""

from __future__ import annotations

import msgspec

from .markers import MarkedMember


class SupervisorSpec(msgspec.Struct, frozen=True):
    """The cluster of a supervisor."""

    cluster_name: str
    cluster: int
    data_dir: str
    placement: tuple[str, ...] = ()
    members: tuple[MarkedMember, ...] = ()
    """Where each member lived when this was written, for a supervisor that starts where nothing else knows."""


encode_supervisor_spec = msgspec.msgpack.Encoder().encode
decode_supervisor_spec = msgspec.msgpack.Decoder(SupervisorSpec).decode
