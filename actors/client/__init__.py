"""The client: one hub per process and cluster, and the handles that share it."""
