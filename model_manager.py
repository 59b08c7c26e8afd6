"""The model manager: from the names in a job to checked files that the engine can see.

The life of a model file, first form: the name is looked up in the stores, the file is opened and
checked, and a link to it appears in the engine's folder. The engine never sees a file that was
not checked before: a damaged checkpoint would poison A1111 until its next restart.

On the command line:

    python model_manager.py prepare-engine    make the engine's folders, links and config.json
    python model_manager.py stats             number and size of the models, as JSON
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence

from worker import log as worker_log
from worker import webui_config
from worker.errors import ConfigError, ModelFileInvalid, ModelNotFound
from worker.model_file import FOLDERS, Kind, ModelFile
from worker.payload import Models, lora_tag
from worker.prompt import add_lora_tags, lora_tags
from worker.request import LoraReference, Txt2ImgRequest
from worker.settings import EXIT_BAD_CONFIGURATION, Settings, secret_values
from worker.store import Store

log = logging.getLogger("worker.models")

# Values of `sd_vae` that are no file.
_VAE_WORDS = {"Automatic", "None"}


class ModelManager:
    """Finds, checks and links the models that jobs name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def from_settings(cls, settings: Settings) -> ModelManager:
        """The manager for the engine's folder, the writable store and the baked one."""
        engine_models = settings.webui_dir / "models"
        return cls(Store(engine_models, settings.models_dir, settings.baked_models_dir))

    def prepare_models_for_request(self, request: Txt2ImgRequest) -> tuple[Models, bool]:
        """Make every model of the job usable.

        Returns:
            The files, and whether the engine must read its folders again to see them.

        Raises:
            ModelNotFound, ModelFileInvalid: before the engine is asked for anything.
        """
        models = self._find_all(request)
        files = models.files()
        for file in files:
            file.header()
        newly_visible = [self._store.link(file) for file in files]
        return models, any(newly_visible)

    def build_lora_prompt(
        self, base_prompt: str, loras: Iterable[tuple[ModelFile, LoraReference]]
    ) -> str:
        """The prompt with a tag for each LoRA that it does not name yet."""
        return add_lora_tags(base_prompt, [lora_tag(file, ref) for file, ref in loras])

    def get_cache_stats(self) -> dict[str, dict[str, int]]:
        """`{"checkpoints": {"count": 2, "total_size": <bytes>}, "loras": ..., "vaes": ...}`."""
        return self._store.stats()

    def link_everything(self) -> int:
        """Show every good file to an engine that is about to start; return how many."""
        linked = 0
        for kind in FOLDERS:
            for file in self._store.files(kind):
                try:
                    file.header()
                except ModelFileInvalid as error:
                    log.warning("%s The engine will not see it.", error.message)
                else:
                    self._store.link(file)
                    linked += 1
        return linked

    def _find_all(self, request: Txt2ImgRequest) -> Models:
        override = request.override_settings
        checkpoint = request.checkpoint.names if request.checkpoint else []
        vae = request.vae.names if request.vae else []
        if override and override.sd_model_checkpoint:
            checkpoint = [override.sd_model_checkpoint]
        if override and override.sd_vae and override.sd_vae not in _VAE_WORDS:
            vae = [override.sd_vae]
        return Models(
            checkpoint=self._find("checkpoint", checkpoint),
            loras=tuple((self._find_lora(ref.names), ref) for ref in request.loras),
            written_loras=self._written_loras(request),
            vae=self._find("vae", vae),
            refiner=self._find("checkpoint", _listed(request.refiner_checkpoint)),
            hr_checkpoint=self._find("checkpoint", _listed(request.hr_checkpoint_name)),
        )

    def _find(self, kind: Kind, names: Sequence[str]) -> ModelFile | None:
        return self._store.find(kind, names) if names else None

    def _written_loras(self, request: Txt2ImgRequest) -> dict[str, ModelFile]:
        if request.disable_extra_networks:
            return {}
        tags = lora_tags(request.prompt) + lora_tags(request.hr_prompt)
        return {tag.name: self._find_lora([tag.name]) for tag in tags}

    def _find_lora(self, names: Sequence[str]) -> ModelFile:
        """By file name or stem, else, as A1111 does, by the name that its training gave it."""
        try:
            return self._store.find("lora", names)
        except ModelNotFound:
            for file in self._store.files("lora"):
                if _trained_name(file) in names:
                    return file
            raise


def _trained_name(file: ModelFile) -> str | None:
    try:
        return file.header().get("ss_output_name")
    except ModelFileInvalid:
        return None


def _listed(name: str | None) -> list[str]:
    same = name is None or name.casefold() == "use same checkpoint"
    return [] if same or name is None else [name]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="The worker's models.")
    parser.add_argument("command", choices=["prepare-engine", "stats"])
    command = parser.parse_args(arguments).command
    try:
        settings = Settings.from_environ(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    worker_log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
    manager = ModelManager.from_settings(settings)
    if command == "prepare-engine":
        webui_config.write(settings.webui_dir)
        log.info("the engine sees %d models", manager.link_everything())
    else:
        sys.stdout.write(json.dumps(manager.get_cache_stats()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
