"""Turns what other programs send into a job: A1111's API, OpenAI's, and other workers' inputs."""
