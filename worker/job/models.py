"""The models that one job names, and the files found for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from worker.clients.nothing_asked import VAE_WORDS
from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.formats.names import stem_of
from worker.job.model_fields import LoraReference, ModelReference
from worker.job.prompt import LoraTag
from worker.job.reference import StoreName, Wanted, local_path, parse_reference
from worker.job.request import OverrideSettings, PictureRequest

# Words as A1111's tokenizer splits a text: letters, single digits, and runs of other characters.
_WORD = re.compile(r"[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@dataclass(frozen=True)
class Models:
    """The files of the models that a job names, visible to the engine.

    Attributes:
        loras: each with its reference in the job.
        written_loras: files by the name in a tag of the job's own prompt.
        embeddings: textual inversions; each acts where a prompt has its stem as words.
        refiner, hr_checkpoint: files for `refiner_checkpoint` and `hr_checkpoint_name`.
        merged: `checkpoint` with all of `loras` merged into it, used instead of them.
        sources: the files that LoRAs here were converted from; the engine does not use them.
        zero_terminal_snr: whether the checkpoint was trained with a noise schedule that ends in
            pure noise.
        has_bundle: whether a LoRA has embeddings in its own file.
        controlnets: the models of ControlNet by the number of the unit.
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
    sources: tuple[ModelFile, ...] = ()
    zero_terminal_snr: bool = False
    has_bundle: bool = False
    controlnets: Mapping[int, ModelFile] = field(default_factory=dict)
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

    def checked_files(self) -> list[ModelFile]:
        """All files but the sources of conversions."""
        return [file for file in self.files() if file not in self.sources]

    def engine_files(self) -> list[ModelFile]:
        """The files that the engine uses, each once."""
        named = [self.loaded, self.vae, self.refiner, self.hr_checkpoint]
        loras = [lora for lora, _ in self.tagged] + list(self.written_loras.values())
        others = [*self.embeddings, *self.controlnets.values()]
        return list(dict.fromkeys(file for file in [*named, *loras, *others] if file))

    def renamed(self, names: Mapping[ModelFile, ModelFile]) -> Models:
        """The same models with other files, such as those of the engine's folder."""
        if all(new is file for file, new in names.items()):
            return self

        def renamed(file: ModelFile | None) -> ModelFile | None:
            return file and names.get(file, file)

        return replace(
            self,
            checkpoint=renamed(self.checkpoint),
            loras=tuple((names.get(file, file), reference) for file, reference in self.loras),
            written_loras={n: names.get(file, file) for n, file in self.written_loras.items()},
            vae=renamed(self.vae),
            embeddings=tuple(names.get(file, file) for file in self.embeddings),
            refiner=renamed(self.refiner),
            hr_checkpoint=renamed(self.hr_checkpoint),
            merged=renamed(self.merged),
            controlnets={n: names.get(file, file) for n, file in self.controlnets.items()},
            notes=self.notes,
        )


def wanted_models(request: PictureRequest) -> dict[tuple[str, int], Wanted]:
    """The references in the job, by kind of use and number."""
    override = request.override_settings or OverrideSettings()
    names = {
        "checkpoint": override.sd_model_checkpoint,
        "vae": None if override.sd_vae in VAE_WORDS.values() else override.sd_vae,
        "refiner": request.refiner_checkpoint,
        "hr_checkpoint": request.second_pass and request.second_pass.hr_checkpoint_name,
    }
    found: dict[tuple[str, int], Wanted] = {}
    for place, name in names.items():
        if name:
            found[place, 0] = Wanted(
                parse_reference(name),
                "vae" if place == "vae" else "checkpoint",
                local=local_path(name),
            )
    if request.checkpoint:
        found["checkpoint", 0] = request.checkpoint.wanted("checkpoint")
    if request.vae:
        found["vae", 0] = request.vae.wanted("vae")
    found |= {("lora", n): ref.wanted("lora") for n, ref in enumerate(request.loras)}
    return found | {
        ("embedding", n): ref.wanted("embedding") for n, ref in enumerate(request.embeddings)
    }


def assign_files(request: PictureRequest, files: Mapping[tuple[str, int], ModelFile]) -> Models:
    """The files found for `wanted_models`, by their use."""
    return Models(
        checkpoint=files.get(("checkpoint", 0)),
        loras=tuple((files["lora", n], ref) for n, ref in enumerate(request.loras)),
        vae=files.get(("vae", 0)),
        embeddings=tuple(files["embedding", n] for n in range(len(request.embeddings))),
        refiner=files.get(("refiner", 0)),
        hr_checkpoint=files.get(("hr_checkpoint", 0)),
        controlnets={number: file for (use, number), file in files.items() if use == "controlnet"},
    )


def may_be_merged(request: PictureRequest, models: Models) -> bool:
    """Whether a merged checkpoint can replace the template's checkpoint and LoRAs.

    Not with a second checkpoint, because LoRA tags apply to that one too; and not if the prompt
    contains a tag of one of the LoRAs, because then the weight in the tag applies.
    """
    loras = {file for file, _ in models.loras}
    second = models.refiner or models.hr_checkpoint
    written = loras & set(models.written_loras.values())
    return bool(request.template and models.checkpoint and loras and not second and not written)


# Embeddings -------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """The words by which A1111 finds an embedding in a prompt, ignoring case.

    >>> words("EasyNegative_v2") == words("easynegative _ v2")
    True
    """
    return tuple(_WORD.findall(text.casefold()))


def name_embeddings(request: PictureRequest, files: Iterable[ModelFile]) -> tuple[ModelFile, ...]:
    """The embeddings under the names by which the job's prompts use them.

    That is the job's `filename` or `name`, and the file's own name if neither is in a prompt. It
    never depends on other files that have the same name.

    Args:
        request: the job.
        files: one for each of its `embeddings`.

    Raises:
        InvalidInput: two different files would have one name.
    """
    prompts = tuple(word for text in request.prompts.values() for word in words(text))
    named: dict[tuple[str, ...], ModelFile] = {}
    for ref, file in zip(request.embeddings, files, strict=True):
        names = _names_of(ref, file)
        stem = next((name for name in names if contains(prompts, words(name))), names[0])
        one = replace(file, stem=stem)
        if named.setdefault(words(stem), one).path != file.path:
            raise InvalidInput(
                f"two embeddings of the job are named {stem!r}.",
                hint="Give one of them another `name`, and write that name in the prompt.",
                field="embeddings",
            )
    return tuple(named.values())


def _names_of(ref: ModelReference, file: ModelFile) -> list[str]:
    """Stems that the embedding can have in the job's prompts, those that the job gives first."""
    own = file.host_name or file.stem
    read = ref.wanted("embedding").ref
    if isinstance(read, StoreName):
        return [stem_of(read.name), own]
    display = None if ref.name_is_reference else ref.name
    return [stem_of(name) for name in (ref.filename, display) if name] + [own]


def contains(text: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether the words of `part` follow one another in `text`."""
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def meant_lora(name: str, loras: Iterable[tuple[ModelFile, LoraReference]]) -> ModelFile | None:
    """Which of the job's own LoRAs a tag in its prompt means; None if it is none of them.

    Names that the job gives come first, then the files' names, both as written or else in any
    case. What name the store has for a file depends on other files, the name at its host does not.

    Raises:
        InvalidInput: it can mean two different files.
    """
    loras = list(loras)
    given = [(file, set(ref.stems)) for file, ref in loras]
    own = [(file, {file.stem, file.host_name}) for file, _ in loras]
    folded = name.casefold()
    for names in (given, own):
        exact = {file for file, stems in names if name in stems}
        similar = {file for file, stems in names if folded in {s.casefold() for s in stems}}
        if meant := exact or similar:
            if len(meant) > 1:
                raise InvalidInput(
                    f"two LoRAs of the job are named {name!r}, and the prompt has a tag with it.",
                    hint="Give one of them another `name`, and write that name in its tag.",
                    field="loras",
                )
            return meant.pop()
    return None


def lora_tag(file: ModelFile, reference: LoraReference) -> LoraTag:
    """The tag of a LoRA with the weights in the job."""
    te = reference.scale if reference.te is None else reference.te
    unet = reference.scale if reference.unet is None else reference.unet
    return LoraTag(file.stem, te, unet)
