"""Measures the worker and its engines."""
