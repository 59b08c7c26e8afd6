"""What the front doors are built from: rooms named after what happens to a job.

Adapters do IO, take plain values and raise `worker.errors`; the rest is pure. Nothing in here
imports a front door (`handler`, `model_manager`) or the RunPod SDK.
"""
