"""The messages of lock.proto; what they hold: lock_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "lock.proto")
