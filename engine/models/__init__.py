"""Checkpoints and LoRAs: listed, read from disk, placed on the device, applied."""
