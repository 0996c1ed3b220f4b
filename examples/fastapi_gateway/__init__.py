"""An HTTP gateway in front of a gRPC payments service: ``Idempotency-Key`` in, metadata out."""
