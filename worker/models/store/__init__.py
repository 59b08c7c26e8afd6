"""The model store: one blob for each SHA-256, shared by all workers, within a budget."""
