"""A client that sends a call until it is answered, and servers that fail on purpose."""
