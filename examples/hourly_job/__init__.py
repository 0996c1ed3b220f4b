"""A job that may be asked for many times an hour, and runs once in it."""
