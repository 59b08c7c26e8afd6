"""Whether the files of one job can be used, each alone and all together, by the worker's engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from worker.errors import ModelMismatch
from worker.formats import architecture, lora_use, requirements
from worker.formats.model_file import ModelFile
from worker.formats.names import PICKLES
from worker.formats.stable_diffusion import FAMILIES
from worker.job.models import Models

EMBEDDED = "embedded"


def check_files(models: Models, engine: str) -> None:
    """Check each file alone.

    Raises:
        ModelFileInvalid: a file is damaged.
        ModelNotSupported: a file cannot be used as its kind, or not by this engine.
    """
    # The embedded engine builds its own VAE from the one in the checkpoint.
    has_vae = models.vae is not None and engine != EMBEDDED
    for file in models.checked_files():
        file.check(has_vae=has_vae)
        if engine != EMBEDDED:
            found = file.architecture()
            architecture.check_naming(file.stem, found)
            architecture.check_config(file.stem, found, has_config=file.has_config)


def check_together(models: Models, engine: str) -> tuple[str, ...]:
    """Check the LoRAs, embeddings and the VAE against each checkpoint; returns warnings.

    Raises:
        ModelMismatch: a file belongs to another family, or has other sizes.
        ModelNotSupported: a LoRA cannot be applied to the checkpoint.
    """
    checkpoints = [file for file in (models.checkpoint, models.hr_checkpoint) if file]
    loras = [file for file in models.checked_files() if file.kind == "lora"]
    for checkpoint in checkpoints:
        family = checkpoint.architecture()
        for file in [*loras, *models.embeddings, *models.controlnets.values()]:
            architecture.check_match(checkpoint.stem, family, file.stem, file.architecture())
        _check_sizes(checkpoint, models)
    return tuple(
        dict.fromkeys(note for file in loras for note in _notes(file, checkpoints, engine))
    )


def _notes(lora: ModelFile, checkpoints: Sequence[ModelFile], engine: str) -> Iterator[str]:
    if engine == EMBEDDED:
        return  # it knows more names than A1111, and applies all of the file or refuses it
    for checkpoint in checkpoints:
        if found := lora.fit(checkpoint):
            yield from lora_use.notes(lora.stem, found)
    family = lora.architecture().family
    if not checkpoints and family in FAMILIES:  # the engine's own checkpoint is not known here
        fits = lora.family_fits()
        if fits[family].used:
            yield from lora_use.notes(lora.stem, fits[family])


def _check_sizes(checkpoint: ModelFile, models: Models) -> None:
    """Compare the embeddings and the VAE with the checkpoint's own tensors."""
    if checkpoint.path.suffix in PICKLES:
        return
    widths = _text_widths(checkpoint) if models.embeddings else set()
    for file in models.embeddings:
        own = file.vector_widths()
        if own and widths and own != widths:
            raise ModelMismatch(
                f"the embedding {file.stem!r} has vectors of {_listed(own)} numbers, but the"
                f" checkpoint {checkpoint.stem!r} needs {_listed(widths)}.",
                checkpoint=checkpoint.stem,
                model=file.stem,
            )
    vae = models.vae.header() if models.vae else None
    header = checkpoint.header() if vae else None
    if models.vae and vae and header:
        requirements.check_vae_sizes(models.vae.stem, vae, checkpoint.stem, header)


def _text_widths(checkpoint: ModelFile) -> set[int]:
    layers = checkpoint.layers()
    return {layers[name].shape[-1] for name in layers if name.endswith("token_embedding")}


def _listed(widths: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(widths)))
