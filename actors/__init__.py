"""The processes of RayKeeper, and their communication."""
