"""Ordered stores and files: what they owe, and RocksDB."""
