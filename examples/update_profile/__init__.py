"""Updates (PUT) that may be sent twice: an update that changes nothing has no effect."""
