"""Long runs that a person starts."""
