"""A job's input: its schema, model references, templates and prompts. Pure."""
