"""A1111's API: its HTTP paths, its request fields and options, and the one job that runs."""
