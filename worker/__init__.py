"""The parts of the worker, in packages named after what happens to a job.

Modules that do IO take plain values and raise the errors of `worker.errors`; the other modules are
pure. Nothing here imports `handler`, `model_manager` or the RunPod SDK.
"""

VERSION = "0.1.0"  # as in pyproject.toml
