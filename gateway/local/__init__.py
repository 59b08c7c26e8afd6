"""The back for the worker in this process: its queue, and what belongs to it."""
