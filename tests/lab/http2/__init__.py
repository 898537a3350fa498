"""The proxy's HTTP side without sockets: frames by hand, and an owner that records."""
