"""What runs beside each task: progress reports, turns, counters, arguments, the start."""
