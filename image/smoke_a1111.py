"""Imports all of A1111 and its extensions, so that the build fails if a package is missing.

Run by A1111's Python in the WebUI's folder.
"""

import sys

sys.path.insert(0, ".")
# Without --xformers A1111 blocks the import of xformers.
sys.argv = ["webui.py", "--nowebui", "--xformers", "--skip-torch-cuda-test", "--use-cpu", "all"]

from modules import initialize  # noqa: E402

initialize.imports()

import clip  # noqa: E402
import xformers.ops  # noqa: E402
from ldm.models.diffusion import ddpm  # noqa: E402
from modules import scripts, timer  # noqa: E402
from modules.api import api  # noqa: E402
from sgm.models import diffusion  # noqa: E402

scripts.load_scripts()
print("imported:", *(module.__name__ for module in (api, clip, ddpm, diffusion, xformers.ops)))
print(timer.startup_timer.summary())
