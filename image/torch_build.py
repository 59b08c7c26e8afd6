"""Prints for which GPUs this Python's torch was built; worker/config/preflight.py asks.

The image has the answer in a file (Dockerfile), because importing torch takes seconds.
"""

import json

import torch

# torch.cuda.get_arch_list() answers only where there is a GPU; a torch for the CPU has no flags.
flags = getattr(torch._C, "_cuda_getArchFlags", str)()
print(json.dumps({"cuda": torch.version.cuda, "architectures": flags.split()}))
