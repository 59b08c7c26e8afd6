"""What a job returns, how far it has come, and what the worker has done since it started."""
