"""The checkpoints in memory: the one that draws, and those of the last jobs."""

import gc
import logging
import time

import torch

from engine.models import placement
from engine.models.checkpoints import Checkpoint, Checkpoints
from engine.models.embeddings import Embeddings
from engine.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)


class LoadedModels:
    """Loads checkpoints, and keeps the last used ones. Only one thread may use it at a time.

    At most one of them is on the GPU; the others are in the machine's own memory.
    """

    def __init__(self, checkpoints: Checkpoints, embeddings: Embeddings) -> None:
        """`embeddings` are those that must fit the checkpoint that draws."""
        self._checkpoints = checkpoints
        self._embeddings = embeddings
        self._kept: list[LoadedModel] = []  # the last used one is the last
        self._active: LoadedModel | None = None  # None also after one that could not be loaded

    def use(self, checkpoint: Checkpoint, limit: int) -> LoadedModel:
        """Have this checkpoint on the device. It is loaded unless it is kept and its file is still
        the same; before that the least recently used ones are freed, until `limit` holds.

        Raises the errors of `LoadedModel.load`.
        """
        if self._active is not None and self._active.is_current(checkpoint):
            return self._active
        began = time.monotonic()
        kept = next((one for one in self._kept if one.is_current(checkpoint)), None)
        self._leave_device(checkpoint)
        if kept is None:
            self._free(len(self._kept) - limit + 1)
            kept = LoadedModel.load(checkpoint, self._checkpoints.sha256(checkpoint))
            log.info("loaded %r in %.1f s", checkpoint.name, time.monotonic() - began)
        else:
            self._kept.remove(kept)
            placement.to_device(kept.pipe)
            log.info("using %r, which was kept in memory", checkpoint.name)
        self._kept.append(kept)
        self._active = kept
        self._embeddings.fit(kept.text_width)
        return kept

    def keep(self, limit: int) -> None:
        """Free the least recently used ones over the limit."""
        self._free(len(self._kept) - limit)

    def _leave_device(self, wanted: Checkpoint) -> None:
        """Move the active one to memory, and forget an old version of the wanted file."""
        if self._active is not None:
            placement.to_memory(self._active.pipe)
        self._active = None
        outdated = [
            one
            for one in self._kept
            if one.checkpoint.path == wanted.path and not one.is_current(wanted)
        ]
        self._kept = [one for one in self._kept if one not in outdated]

    def _free(self, count: int) -> None:
        if count > 0:
            del self._kept[:count]
        gc.collect()  # a pipeline contains reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
