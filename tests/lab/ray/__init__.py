"""Tools of the tests that run on a real Ray."""
