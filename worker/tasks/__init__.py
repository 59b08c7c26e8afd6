"""The tasks that a job can name, a module each: input, engine call, proof and result."""
