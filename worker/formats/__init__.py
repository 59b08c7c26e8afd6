"""What a model file is, read from its bytes and its name."""
