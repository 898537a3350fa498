"""The messages of authdata.proto; what they hold: authdata_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "authdata.proto")
