"""The consensus core: Raft as a library without I/O, clock, threads or global randomness."""
