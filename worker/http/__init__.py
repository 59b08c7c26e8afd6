"""Requests that leave the machine, and how long to wait before the next attempt."""
