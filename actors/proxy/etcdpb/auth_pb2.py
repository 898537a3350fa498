"""The messages of auth.proto; what they hold: auth_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "auth.proto")
