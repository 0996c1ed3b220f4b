"""Idempotent by design, without any key: insert or update on a natural key."""
