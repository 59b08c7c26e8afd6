"""What the front doors are built from: one flat package of nouns.

Adapters do IO, take plain values and raise `worker.errors`; the rest is pure. Nothing in here
imports a front door (`handler`, `model_manager`) or the RunPod SDK.
"""
