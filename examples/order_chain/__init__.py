"""A chain of three services, the first of which is killed half-way."""
