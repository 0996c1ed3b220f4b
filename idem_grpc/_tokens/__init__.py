"""Keys that the server issues, and whose whole life it controls."""
