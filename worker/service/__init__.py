"""What runs around each task: its boundary, progress, turns, counters, arguments, the start."""
