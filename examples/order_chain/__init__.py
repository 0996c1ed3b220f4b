"""Three services in a chain, the first of which is killed half-way."""
