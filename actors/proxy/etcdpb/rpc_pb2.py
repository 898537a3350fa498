"""The messages of rpc.proto; what they hold: rpc_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "rpc.proto")
