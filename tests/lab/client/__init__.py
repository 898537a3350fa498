"""Clusters in memory for tests of the client: one that breaks every promise of a network, one that simply answers."""
