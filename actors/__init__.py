"""Every process of RayKeeper, and what they say to each other."""
