"""The prompt: A1111's syntax, and its encoding into tensors."""
