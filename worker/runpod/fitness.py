"""Reasons for which a worker must not take any job.

RunPod reports a failed check as an unhealthy worker and replaces it, so a check that is wrong ends
a healthy worker. The SDK's own checks do that: a full model cache fails their 10 % of free disk.
Only certain failures fail a check here.
"""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable

from worker.config.settings import Settings
from worker.errors import EngineFault
from worker.webui.client import WebUI

logger = logging.getLogger(__name__)

# The storage itself fails, like a network volume that is gone. A full or read-only disk can still
# provide models.
_BROKEN_STORAGE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN})

_NO_CUDA = {"error": "unavailable"}  # other errors only mean that the figures are not available


class Fitness:
    """The checks; each raises WorkerError or OSError, with the reason, if the worker is unfit.

    `has_gpu` is whether the platform promises a GPU.
    """

    def __init__(self, settings: Settings, webui: WebUI, *, has_gpu: bool) -> None:
        self._settings = settings
        self._webui = webui
        self._has_gpu = has_gpu

    def checks(self) -> list[Callable[[], None]]:
        """All checks in the order to run them; RunPod gets the failed one's function name."""
        return [self.store_works, self.engine_answers, self.engine_has_the_gpu]

    def store_works(self) -> None:
        """The model store's storage is not broken; a store that is only full logs a warning."""
        folder = self._settings.models_dir
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".fitness-"):
                pass
        except FileNotFoundError:
            return  # nothing was downloaded yet
        except OSError as error:
            if error.errno in _BROKEN_STORAGE:
                raise
            logger.warning(
                "MODELS_DIR=%s cannot be written (%s): jobs that need new models will fail;"
                " free space or give this user the folder",
                folder,
                error,
            )

    def engine_answers(self) -> None:
        """The engine, which has made its first picture, still answers."""
        self._webui.memory()

    def engine_has_the_gpu(self) -> None:
        """A1111 on a machine with a GPU uses it, unless WEBUI_ARGS contains --use-cpu."""
        wants_cpu = "--use-cpu" in self._settings.webui_args
        if self._settings.engine != "a1111" or wants_cpu or not self._has_gpu:
            return
        if self._webui.memory().get("cuda") == _NO_CUDA:
            raise EngineFault("the machine has a GPU, but A1111 cannot use CUDA.", hint="")
