"""The embedded engine: diffusers behind the `/sdapi/v1` subset of AUTOMATIC1111 WebUI v1.9.3.

It runs as its own process (`python -m engine`), so that the worker can run on machines without a
GPU and without A1111. The worker never imports it: the two share only the HTTP API.

The rooms import in one direction only: api -> models -> prompt, sampling -> errors.
"""

import os

__version__ = "0.1.0"

# The engine must not use the network. huggingface_hub reads this once, at its first import.
os.environ["HF_HUB_OFFLINE"] = "1"

# libgomp reads both once, at torch's first import. By default its threads wait by spinning for
# milliseconds: with a third of that, a picture took 12 s instead of 2 next to a busy process.
# Threads that sleep at once make it slower on a quiet machine: a step has hundreds of operations.
# So they spin for some 50 microseconds, and then sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
