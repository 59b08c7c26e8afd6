"""A1111's API: composes requests, waits for readiness, recovers, and proves each picture."""
