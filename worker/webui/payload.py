"""Composes A1111's request body from a checked job, and what the answer must prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import InvalidInput
from worker.formats.model_file import ModelFile
from worker.job.model_fields import LoraReference
from worker.job.models import Models, lora_tag
from worker.job.prompt import (
    add_lora_tags,
    add_words,
    hypernetworks,
    lora_tags,
    rename_lora_tags,
)
from worker.job.request import Txt2ImgRequest
from worker.webui.catalog import Catalog

# The job's fields that A1111 does not get.
OURS = {
    "task",
    "template",
    "checkpoint",
    "loras",
    "vae",
    "embeddings",
    "trigger_words",
    "clip_skip",
    "timeout",
    "output",
    "sampler_index",
}

LIVE_PREVIEWS = "live_previews_enable"

# The entries for "unchanged" in A1111 v1.9.3's own dropdowns.
_USE_SAME = {"use same sampler", "use same scheduler", "use same checkpoint"}

# With fewer steps A1111 v1.9.3 answers 500 (measured). UniPC needs as many as its order.
FEWEST_STEPS = {"DPM++ 2M SDE": 2, "DPM++ 2M SDE Heun": 2, "DPM++ 3M SDE": 2, "UniPC": 3}
_NO_SINGLE_SECOND_STEP = {"DPM fast", "DPM adaptive"}


@dataclass(frozen=True)
class Expected:
    """What the engine's `info` must contain (checked by `worker.webui.proof`).

    Attributes:
        images: number of pictures; None if a script decides it.
        checkpoint: stem of the checkpoint; None if the job names no checkpoint.
        loras: stems that must be in `Lora hashes`.
        vae: file name of the VAE; None if the job names no VAE.
        embeddings: stems of the embeddings that a prompt uses.
        checkpoint_sha256: in lower-case hex; None if the file was not hashed yet.
    """

    images: int | None
    checkpoint: str | None = None
    loras: frozenset[str] = frozenset()
    vae: str | None = None
    embeddings: frozenset[str] = frozenset()
    checkpoint_sha256: str | None = None


@dataclass(frozen=True)
class Payload:
    """A txt2img body, what its answer must prove, and warnings for the caller."""

    body: dict[str, Any]
    expected: Expected
    warnings: tuple[str, ...] = ()


def engine_names(request: Txt2ImgRequest, catalog: Catalog) -> dict[str, Any]:
    """The fields whose values are the engine's names, in the engine's spelling.

    Checked before models are fetched: a misspelt name must cost nothing.

    Raises:
        InvalidInput: the engine does not have this sampler, scheduler, upscaler, script or style,
            or the sampler needs more steps.
    """
    for style in request.styles or []:
        catalog.check("styles", style, catalog.styles)
    if request.script_name:
        catalog.check("script_name", request.script_name.lower(), catalog.scripts)
    for script in request.alwayson_scripts:
        catalog.check("alwayson_scripts", script.lower(), catalog.scripts)
    if request.hr_upscaler:
        catalog.check("hr_upscaler", request.hr_upscaler, catalog.upscalers)
    first_pass = _sampler(catalog, request.sampler_name or request.sampler_index, request.scheduler)
    second_pass = _sampler(catalog, request.hr_sampler_name, request.hr_scheduler)
    sampler = first_pass.get("sampler_name")
    _check_steps(request, sampler, request.steps, second_pass=False)
    if request.enable_hr:
        steps = request.hr_second_pass_steps or request.steps
        _check_steps(request, second_pass.get("sampler_name") or sampler, steps, second_pass=True)
    return first_pass | {f"hr_{field}": value for field, value in second_pass.items()}


def _sampler(catalog: Catalog, sampler: str | None, scheduler: str | None) -> dict[str, str | None]:
    fields: dict[str, str | None] = {}
    if scheduler:
        same = scheduler.casefold() in _USE_SAME
        fields["scheduler"] = scheduler = None if same else catalog.scheduler(scheduler)
    if sampler:
        if sampler.casefold() in _USE_SAME:
            fields["sampler_name"] = None
        else:
            fields["sampler_name"], label = catalog.sampler(sampler, scheduler)
            fields |= {"scheduler": label} if label else {}
    return fields


def _check_steps(
    request: Txt2ImgRequest, sampler: str | None, steps: int, *, second_pass: bool
) -> None:
    fewest = FEWEST_STEPS.get(sampler or "", 1)
    if second_pass and sampler in _NO_SINGLE_SECOND_STEP:
        fewest = 2
    if sampler == "UniPC" and request.override_settings:
        fewest = request.override_settings.uni_pc_order or fewest
    if steps < fewest:
        name = "hr_second_pass_steps" if second_pass else "steps"
        raise InvalidInput(
            f"{name} = {steps}: sampler {sampler!r} needs at least {fewest}.", field=name
        )


def build(request: Txt2ImgRequest, names: Mapping[str, Any], models: Models) -> Payload:
    """Compose the body from the request, its names on the engine and its files."""
    body = request.model_dump(exclude=OURS, exclude_unset=True) | dict(names)
    body |= _sizes(request) | _prompts(request, models) | _second_models(models)
    body["override_settings"] = _override_settings(request, models)
    expected = Expected(
        images=None if request.script_name else request.batch_size * request.n_iter,
        checkpoint=models.loaded.stem if models.loaded else None,
        checkpoint_sha256=models.loaded.verified_sha256 if models.loaded else None,
        loras=_reported_loras(request, body),
        vae=models.vae.filename if models.vae else None,
        embeddings=frozenset(file.stem for file in models.embeddings if _is_used(file, request)),
    )
    return Payload(body, expected, tuple(_warnings(request, models, body)))


def _sizes(request: Txt2ImgRequest) -> dict[str, int]:
    return {name: getattr(request, name) // 8 * 8 for name in ("width", "height")}


def _prompts(request: Txt2ImgRequest, models: Models) -> dict[str, str]:
    prompts = {"prompt": request.prompt}
    if request.hr_prompt:  # if it is empty, A1111 uses `prompt` with its tags
        prompts["hr_prompt"] = request.hr_prompt
    if request.disable_extra_networks:
        return prompts
    stems = {written: file.stem for written, file in models.written_loras.items()}
    tags = [lora_tag(file, reference) for file, reference in models.tagged]
    words = _trigger_words(request, models)
    return {
        key: add_lora_tags(rename_lora_tags(add_words(text, words), stems), tags)
        for key, text in prompts.items()
    }


def _trigger_words(request: Txt2ImgRequest, models: Models) -> list[str]:
    """The trained words of the LoRAs for which the job asks for them."""
    wanting = (file for file, ref in models.loras if _wants_words(request, ref))
    return [word for file in wanting for word in file.trained_words]


def _wants_words(request: Txt2ImgRequest, reference: LoraReference) -> bool:
    own = reference.trigger_words
    return request.trigger_words if own is None else own


def _second_models(models: Models) -> dict[str, str]:
    """Exact stems: A1111 matches these two fuzzily, and answers 500 to an unknown one."""
    second = {"hr_checkpoint_name": models.hr_checkpoint, "refiner_checkpoint": models.refiner}
    return {name: file.stem for name, file in second.items() if file}


def _override_settings(request: Txt2ImgRequest, models: Models) -> dict[str, Any]:
    given = request.override_settings
    settings = given.model_dump(exclude_none=True) if given else {}
    if models.loaded:
        settings["sd_model_checkpoint"] = models.loaded.stem
    if models.vae:
        settings["sd_vae"] = models.vae.filename
    if request.clip_skip is not None:
        # As a number, because A1111 answers 500 to "2"; it ignores a field `clip_skip`.
        settings["CLIP_stop_at_last_layers"] = request.clip_skip
    if request.output.preview:
        settings[LIVE_PREVIEWS] = True
    return settings


def has_previews(body: Mapping[str, Any]) -> bool:
    """Whether the engine makes previews of this job."""
    return bool(body["override_settings"].get(LIVE_PREVIEWS))


def throwaway(body: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest picture with another prompt, but the same models, passes and settings."""
    tiny = {"prompt": "", "steps": 1, "width": 64, "height": 64, "batch_size": 1, "n_iter": 1}
    hires = ("enable_hr", "denoising_strength", "hr_upscaler", "hr_checkpoint_name")
    same = {key: body[key] for key in (*hires, "override_settings") if key in body}
    return tiny | same


def smaller(body: Mapping[str, Any]) -> str:
    """A hint for a picture that did not fit into memory: a smaller one."""
    if body.get("batch_size", 1) > 1:
        return "Set batch_size to 1 and n_iter to the number of pictures: they are made one by one."
    if body.get("enable_hr"):
        return f"Lower hr_scale (now {body.get('hr_scale', 2.0)}), or leave out enable_hr."
    width, height = (max(64, int(body[side] * 0.7) // 64 * 64) for side in ("width", "height"))
    if width * height >= body["width"] * body["height"]:
        return "The picture is small already: these models need a card with more memory."
    return f"Try {width}x{height}, which needs half the memory, or use a card with more memory."


def _reported_loras(request: Txt2ImgRequest, body: Mapping[str, Any]) -> frozenset[str]:
    """The LoRAs that A1111 reports: those of the second pass, if its prompt has tags of its own."""
    if request.disable_extra_networks:
        return frozenset()
    second_pass = _names(body.get("hr_prompt", "")) if request.enable_hr else frozenset()
    return second_pass or _names(body["prompt"])


def _names(prompt: str) -> frozenset[str]:
    return frozenset(tag.name for tag in lora_tags(prompt))


def _warnings(request: Txt2ImgRequest, models: Models, body: Mapping[str, Any]) -> Iterable[str]:
    for name in ("width", "height"):
        if body[name] != getattr(request, name):
            yield f"{name} {getattr(request, name)} is not a multiple of 8: {body[name]} was used."
    if lora_tags(request.negative_prompt):
        yield "negative_prompt has a LoRA tag, which A1111 reads as plain text there."
    unreported = _names(body["prompt"]) - _reported_loras(request, body)
    if unreported and not request.disable_extra_networks:
        yield f"LoRA {_listed(unreported)}: not proven, A1111 reports only the second pass."
    if unproven := {*hypernetworks(request.prompt), *hypernetworks(request.hr_prompt)}:
        yield f"hypernetwork {_listed(unproven)}: not proven, A1111 ignores an unknown one."
    hires = {f for f in request.model_fields_set if f.startswith("hr_") and getattr(request, f)}
    if hires - {"hr_scale"} and not request.enable_hr:
        yield f"{', '.join(sorted(hires))}: no effect, because enable_hr is false."
    yield from models.notes
    yield from _model_warnings(request, models)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _is_used(embedding: ModelFile, request: Txt2ImgRequest) -> bool:
    """Whether a prompt uses it; A1111 ignores case here."""
    prompts = (request.prompt, request.negative_prompt, request.hr_prompt)
    return any(embedding.stem.casefold() in prompt.casefold() for prompt in prompts)


def _model_warnings(request: Txt2ImgRequest, models: Models) -> Iterable[str]:
    written = _names(request.prompt)
    for file, reference in models.loras:
        if written & {file.stem, *reference.stems}:
            yield f"LoRA {file.stem!r} is already in the prompt: the weight of that tag is used."
        if _wants_words(request, reference) and not file.trained_words:
            yield f"LoRA {file.stem!r}: its trained words are unknown."
    for embedding in models.embeddings:
        if not _is_used(embedding, request):
            yield f"embedding {embedding.stem!r} is in no prompt, so it has no effect."
