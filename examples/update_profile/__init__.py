"""Updates (PUT) that may be sent twice: one that changes nothing does nothing."""
