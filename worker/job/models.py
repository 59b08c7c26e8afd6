"""The models that one job names, and the files found for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.formats.model_file import ModelFile
from worker.job.model_fields import LoraReference
from worker.job.prompt import LoraTag
from worker.job.reference import Wanted, parse_reference
from worker.job.request import OverrideSettings, Txt2ImgRequest

# Values of `sd_vae` that are not the name of a file.
_VAE_WORDS = {"Automatic", "None"}


@dataclass(frozen=True)
class Models:
    """The files of the models that a job names, visible to the engine.

    Attributes:
        loras: each with its reference in the job.
        written_loras: files by the name in a tag of the job's own prompt.
        embeddings: textual inversions, used where a prompt has their stem.
        refiner, hr_checkpoint: files for `refiner_checkpoint` and `hr_checkpoint_name`.
        merged: `checkpoint` with all of `loras` merged into it, used instead of them.
        notes: sentences for the caller about what the files cannot do together.
    """

    checkpoint: ModelFile | None = None
    loras: tuple[tuple[ModelFile, LoraReference], ...] = ()
    written_loras: Mapping[str, ModelFile] = field(default_factory=dict)
    vae: ModelFile | None = None
    embeddings: tuple[ModelFile, ...] = ()
    refiner: ModelFile | None = None
    hr_checkpoint: ModelFile | None = None
    merged: ModelFile | None = None
    notes: tuple[str, ...] = ()

    @property
    def loaded(self) -> ModelFile | None:
        """The checkpoint that the engine loads."""
        return self.merged or self.checkpoint

    @property
    def tagged(self) -> tuple[tuple[ModelFile, LoraReference], ...]:
        """The LoRAs that become tags in the prompt."""
        return () if self.merged else self.loras

    def files(self) -> list[ModelFile]:
        """All files, each once."""
        parts = [self.checkpoint, *(lora for lora, _ in self.loras)] if self.merged else []
        return list(dict.fromkeys([*(file for file in parts if file), *self.engine_files()]))

    def engine_files(self) -> list[ModelFile]:
        """The files that the engine uses, each once."""
        named = [self.loaded, self.vae, self.refiner, self.hr_checkpoint]
        loras = [lora for lora, _ in self.tagged] + list(self.written_loras.values())
        return list(dict.fromkeys(file for file in [*named, *loras, *self.embeddings] if file))

    def renamed(self, names: Mapping[ModelFile, ModelFile]) -> Models:
        """The same models with the files of the engine's folder."""

        def renamed(file: ModelFile | None) -> ModelFile | None:
            return file and names.get(file, file)

        return Models(
            checkpoint=renamed(self.checkpoint),
            loras=tuple((names.get(file, file), reference) for file, reference in self.loras),
            written_loras={name: names[file] for name, file in self.written_loras.items()},
            vae=renamed(self.vae),
            embeddings=tuple(names[file] for file in self.embeddings),
            refiner=renamed(self.refiner),
            hr_checkpoint=renamed(self.hr_checkpoint),
            merged=renamed(self.merged),
            notes=self.notes,
        )


def wanted_models(request: Txt2ImgRequest) -> dict[tuple[str, int], Wanted]:
    """The references in the job, by kind of use and number."""
    override = request.override_settings or OverrideSettings()
    names = {
        "checkpoint": override.sd_model_checkpoint,
        "vae": None if override.sd_vae in _VAE_WORDS else override.sd_vae,
        "refiner": _unless_same(request.refiner_checkpoint),
        "hr_checkpoint": _unless_same(request.hr_checkpoint_name),
    }
    found: dict[tuple[str, int], Wanted] = {}
    for place, name in names.items():
        if name:
            found[place, 0] = Wanted(
                parse_reference(name), "vae" if place == "vae" else "checkpoint"
            )
    if request.checkpoint:
        found["checkpoint", 0] = request.checkpoint.wanted("checkpoint")
    if request.vae:
        found["vae", 0] = request.vae.wanted("vae")
    found |= {("lora", n): ref.wanted("lora") for n, ref in enumerate(request.loras)}
    return found | {
        ("embedding", n): ref.wanted("embedding") for n, ref in enumerate(request.embeddings)
    }


def assign_files(request: Txt2ImgRequest, files: Mapping[tuple[str, int], ModelFile]) -> Models:
    """The files found for `wanted_models`, by their use."""
    return Models(
        checkpoint=files.get(("checkpoint", 0)),
        loras=tuple((files["lora", n], ref) for n, ref in enumerate(request.loras)),
        vae=files.get(("vae", 0)),
        embeddings=tuple(files["embedding", n] for n in range(len(request.embeddings))),
        refiner=files.get(("refiner", 0)),
        hr_checkpoint=files.get(("hr_checkpoint", 0)),
    )


def _unless_same(name: str | None) -> str | None:
    return None if name is None or name.casefold() == "use same checkpoint" else name


def lora_tag(file: ModelFile, reference: LoraReference) -> LoraTag:
    """The tag of a LoRA with the weights in the job."""
    te = reference.scale if reference.te is None else reference.te
    unet = reference.scale if reference.unet is None else reference.unet
    return LoraTag(file.stem, te, unet)
