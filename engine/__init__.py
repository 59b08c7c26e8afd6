"""The embedded engine: diffusers behind the `/sdapi/v1` subset of AUTOMATIC1111 WebUI v1.9.3.

It is a process of its own (`python -m engine`), so that the worker runs for real where there is
neither a GPU nor A1111. The worker never imports it; the wire format is the whole contract.
"""

import os

__version__ = "0.1.0"

# huggingface_hub reads this once, when it is first imported: nothing here may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# libgomp reads this once, when torch is first imported. Its threads else wait by spinning: beside
# one other busy process a picture on two cores took 20 s instead of 2.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
