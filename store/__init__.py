"""Everything that a member keeps on disk, on RocksDB."""
