"""What a job may say: its schema, model references, templates and prompts. Pure."""
