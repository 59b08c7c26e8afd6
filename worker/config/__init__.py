"""The settings, read from the environment once, and the check of the machine before the start."""
