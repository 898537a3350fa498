"""A small world for the consensus core alone: members in memory, a network in a list, and plays acted out in them."""
