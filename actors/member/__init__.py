"""One member: the data plane."""
