"""The back for a RunPod queue endpoint elsewhere."""
