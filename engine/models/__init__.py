"""Checkpoint and LoRA files: listed, loaded, placed on the device, and used to make a picture."""
