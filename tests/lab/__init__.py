"""What the tests build with: real clusters, clusters of bare cores, clients without members, models."""
