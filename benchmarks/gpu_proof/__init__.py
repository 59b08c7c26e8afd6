"""The steps of benchmarks/gpu.py, the proof for a machine with a GPU."""
