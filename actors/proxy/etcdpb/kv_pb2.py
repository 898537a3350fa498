"""The messages of kv.proto; what they hold: kv_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "kv.proto")
