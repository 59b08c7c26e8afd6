"""Prints for which GPUs this Python's torch was built; worker/config/preflight.py runs it.

The image has the output in a file (Dockerfile), because importing torch takes seconds.
"""

import json

import torch

# torch.cuda.get_arch_list() is empty without a GPU. A torch for the CPU has no flags.
flags = getattr(torch._C, "_cuda_getArchFlags", str)()
print(json.dumps({"cuda": torch.version.cuda, "architectures": flags.split()}))
