"""etcd's messages and services, from our own ``.proto`` files: names and numbers are those of etcd's public API.

``make proto`` compiles the files into a set of descriptors and into stubs for the type checker (``*_pb2.pyi``). The
classes are made from the descriptors when a module is imported, in a descriptor pool of their own. So they work with
any runtime of protobuf that ``pyproject.toml`` allows, and do not collide with those of an etcd client that the same
process has loaded.
"""
