"""A payments service that charges once, however often a call arrives."""
