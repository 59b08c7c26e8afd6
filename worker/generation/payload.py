"""Composes A1111's request body from a checked job, and what the answer must prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import filterfalse
from typing import Any

from worker.errors import InvalidInput
from worker.extensions import proof as extension_proof
from worker.extensions import scripts
from worker.extensions.proof import ExpectedUnits
from worker.generation import init_images, prompts
from worker.generation.catalog import Catalog
from worker.generation.init_images import InitImages
from worker.generation.prompts import NO_STYLES, Styles
from worker.job.img2img import Img2ImgRequest
from worker.job.models import Models, contains, words
from worker.job.request import PictureRequest

# The job's fields that A1111 does not get.
OURS = {
    "task",
    "template",
    "checkpoint",
    "loras",
    "vae",
    "embeddings",
    "trigger_words",
    "wildcards",
    "clip_skip",
    "timeout",
    "output",
    "sampler_index",
    "disable_extra_networks",  # the prompts are sent without tags instead
    "init_images",  # `worker.generation.init_images` sends the checked pictures
    "mask",
    "include_init_images",
}

NO_PICTURES: Mapping[str, str] = {}
LIVE_PREVIEWS = "live_previews_enable"

# With fewer steps A1111 v1.9.3 answers 500 (measured). UniPC needs as many as its order.
FEWEST_STEPS = {"DPM++ 2M SDE": 2, "DPM++ 2M SDE Heun": 2, "DPM++ 3M SDE": 2, "UniPC": 3}
_NO_SINGLE_STEP_FROM_PICTURE = {"DPM fast", "DPM adaptive"}
# From a picture these draw as many steps as its noise is worth, the others one more (measured).
_WITHOUT_LAST_STEP = {"DDIM", "PLMS", "UniPC"}


@dataclass(frozen=True)
class Expected:
    """What the engine's `info` must contain (checked by `worker.generation.proof`).

    Attributes:
        images: number of pictures; None if a script decides it.
        checkpoint: stem of the checkpoint; None if the job names no checkpoint.
        loras: stems that must be in `Lora hashes`.
        vae: file name of the VAE; None if the job names no VAE.
        embeddings: stems of the embeddings that a prompt uses.
        checkpoint_sha256: in lower-case hex; None if the file was not hashed yet.
        script_args: the arguments of the job's script, which may name further models.
        has_bundle: whether a LoRA has embeddings in its own file.
        units: of ControlNet and ADetailer; None without any.
        size: width and height of each picture; None if they are not known here.
        reported: what must be in `extra_generation_params`.
    """

    images: int | None
    checkpoint: str | None = None
    loras: frozenset[str] = frozenset()
    vae: str | None = None
    embeddings: frozenset[str] = frozenset()
    checkpoint_sha256: str | None = None
    script_args: tuple[Any, ...] = ()
    has_bundle: bool = False
    units: ExpectedUnits | None = None
    size: tuple[int, int] | None = None
    reported: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Payload:
    """A request to the engine, what its answer must prove, and warnings for the caller.

    Attributes:
        route: `txt2img` or `img2img`.
    """

    body: dict[str, Any]
    expected: Expected
    warnings: tuple[str, ...] = ()
    route: str = "txt2img"


def engine_names(request: PictureRequest, catalog: Catalog) -> dict[str, Any]:
    """The fields whose values are the engine's names, in the engine's spelling.

    Checked before models are fetched: a misspelt name must cost nothing.

    Raises:
        InvalidInput: the engine does not have this sampler, scheduler, upscaler, script or style,
            or the sampler needs more steps, or A1111 would misread a prompt.
    """
    for style in request.styles or []:
        catalog.check("styles", style, catalog.styles)
    prompts.check(request, catalog.styles)
    if request.script_name:
        catalog.check_script(request.task, "script_name", request.script_name, request.script_args)
    for script in filterfalse(scripts.is_extension, request.alwayson_scripts):
        args = request.alwayson_scripts[script].args
        catalog.check_script(request.task, "alwayson_scripts", script, args)
    scripts.check(
        request.alwayson_scripts,
        catalog,
        request.task,
        has_picture=isinstance(request, Img2ImgRequest),
        script_name=request.script_name,
    )
    first_pass = _sampler(catalog, request.sampler_name or request.sampler_index, request.scheduler)
    sampler = first_pass.get("sampler_name")
    if isinstance(request, Img2ImgRequest):
        _check_steps_from_picture(request, sampler)
    else:
        _check_steps(request, sampler, request.steps, second_pass=False)
    return first_pass | _second_names(request, sampler, catalog)


def _second_names(request: PictureRequest, sampler: str | None, catalog: Catalog) -> dict[str, str]:
    """The same of the second pass, which has the first one's sampler if it names none."""
    second = request.second_pass
    if second is None:
        return {}
    if second.hr_upscaler:
        catalog.check("hr_upscaler", second.hr_upscaler, catalog.upscalers)
    names = _sampler(catalog, second.hr_sampler_name, second.hr_scheduler, "hr_")
    steps = second.hr_second_pass_steps or request.steps
    _check_steps(request, names.get("sampler_name") or sampler, steps, second_pass=True)
    return {f"hr_{field}": value for field, value in names.items()}


def _sampler(
    catalog: Catalog, sampler: str | None, scheduler: str | None, prefix: str = ""
) -> dict[str, str]:
    fields: dict[str, str] = {}
    if scheduler:
        fields["scheduler"] = scheduler = catalog.scheduler(scheduler, prefix)
    if sampler:
        fields["sampler_name"], label = catalog.sampler(sampler, scheduler, prefix)
        fields |= {"scheduler": label} if label else {}
    return fields


def _check_steps(
    request: PictureRequest, sampler: str | None, steps: int, *, second_pass: bool
) -> None:
    fewest = _fewest(request, sampler, from_picture=second_pass)
    if steps < fewest:
        name = "hr_second_pass_steps" if second_pass else "steps"
        raise InvalidInput(
            f"{name} = {steps}: sampler {sampler!r} needs at least {fewest}.", field=name
        )


def _fewest(request: PictureRequest, sampler: str | None, *, from_picture: bool) -> int:
    if sampler == "UniPC" and request.override_settings and request.override_settings.uni_pc_order:
        return request.override_settings.uni_pc_order
    if from_picture and sampler in _NO_SINGLE_STEP_FROM_PICTURE:
        return 2
    return FEWEST_STEPS.get(sampler or "", 1)


def _check_steps_from_picture(request: Img2ImgRequest, sampler: str | None) -> None:
    fewest = _fewest(request, sampler, from_picture=True)
    drawn = request.noisy_steps + (sampler not in _WITHOUT_LAST_STEP)
    if drawn < fewest:
        raise InvalidInput(
            f"steps = {request.steps} with denoising_strength = {request.denoising_strength:g}"
            f" draws {drawn} of them: sampler {sampler!r} needs at least {fewest}.",
            hint="Raise one of them.",
            field="steps",
        )


def build(
    request: PictureRequest,
    names: Mapping[str, Any],
    models: Models,
    styles: Styles = NO_STYLES,
    brought: InitImages | None = None,
    *,
    pictures: Mapping[str, str] = NO_PICTURES,
) -> Payload:
    """Compose the body from the request, its names on the engine, its files and its styles.

    Args:
        request: the job.
        names: see `engine_names`.
        models: the job's files.
        styles: of the engine.
        brought: the pictures of an img2img job.
        pictures: those of the units of extensions: field -> base64.

    Raises:
        InvalidInput: one LoRA is named in two ways, or is also in a style.
    """
    prompts.check_files(models)
    body = request.model_dump(exclude=OURS, exclude_unset=True) | dict(names)
    body |= _sizes(request) | prompts.compose(request, models) | _second_models(models)
    body["override_settings"] = _override_settings(request, models)
    units = scripts.read(request.alwayson_scripts)
    controls = scripts.model_names(units, models.controlnets)
    body |= _always_on(request, scripts.body(units, controls, pictures))
    expected = Expected(
        images=request.pictures,
        checkpoint=models.loaded.stem if models.loaded else None,
        checkpoint_sha256=models.loaded.verified_sha256 if models.loaded else None,
        loras=prompts.reported_loras(request, body, styles),
        vae=models.vae.filename if models.vae else None,
        script_args=tuple(request.script_args) if request.script_name else (),
        embeddings=_used_embeddings(models, prompts.encoded_texts(request, styles, body).values()),
        # The files of LoRAs that styles name are not looked up.
        has_bundle=models.has_bundle or prompts.has_styles_loras(request, styles),
        units=extension_proof.expected(units, controls, second_pass=has_second_pass(body)),
    )
    found = (
        *_warnings(request, body),
        *prompts.warnings(request, body, styles),
        *models.notes,
        *_model_warnings(request, models, expected),
    )
    if brought and isinstance(request, Img2ImgRequest):
        expected = _with_pictures(request, brought, expected)
        body |= init_images.body(request, brought)
        found += tuple(init_images.warnings(request, brought))
    elif not request.second_pass and not has_script(body):
        expected = replace(expected, size=(body["width"], body["height"]))
    return Payload(body, expected, found, request.task)


def _always_on(request: PictureRequest, extensions: Mapping[str, Any]) -> dict[str, Any]:
    given = request.alwayson_scripts.items()
    others = {name: script.model_dump() for name, script in given if not scripts.is_extension(name)}
    sent = others | dict(extensions)
    return {"alwayson_scripts": sent} if given else {}


def _with_pictures(request: Img2ImgRequest, brought: InitImages, expected: Expected) -> Expected:
    """What the answer must prove besides; a script may change the size and the strength."""
    if request.script_name:
        return expected
    size = init_images.result_size(request, brought)
    return replace(expected, size=size, reported=init_images.reported(request))


def _sizes(request: PictureRequest) -> dict[str, int]:
    return {name: getattr(request, name) // 8 * 8 for name in ("width", "height")}


def _second_models(models: Models) -> dict[str, str]:
    """Exact stems: A1111 matches these two fuzzily, and answers 500 to an unknown one."""
    second = {"hr_checkpoint_name": models.hr_checkpoint, "refiner_checkpoint": models.refiner}
    return {name: file.stem for name, file in second.items() if file}


def _override_settings(request: PictureRequest, models: Models) -> dict[str, Any]:
    """In A1111's order of work: the checkpoint first.

    What it keeps of a checkpoint when it loads it, the empty prompt, then does not depend on the
    job's other settings.
    """
    given = request.override_settings
    settings: dict[str, Any] = {"sd_model_checkpoint": models.loaded.stem} if models.loaded else {}
    if given:
        settings |= given.model_dump(exclude_none=True, exclude={"sd_model_checkpoint"})
    if models.vae:
        settings["sd_vae"] = models.vae.filename
    if models.zero_terminal_snr:
        settings.setdefault("sd_noise_schedule", "Zero Terminal SNR")
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
    if has_second_pass(body):  # with texts of its own, or A1111 reuses what the first pass has
        same |= {"hr_prompt": ".", "hr_negative_prompt": "."}
    return tiny | same


def has_second_pass(body: Mapping[str, Any]) -> bool:
    """Whether the picture is enlarged and drawn again."""
    return bool(body.get("enable_hr"))


def has_script(body: Mapping[str, Any]) -> bool:
    """Whether code runs beside A1111's own, which may set options of the engine."""
    return bool(body.get("script_name") or body.get("alwayson_scripts"))


_NO_MODEL = {"", "none", "use same checkpoint"}


def switches_inside(body: Mapping[str, Any]) -> bool:
    """Whether the engine may load another checkpoint or VAE while it makes this picture.

    A1111 puts the VAE that `override_settings` names back at the end of the same job. A script's
    arguments may name models ("x/y/z plot", "prompts from file or textbox").
    """
    if (body.get("script_name") or "prompt matrix").casefold() != "prompt matrix":
        return True
    second = [body.get("refiner_checkpoint")]
    if has_second_pass(body):
        second.append(body.get("hr_checkpoint_name"))
    names = {str(name or "").casefold() for name in second}
    return bool(names - _NO_MODEL) or "sd_vae" in body["override_settings"]


def smaller(body: Mapping[str, Any]) -> str:
    """A hint for a picture that did not fit into memory: a smaller one."""
    if len(body.get("init_images", ())) > 1:
        return "Send fewer init_images: they are drawn together."
    if body.get("batch_size", 1) > 1:
        return "Set batch_size to 1 and n_iter to the number of pictures: they are made one by one."
    if body.get("enable_hr"):
        return f"Lower hr_scale (now {body.get('hr_scale', 2.0)}), or leave out enable_hr."
    width, height = (max(64, int(body[side] * 0.7) // 64 * 64) for side in ("width", "height"))
    if width * height >= body["width"] * body["height"]:
        return "The picture is small already: these models need a card with more memory."
    return f"Try {width}x{height}, which needs half the memory, or use a card with more memory."


def _warnings(request: PictureRequest, body: Mapping[str, Any]) -> Iterable[str]:
    for name in ("width", "height"):
        if name in request.model_fields_set and body[name] != getattr(request, name):
            yield f"{name} {getattr(request, name)} is not a multiple of 8: {body[name]} was used."
    if request.override_settings and request.override_settings.pad_cond_uncond:
        yield (
            "pad_cond_uncond: A1111 pads with the empty prompt of the checkpoint for which it built"
            " its model, so the picture can depend on earlier jobs."
        )
    yield from request.notes


def _used_embeddings(models: Models, texts: Iterable[str]) -> frozenset[str]:
    """The stems that stand as words in a text that A1111 encodes."""
    encoded = [words(text) for text in texts]
    stems = (file.stem for file in models.embeddings)
    return frozenset(stem for stem in stems if any(contains(one, words(stem)) for one in encoded))


def _model_warnings(request: PictureRequest, models: Models, expected: Expected) -> Iterable[str]:
    written = prompts.written_loras(request) if models.loras else frozenset()
    for file, reference in models.loras:
        if written & {file.stem, *reference.stems}:
            yield f"LoRA {file.stem!r} is already in the prompt: the weight of that tag is used."
        if prompts.wants_words(request, reference) and not file.trained_words:
            yield f"LoRA {file.stem!r}: its trained words are unknown."
    for embedding in models.embeddings:
        if embedding.stem not in expected.embeddings:
            yield f"embedding {embedding.stem!r} is in no prompt, so it has no effect."
