"""Removes what asks for nothing: clients fill the fields that their user left alone. Pure.

A1111 reads an empty text, null and the dropdowns' own words for "not chosen" as nothing. Other
values pass unchanged; `worker.job.request` checks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

# Texts that may be empty: an empty prompt is a prompt.
_PROMPTS = frozenset({"prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"})

# Field -> the words, in small letters, with which A1111's own dropdowns say "not chosen".
_NOT_CHOSEN = {
    "checkpoint": {"none"},
    "sd_model_checkpoint": {"none"},
    "refiner_checkpoint": {"none"},
    "hr_checkpoint_name": {"none", "use same checkpoint"},
    "hr_sampler_name": {"use same sampler"},
    "hr_scheduler": {"use same scheduler"},
    "script_name": {"none"},
}
# A1111 reads 0 here like a field that is not given.
_ZERO_IS_UNSET = frozenset({"clip_skip", "CLIP_stop_at_last_layers"})

_OBJECTS = frozenset({"override_settings", "output", "checkpoint", "vae"})
# PHP and Lua write an empty object as `[]`, which A1111 reads as one.
_EMPTY_OBJECTS = _OBJECTS | {"alwayson_scripts", "comments"}
_MODEL_LISTS = frozenset({"loras", "embeddings"})
_WEIGHTS = frozenset({"scale", "weight", "te", "unet", "trigger_words"})

# Values of A1111's option `sd_vae` that are not the name of a file, by their small letters.
VAE_WORDS = {"automatic": "Automatic", "none": "None"}


def is_blank(value: object) -> bool:
    """Whether it is null or a text without a visible character."""
    return value is None or (isinstance(value, str) and not value.strip())


def without_blanks(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job without fields that ask for nothing.

    A null at the top stays: in a job with a template it removes the template's value.
    """
    found = {name: _cleaned(name, value) for name, value in job.items()}
    kept = {name: value for name, value in found.items() if not _asks_nothing(name, value)}
    if not kept.get("refiner_checkpoint") and kept.get("refiner_switch_at") == 0:
        del kept["refiner_switch_at"]
    return _vae_word_as_option(kept)


def without_nulls(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job without fields that are null: they have A1111's defaults."""
    return {name: value for name, value in job.items() if value is not None}


def _cleaned(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
    if name in _OBJECTS and isinstance(value, Mapping):
        return _filled(value)
    if name in _MODEL_LISTS and isinstance(value, list):
        return [_filled(one) if isinstance(one, Mapping) else one for one in _named(value)]
    if name == "styles" and isinstance(value, list):
        return [style for style in value if not is_blank(style) and style != "None"]
    return value


def _filled(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: VAE_WORDS.get(_folded(value), value) if name == "sd_vae" else value
        for name, value in one.items()
        if value is not None and not _asks_nothing(name, value)
    }


def _named(models: Iterable[Any]) -> Iterable[Any]:
    """Without the empty rows of a form: no name or "None", and at most a weight."""
    for one in models:
        is_row = isinstance(one, Mapping) and any(map(_is_no_name, one.values()))
        if not _is_no_name(one) and not (is_row and _named_by(one) <= _WEIGHTS):
            yield one


def _is_no_name(value: object) -> bool:
    return is_blank(value) or _folded(value) == "none"


def _named_by(row: Mapping[str, Any]) -> Set[str]:
    return {name for name, value in row.items() if not _is_no_name(value)}


def _asks_nothing(name: str, value: object) -> bool:
    if isinstance(value, str):
        empty = not value.strip() and name not in _PROMPTS
        return empty or _folded(value) in _NOT_CHOSEN.get(name, ())
    if value == [] and name in _EMPTY_OBJECTS:
        return True
    return name in _ZERO_IS_UNSET and value == 0 and not isinstance(value, bool)


def _vae_word_as_option(job: dict[str, Any]) -> dict[str, Any]:
    """`vae` also takes the two words of `override_settings.sd_vae`, unless both are given."""
    word = VAE_WORDS.get(_folded(job.get("vae")))
    options = job.get("override_settings") or {}
    if word is None or not isinstance(options, Mapping) or options.get("sd_vae", word) != word:
        return job
    del job["vae"]
    return job | {"override_settings": {**options, "sd_vae": word}}


def _folded(value: object) -> str:
    return value.strip().casefold() if isinstance(value, str) else ""
