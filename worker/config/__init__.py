"""The environment, read and checked once, and the machine, checked before the start."""
