"""Reasons for which a worker must not take a job at all; only what is sure counts as one.

RunPod reports a failed check as an unhealthy worker and replaces it, so a check that errs ends a
healthy one. The SDK's own checks do: a full model cache fails their 10 % of free disk.
"""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable

from worker.config.settings import Settings
from worker.errors import EngineFault
from worker.webui.client import WebUI

logger = logging.getLogger("worker.fitness")

# The storage itself fails, as a network volume that is gone does; a full disk or a read-only one
# still has models to offer.
_BROKEN_STORAGE = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN})

_NO_CUDA = {"error": "unavailable"}  # other errors only mean that its figures cannot be had


class Fitness:
    """The checks; each raises WorkerError or OSError, with the reason, if the worker is unfit.

    `has_gpu` is whether the platform promises one.
    """

    def __init__(self, settings: Settings, webui: WebUI, *, has_gpu: bool) -> None:
        self._settings = settings
        self._webui = webui
        self._has_gpu = has_gpu

    def checks(self) -> list[Callable[[], None]]:
        """All of them, in the order in which they are worth running; each has a name."""
        return [self.store_works, self.engine_answers, self.engine_has_the_gpu]

    def store_works(self) -> None:
        """A file can be written to the model store, or it is at least no fault of the storage."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._settings.models_dir, prefix=".fitness-"):
                pass
        except FileNotFoundError:
            return  # nothing was fetched yet
        except OSError as error:
            if error.errno in _BROKEN_STORAGE:
                raise
            logger.warning("MODELS_DIR cannot be written (%s): no model can be fetched", error)

    def engine_answers(self) -> None:
        """The engine has made its first picture; it must still be there."""
        self._webui.memory()

    def engine_has_the_gpu(self) -> None:
        """A1111 on a machine with a GPU uses it, unless WEBUI_ARGS says otherwise."""
        wants_cpu = "--use-cpu" in self._settings.webui_args
        if self._settings.engine != "a1111" or wants_cpu or not self._has_gpu:
            return
        if self._webui.memory().get("cuda") == _NO_CUDA:
            raise EngineFault("the machine has a GPU, but A1111 cannot use CUDA.", hint="")
