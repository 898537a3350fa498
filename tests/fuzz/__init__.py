"""Decoders of what others wrote, under arbitrary bytes: a typed error or a success, never a hang or another error."""
