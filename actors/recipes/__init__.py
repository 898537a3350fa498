"""Coordination built on the client's public surface alone: locks, elections, queues and the like."""
