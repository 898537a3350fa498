"""The messages of health.proto; what they hold: health_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "health.proto")
