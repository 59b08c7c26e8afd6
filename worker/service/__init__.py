"""The tasks and their answers, progress reports, the worker's start and its counters."""
