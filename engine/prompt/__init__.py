"""From prompt text to tensors."""
