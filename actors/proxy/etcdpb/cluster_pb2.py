"""The messages of cluster.proto; what they hold: cluster_pb2.pyi."""

from .message_pool import add_messages

add_messages(globals(), "cluster.proto")
