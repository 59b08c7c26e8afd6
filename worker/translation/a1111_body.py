"""A body of A1111's API as the input of a job. Pure.

A client of A1111 sends all that its page has, cannot react to a refusal of a field that would have
no effect, and often does not show the error. A1111 v1.9.3's own request decides:

- A field that A1111 does not have, or that is about files and display, is left out with a note.
- A field that asks for nothing is left out without one.
- A field that would change the picture stays. What the worker cannot do, it then refuses by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from worker.clients.foreign_fields import SECOND_PASS, is_empty, task_instead
from worker.clients.nothing_asked import is_blank, without_blanks
from worker.clients.without_effect import leave_out
from worker.errors import InvalidInput
from worker.job.img2img import Img2ImgOptions, Img2ImgRequest
from worker.job.model_fields import Strict
from worker.job.problems import check_size
from worker.job.request import OverrideSettings, PictureRequest
from worker.job.txt2img import Txt2ImgRequest
from worker.shown import shown, shown_name
from worker.translation.a1111_options import PICTURE_OPTIONS, is_default

MOST_NOTES = 30
_LONGEST_NUMBER = 40  # characters of a number that is written as text
_LONGEST_NAME = 512  # characters of a model's name; a URL may be longer

Job = dict[str, Any]
_NOTHING: Mapping[str, Any] = {}

# Unknown to A1111 itself, but each names a change of the picture that its user waits for.
_EXTENSIONS = {"controlnet_units", "controlnet", "controlnet_args", "adetailer", "reactor", "roop"}
_OURS = {"output", "timeout"}
_EXTRAS = {
    *("resize_mode", "show_extras_results", "gfpgan_visibility", "codeformer_visibility"),
    *("codeformer_weight", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h"),
    *("upscaling_crop", "upscaler_1", "upscaler_2", "extras_upscaler_2_visibility"),
    *("upscale_first", "image", "imageList"),
}
_TRUE = {"true", "t", "yes", "y", "on", "1"}
_FALSE = {"false", "f", "no", "n", "off", "0"}


def to_job(
    task: str,
    body: Mapping[str, Any],
    options: Mapping[str, Any] = _NOTHING,
    titles: Mapping[str, str] = _NOTHING,
) -> tuple[Job, list[str]]:
    """The job that means the same as this body, and a sentence about each field that it lacks.

    Args:
        task: a route below /sdapi/v1/, such as `extra-single-image`, or a task of this worker.
        body: what the client has sent, unchecked.
        options: what this client has changed with POST /sdapi/v1/options. They are used where the
            body names nothing else.
        titles: display name of a template -> its name. Such a name as checkpoint is the template.

    Raises:
        InvalidInput: no task of this worker does what the route does, or the body is so large that
            it would keep its reader busy.
    """
    check_size(body)
    check_size(options)
    name = task_instead(task)
    if name in _DRAWING:
        job, notes = _drawing(name, body, options, titles)
    elif name in _OTHERS:
        job, notes = _OTHERS[name](body)
    else:
        raise InvalidInput(f"{shown(task)} is no route that a job can stand for.")
    return {"task": name, **job}, capped(notes)


def capped(notes: list[str]) -> list[str]:
    """The first notes, and how many there are beside: an answer must not grow with the input."""
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{more} further fields have no effect."] if more > 0 else notes


# Drawing ------------------------------------------------------------------------------------------

_DRAWING: Mapping[str, tuple[type[PictureRequest], type[OverrideSettings]]] = {
    "txt2img": (Txt2ImgRequest, OverrideSettings),
    "img2img": (Img2ImgRequest, Img2ImgOptions),
}


def _drawing(
    task: str, body: Mapping[str, Any], options: Mapping[str, Any], titles: Mapping[str, str]
) -> tuple[Job, list[str]]:
    model, known_options = _DRAWING[task]
    known = model.model_fields.keys() - {"task"}
    job = _asked(body)
    _read_texts(job, model)
    notes = [*_drop_display(job), *_rename(job)]
    job, more = _without_effect(job, known)
    notes += [*more, *_drop_unknown(job, known), *_drop_unread(job)]
    notes += _own_options(job, known_options)
    _add_options(job, options, known_options)
    _name_checkpoint(job, titles)
    if task == "img2img":  # the worker would take the size of the picture
        job = {"width": 512, "height": 512, **job}
    return job, notes


def _asked(body: Mapping[str, Any]) -> Job:
    """The body without null and what is empty; only an empty `prompt` is a value."""
    found = without_blanks(body)
    asked = {name: one for name, one in found.items() if not _is_unset(one)}
    return {"prompt": "", **asked} if found.get("prompt") == "" else asked


def _is_unset(value: object) -> bool:
    return is_blank(value) or value in ([], {})


def _read_texts(job: Job, model: type[Strict]) -> None:
    """Read numbers and switches that are written as text, as A1111 does."""
    for name, kind in _kinds(model).items():
        if name in job:
            job[name] = _as_switch(job[name]) if kind is bool else _as_number(job[name])


@cache
def _kinds(model: type[Strict]) -> Mapping[str, type]:
    """The fields of the model that hold a switch, a whole number or a number."""
    kinds = {name: _kind(field.annotation) for name, field in model.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if kind}


def _kind(annotation: object) -> type | None:
    if isinstance(annotation, type):
        return annotation if annotation in (bool, int, float) else None
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return next(filter(None, map(_kind, get_args(annotation))), None)
    return None


def _as_switch(value: object) -> object:
    if isinstance(value, str):
        word = value[:_LONGEST_NUMBER].strip().casefold()
        return True if word in _TRUE else False if word in _FALSE else value
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def _as_number(value: object) -> object:
    """A text with a fraction as a number: how it is used depends on the field."""
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    # Not so a whole number: a seed has more digits than a float.
    return number if math.isfinite(number) and not number.is_integer() else value


# Each field: whether its value asks for nothing, and why it has no effect in any case.
_DISPLAY: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "override_settings_restore_afterwards": (
        lambda value: value is True,
        "the options of a job do not reach the next one",
    ),
    "send_images": (lambda value: value is True, "the pictures are in the answer"),
    "save_images": (is_empty, "the pictures are in the answer"),
    "do_not_save_samples": (lambda _: True, ""),
    "do_not_save_grid": (lambda _: True, ""),
    "force_task_id": (lambda _: False, "a job has an id of its own"),
    "comments": (is_empty, "the infotext has no comments"),
}


def _drop_display(job: Job) -> Iterator[str]:
    """Leave out what concerns files, display and the server itself."""
    for name, (asks_nothing, reason) in _DISPLAY.items():
        if name in job and not asks_nothing(job.pop(name)):
            yield f"{name} has no effect: {reason}."
    for name in ("firstphase_width", "firstphase_height"):
        if job.get(name) in (0, "0"):
            del job[name]


def _rename(job: Job) -> Iterator[str]:
    """A1111's older names, and values that A1111 reads as others."""
    older = job.pop("sampler_index", None)
    if older is not None and "sampler_name" not in job:
        job["sampler_name"] = older
    elif older is not None and _folded(older) not in {_folded(job["sampler_name"]), "euler"}:
        yield f"sampler_index {shown(older)} has no effect: sampler_name names the sampler."
    for name in ("scheduler", "hr_scheduler"):
        if _folded(job.get(name)) == "normal":
            job[name] = "Uniform"
            yield f"{name} 'normal' was read as 'Uniform', which A1111 takes for it."


def _without_effect(job: Job, known: set[str]) -> tuple[Job, list[str]]:
    """The rules of every job; without `enable_hr` a template may still have a second pass."""
    of_template = SECOND_PASS & job.keys() if "enable_hr" not in job else set()
    left, notes = leave_out({n: v for n, v in job.items() if n not in of_template}, known)
    return left | {name: job[name] for name in of_template}, notes


def _drop_unknown(job: Job, known: set[str]) -> Iterator[str]:
    for name in sorted(job.keys() - known):
        if name in _EXTENSIONS and not is_empty(job[name]):
            continue
        if not is_empty(job.pop(name)):
            yield f"{shown_name(name)} has no effect: A1111 v1.9.3 does not have this field."


def _drop_unread(job: Job) -> Iterator[str]:
    """Leave out what A1111 does not read beside another field."""
    if "script_name" not in job and job.pop("script_args", None):
        yield "script_args has no effect without script_name."
    if "mask_blur" in job:
        sides = [job.pop(name, job["mask_blur"]) for name in ("mask_blur_x", "mask_blur_y")]
        if set(map(str, sides)) - {str(job["mask_blur"]), "4"}:
            yield "mask_blur_x and mask_blur_y have no effect beside mask_blur."
    options = job.get("override_settings")
    option = options.get("CLIP_stop_at_last_layers") if isinstance(options, Mapping) else None
    if option is not None and "clip_skip" in job and job["clip_skip"] != option:
        del job["clip_skip"]
        yield "clip_skip has no effect beside override_settings.CLIP_stop_at_last_layers."


# Options ------------------------------------------------------------------------------------------


def _own_options(job: Job, known: type[OverrideSettings]) -> Iterator[str]:
    """Keep of the body's options what a job can set or must be refused."""
    options = job.get("override_settings")
    if not isinstance(options, Mapping):
        return
    job["override_settings"] = kept = dict(options)
    _read_texts(kept, known)
    for name in sorted(kept.keys() - known.model_fields.keys()):
        if name not in PICTURE_OPTIONS:
            del kept[name]
            yield f"override_settings.{shown_name(name)} has no effect on the picture."
        elif is_default(name, kept[name]):
            del kept[name]
    if not kept:
        del job["override_settings"]


def _add_options(job: Job, options: Mapping[str, Any], known: type[OverrideSettings]) -> None:
    """Use the client's remembered options where the body names nothing else."""
    own = job.get("override_settings", {})
    if not isinstance(own, Mapping):
        return  # refused by name
    remembered = without_blanks({"override_settings": dict(options)}).get("override_settings", {})
    named = {
        "sd_model_checkpoint": {"checkpoint", "template"},
        "sd_vae": {"vae"},
        "CLIP_stop_at_last_layers": {"clip_skip"},
    }
    added = {
        name: value
        for name, value in remembered.items()
        if name in known.model_fields and not named.get(name, set()) & job.keys()
    }
    if own or added:
        job["override_settings"] = {**added, **own}


def _name_checkpoint(job: Job, titles: Mapping[str, str]) -> None:
    """The option `sd_model_checkpoint` as the field that takes every kind of reference."""
    options = job.get("override_settings")
    if not isinstance(options, Mapping) or "checkpoint" in job:
        return
    named = options.get("sd_model_checkpoint")
    if not isinstance(named, str):
        return  # not named, or refused by name
    job["override_settings"] = {k: v for k, v in options.items() if k != "sd_model_checkpoint"}
    if named.strip() in titles and "template" not in job:  # a file may have it in small letters
        job["template"] = titles[named.strip()]
    else:
        job["checkpoint"] = named if len(named) <= _LONGEST_NAME else {"url": named}
    if not job["override_settings"]:
        del job["override_settings"]


def _folded(value: object) -> str:
    return value.strip().casefold() if isinstance(value, str) else ""


# Other routes -------------------------------------------------------------------------------------


def _only(*names: str) -> Callable[[Mapping[str, Any]], tuple[Job, list[str]]]:
    """A route that takes these fields."""

    def read(body: Mapping[str, Any]) -> tuple[Job, list[str]]:
        job = {name: value for name, value in body.items() if not is_blank(value)}
        return job, list(_drop_unknown(job, {*names, *_OURS}))

    return read


def _upscale(body: Mapping[str, Any]) -> tuple[Job, list[str]]:
    """Beside `resize_mode` A1111 reads one of the two sizes, and has a default for each."""
    job, notes = _only(*_EXTRAS, "images")(body)
    for name in ("show_extras_results", "upscale_first"):  # A1111's API does not read them
        job.pop(name, None)
    if "upscaling_crop" in job:
        job["upscaling_crop"] = _as_switch(job["upscaling_crop"])
    mode = job.setdefault("resize_mode", 0)
    if not isinstance(mode, bool) and mode in (0, 1, "0", "1"):
        job["resize_mode"] = int(mode)
    sides = ("upscaling_resize_w", "upscaling_resize_h")
    if job["resize_mode"] == 1:
        job = {**dict.fromkeys(sides, 512), **job}
    elif "resize_mode" not in body:
        notes += [f"{name} has no effect with resize_mode 0." for name in sides if name in job]
    return job, notes


_OTHERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Job, list[str]]]] = {
    "upscale": _upscale,
    "png_info": _only("image"),
    "interrogate": _only("image", "model"),
}
