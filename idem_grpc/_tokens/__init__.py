"""Tokens: keys that the server issues, tracks and revokes."""
