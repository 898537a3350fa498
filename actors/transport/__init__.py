"""How messages travel between members, and between clients and members."""
