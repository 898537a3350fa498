"""Everything that a member keeps on disk: the Raft log in files of its own, the state in RocksDB."""
