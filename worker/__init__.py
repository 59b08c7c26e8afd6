"""The parts of the worker, in packages named after what happens to a job.

Adapters do the IO, take plain values and raise `worker.errors`; the rest is pure. Nothing here
imports `handler`, `model_manager` or the RunPod SDK.
"""
