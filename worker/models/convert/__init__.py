"""LoRA files rewritten into the tensor names that A1111 reads."""
