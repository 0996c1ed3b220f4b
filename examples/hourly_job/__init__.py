"""A job that may be requested many times an hour, and runs once an hour."""
