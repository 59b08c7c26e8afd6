"""Merges LoRAs into a checkpoint, with the same result as A1111 applying them."""
