"""OpenAI's images API over a queue of jobs."""
