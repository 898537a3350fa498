"""The messages of election.proto; what they hold: election_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "election.proto")
