"""The answer of a task that draws: its type, and the models that the engine used. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from worker.answer import Absent, Answer, AnswerPart, left_out
from worker.formats.model_file import ModelFile
from worker.formats.names import Kind
from worker.generation.proof import applied_loras
from worker.job.model_fields import LoraReference
from worker.job.models import Models, lora_tag
from worker.job.output_fields import ImageFormat, ReportedMethod
from worker.job.request import JobFields
from worker.stopwatch import ABOUT_COST


class ConvertedFrom(AnswerPart):
    """The file that a LoRA was converted from, because A1111 cannot read its tensor names."""

    sha256: str = Field(description="SHA-256 of the file that was fetched or found.")
    naming: str = Field(
        description="Whose tensor names it has: `diffusers`, `peft`, `ComfyUI`, `OneTrainer`,"
        " `LyCORIS`, `kohya` (for another family), or several, joined by `+`."
    )


class MergedModel(AnswerPart):
    """A model that is part of a merged checkpoint."""

    kind: Kind = Field(description="Kind of the model.")
    name: str = Field(description="Its file name without suffix.")
    sha256: str = Field(description="SHA-256 of its file.")
    source: str = Field(description="Where it was fetched from; `job` for a file of the operator.")
    te: float | Absent = left_out("Weight of a LoRA in the text encoder.")
    unet: float | Absent = left_out("Weight of a LoRA in the UNet.")
    converted_from: ConvertedFrom | Absent = left_out("The original of a LoRA that was converted.")


class UsedModel(AnswerPart):
    """A model that the engine used."""

    kind: Kind = Field(description="Kind of the model.")
    name: str | None = Field(description="Its name in the engine.")
    sha256: str | None = Field(description="SHA-256 of its file; null if the engine has none.")
    source: str = Field(
        description="Where it was fetched from; `job` for a file of the operator that the job"
        " named, `default` for the engine's own choice, `merged` for a checkpoint with LoRAs in it."
    )
    role: Literal["refiner", "hr_checkpoint"] | Absent = left_out(
        "Of a further checkpoint: the refiner, or the one of the second pass."
    )
    merged_from: list[MergedModel] | Absent = left_out(
        "The checkpoint and the LoRAs that a merged checkpoint consists of."
    )
    converted_from: ConvertedFrom | Absent = left_out(
        "The original of a LoRA that was converted; `sha256` is that of the conversion."
    )


class ResolvedPrompts(AnswerPart):
    """The prompts that wildcards were resolved to."""

    prompt: str = Field(description="The prompt.")
    negative_prompt: str = Field(description="The negative prompt.")
    hr_prompt: str | Absent = left_out("The second pass's prompt, if the job has one.")
    hr_negative_prompt: str | Absent = left_out("The same of the negative prompt.")


class DeliveryReport(AnswerPart):
    """How the pictures were delivered."""

    method: ReportedMethod = Field(
        description="How they were delivered; `warnings` has the reason if the job named another."
        " `stream`: they are on `/stream` only, because the result would be too large."
    )
    format: ImageFormat = Field(description="Format of the pictures.")
    quality: int | Absent = left_out("Quality of jpeg and webp, 1 to 100.")
    bytes: list[int] = Field(description="Size of each file.")
    keys: list[str] | Absent = left_out("With `s3`: the object's key for each picture.")
    expires_in: int | Absent = left_out(
        "With `s3`: seconds until the signed URLs in `images` expire."
    )
    endpoint: str | Absent = left_out(
        "With `s3`, if the service signs no URLs: its address, for the `s3://` URLs in `images`."
    )


class CacheInfo(AnswerPart):
    """What the model store holds."""

    checkpoints_cached: int = Field(description="Number of checkpoints in the model store.")
    loras_cached: int = Field(description="Number of LoRAs in the model store.")
    total_cache_size_mb: float = Field(description="Size of both in MiB.")


class Undelivered(Answer):
    """A result before its pictures are delivered: A1111's own three keys, and ours."""

    images: list[str] = Field(
        description="The pictures: base64 of a PNG, unless `output` of the job asks for another"
        " format or for URLs."
    )
    parameters: dict[str, Any] = Field(description="The request as A1111 returns it.")
    info: str = Field(description="A1111's facts about the pictures, such as seeds, as JSON text.")
    models: list[UsedModel] = Field(description="The models that were used, checkpoint first.")
    cache_info: CacheInfo = Field(description="What the model store holds.")
    timings: dict[str, float] = Field(
        description="Seconds of each phase: `validate`, `prepare` (find or fetch the models),"
        " `images` (read the job's pictures, at the same time), `queue` (wait for the engine),"
        " `generate`, `deliver`; and the `total`." + ABOUT_COST
    )
    warnings: list[str] = Field(description="Sentences about what was changed or went wrong.")
    template: str | Absent = left_out("The template that was used.")
    resolved: ResolvedPrompts | Absent = left_out(
        "Only with `wildcards`: the prompts after the choice of words. With the seed in `info` the"
        " same job gives the same ones."
    )
    startup: dict[str, float] | Absent = left_out(
        "Only in a worker's first result: seconds of the start's parts `engine`, `sdk`, `models`"
        " (of the default template), and their `total`."
    )


class PictureResult(Undelivered):
    """The answer of a task that draws: A1111's own three keys, and ours."""

    delivery: DeliveryReport = Field(description="How the pictures were delivered.")


def resolved_prompts(request: JobFields) -> ResolvedPrompts | None:
    """The prompts of a job with wildcards; None for a job without."""
    prompts = request.resolved
    return None if prompts is None else ResolvedPrompts.model_construct(None, **prompts)


def cache_info(stats: Mapping[str, Mapping[str, int]]) -> CacheInfo:
    """The model store's numbers of files and bytes as a job's answer has them."""
    size = stats["checkpoints"]["total_size"] + stats["loras"]["total_size"]
    return CacheInfo.model_construct(
        checkpoints_cached=stats["checkpoints"]["count"],
        loras_cached=stats["loras"]["count"],
        total_cache_size_mb=round(size / 2**20, 2),
    )


def models_used(facts: Mapping[str, Any], models: Models) -> list[UsedModel]:
    """The models that the engine's `info` names, the checkpoint first.

    The sha256 of an operator's checkpoint stays None: reading its 7 GB takes long, and the caller
    can ask the engine for it.
    """
    loaded = models.loaded
    checkpoint: dict[str, Any] = {
        "kind": "checkpoint",
        # A script's facts have no name; then the proof has read it from the infotexts.
        "name": facts.get("sd_model_name") or (loaded.stem if loaded else None),
        "sha256": loaded.verified_sha256 if loaded else None,
        "source": (loaded.source or "job") if loaded else "default",
    }
    if models.merged and models.checkpoint:
        loras = [_used(file) | _weights(file, reference) for file, reference in models.loras]
        parts = [_used(models.checkpoint), *loras]
        checkpoint["merged_from"] = [MergedModel.model_construct(**part) for part in parts]
    tagged = {file.stem: file for file in models.engine_files() if file.kind == "lora"}
    applied = [tagged[name] for name in applied_loras(facts) if name in tagged]
    roles = {"refiner": models.refiner, "hr_checkpoint": models.hr_checkpoint}
    further = [
        {**_known(file), "sha256": file.verified_sha256, "role": role}
        for role, file in roles.items()
        if file
    ]
    others = dict.fromkeys([*models.embeddings, *models.controlnets.values()])
    files = [*([models.vae] if models.vae else []), *others, *applied]
    used = [checkpoint, *further, *map(_used, files)]
    return [UsedModel.model_construct(**one) for one in used]


def _used(file: ModelFile) -> dict[str, Any]:
    used = {**_known(file), "sha256": file.sha256()}
    if original := file.converted_from:
        used["converted_from"] = ConvertedFrom.model_construct(
            sha256=original.sha256, naming=original.naming
        )
    return used


def _known(file: ModelFile) -> dict[str, Any]:
    return {"kind": file.kind, "name": file.stem, "source": file.source or "job"}


def _weights(file: ModelFile, reference: LoraReference) -> dict[str, float | None]:
    tag = lora_tag(file, reference)
    return {"te": tag.te, "unet": tag.unet}
