"""A1111's API: the client, the wait for readiness, attempts and recovery."""
