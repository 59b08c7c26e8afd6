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

from worker.config.gpu import must_use_gpu
from worker.config.settings import Settings
from worker.webui.client import WebUI
from worker.webui.readiness import check_gpu

logger = logging.getLogger(__name__)

# The storage itself fails, like a network volume that is gone. A full or read-only disk can still
# provide models.
_BROKEN_STORAGE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN})


class Fitness:
    """The checks; each raises WorkerError or OSError, with the reason, if the worker is unfit."""

    def __init__(self, settings: Settings, webui: WebUI) -> None:
        self._settings = settings
        self._webui = webui

    def checks(self) -> list[Callable[[], None]]:
        """All checks in the order to run them; RunPod gets the failed one's function name."""
        return [self.store_works, self.engine_answers, self.engine_has_the_gpu]

    def store_works(self) -> None:
        """The model store's storage is not broken; a store that is only full logs a warning."""
        folder = self._settings.models_dir
        try:
            with tempfile.TemporaryFile(dir=folder, prefix=".fitness-"):
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
        """An engine on a machine that promises a GPU still uses it, unless it need not."""
        if must_use_gpu(self._settings):
            check_gpu(self._webui.memory())
