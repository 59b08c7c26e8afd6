"""Prints for which GPUs this Python's torch was built, and the version of its xformers.

worker/config/gpu.py runs it. The images have the output in a file (Dockerfile), because importing
torch takes seconds.
"""

import json
from importlib import metadata

import torch

# torch.cuda.get_arch_list() is made from these flags, but is empty on a machine without a GPU, such
# as the one that builds an image. A torch for the CPU has no flags.
flags = getattr(torch._C, "_cuda_getArchFlags", str)()
try:
    xformers = metadata.version("xformers")
except metadata.PackageNotFoundError:
    xformers = None
build = {"cuda": torch.version.cuda, "architectures": flags.split(), "xformers": xformers}
print(json.dumps(build))
