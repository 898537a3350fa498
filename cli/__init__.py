"""The command `raykeeper`."""
