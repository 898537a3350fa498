"""The proxy: etcd's v3 API, served by a client of the cluster.

One half knows HTTP and gRPC, and nothing of etcd's messages: ``proxy_listener.py`` accepts connections and tells HTTP/2
from HTTP/1.1 by the first bytes, ``http2_connection.py`` is a server's half of HTTP/2, ``rpc_calls.py`` gRPC on it,
``http1_protocol.py`` HTTP/1.1. ``rpc_methods.py`` says what a service registers. The other half, from
``etcd_services.py`` down, are etcd's services.
"""
