"""A template: a named preset of a checkpoint, LoRAs and defaults. Pure.

    {"templates": {"fox": {"name": "Foxes", "description": "...",
                           "checkpoint": {"name": "...", "url": "...", "filename": "..."},
                           "loras": [{"name": "...", "url": "...", "scale": 1.5}],
                           "defaults": {"steps": 25, "negative_prompt": "blurry"}}},
     "default_template": "fox"}

A job names one with `template`; the job's own values replace those of the template.
`python -m worker.job.template` prints the JSON Schema of templates.json, for editors.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from worker.errors import ConfigError, InvalidInput
from worker.formats.names import without_suffix
from worker.job.model_fields import LoraReference, ModelReference, Name, Strict
from worker.job.models import wanted_models
from worker.job.problems import joined, problems_of
from worker.job.request import TemplateDefaults
from worker.job.txt2img import Txt2ImgRequest

# Fields that belong together: if the job has one of a group, the template's whole group is ignored.
_TOGETHER = (
    {"sampler_name", "sampler_index", "scheduler"},
    {"hr_sampler_name", "hr_scheduler"},
    {"refiner_checkpoint", "refiner_switch_at"},
)
# Fields that are also options in `override_settings`.
_OVERRIDES = {
    "checkpoint": "sd_model_checkpoint",
    "vae": "sd_vae",
    "clip_skip": "CLIP_stop_at_last_layers",
}
_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_]*")


class Checkpoint(ModelReference):
    """A template's checkpoint."""

    diffusers_dir: Name | None = Field(
        None,
        description="Ignored: `bake --diffusers` names the folder itself. Allowed, so that a"
        " templates.json of the diffusers worker can be used.",
    )


class Template(Strict):
    """A preset of a checkpoint, LoRAs and defaults."""

    name: Name = Field(description="Its display name.")
    description: str = Field("", description="What it is good for.")
    checkpoint: Checkpoint
    loras: list[LoraReference] = Field(
        default_factory=list, max_length=32, description="LoRAs with their scales."
    )
    defaults: TemplateDefaults = Field(
        default_factory=TemplateDefaults,
        description="Values for any other field of a job, such as steps or negative_prompt.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_in_their_place(cls, value: object) -> object:
        names = set(value) if isinstance(value, Mapping) else set()
        misplaced = names & set(TemplateDefaults.model_fields)
        if misplaced:
            raise ValueError(f"{', '.join(sorted(misplaced))} must be inside `defaults`")
        return value

    @model_validator(mode="after")
    def _is_a_job(self) -> Template:
        try:
            wanted_models(self.request())
        except ValidationError as error:
            raise ValueError("; ".join(problems_of(error, Txt2ImgRequest))) from None
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return self

    def job_input(self) -> dict[str, Any]:
        """The job input with the same effect, without a template."""
        given = self.model_dump(
            mode="json", include={"checkpoint", "loras"}, exclude_unset=True, exclude_none=True
        )
        given["checkpoint"].pop("diffusers_dir", None)
        return given | self.defaults.model_dump(mode="json", exclude_unset=True)

    def request(self) -> Txt2ImgRequest:
        """The request of a job that has no fields of its own."""
        return Txt2ImgRequest.model_validate(self.job_input())


class TemplatesFile(Strict):
    """The content of a templates.json."""

    schema_file: str | None = Field(None, alias="$schema", description="For editors.")
    templates: dict[Name, Template] = Field(description="Templates by the names that jobs use.")
    default_template: Name | None = Field(
        None, description="Template for jobs that name neither a template nor a checkpoint."
    )

    @model_validator(mode="after")
    def _default_exists(self) -> TemplatesFile:
        name = self.default_template
        if name is not None and name not in self.templates:
            raise ValueError(
                f"default_template {name!r} is not in templates, which has"
                f" {', '.join(map(repr, self.templates))}"
            )
        return self


def parse(text: str) -> TemplatesFile:
    """The checked content of a templates.json.

    Raises:
        ConfigError: names every problem with its JSON path.
    """
    try:
        return TemplatesFile.model_validate(json.loads(text, object_pairs_hook=_once))
    except ValidationError as error:
        raise ConfigError(joined(problems_of(error, TemplatesFile, _json_path))) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the text is not valid JSON: {error}.") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a templates.json."""
    return TemplatesFile.model_json_schema()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(n for n, _ in pairs).items() if times > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _json_path(loc: tuple[int | str, ...]) -> str:
    """`("templates", "a fox", "loras", 0)` as `$.templates['a fox'].loras[0]`."""
    return "$" + "".join(
        f".{key}" if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) else f"[{key!r}]"
        for key in loc
    )


# The job and the template ----------------------------------------------------------------------


def names_checkpoint(job_input: Mapping[str, Any]) -> bool:
    """Whether the job names its checkpoint, by either field."""
    override = job_input.get("override_settings")
    in_override = isinstance(override, Mapping) and override.get(_OVERRIDES["checkpoint"])
    return bool(job_input.get("checkpoint") or in_override)


def fill_in(
    name: str,
    template: Template,
    job_input: Mapping[str, Any],
    known: Collection[str] = Txt2ImgRequest.model_fields,
) -> dict[str, Any]:
    """The job's input, completed with the values of the template; `known` are the task's fields."""
    # A null checkpoint does not remove the template's: its LoRAs need it.
    own = {k: v for k, v in job_input.items() if k != "checkpoint" or v is not None}
    preset = _of_task(template.job_input(), known)
    for group in _TOGETHER:
        if group & own.keys():
            preset = {key: value for key, value in preset.items() if key not in group}
    override = _override_settings(preset, own)
    filled = preset | own | {"template": name}
    if override:
        filled["override_settings"] = override
    models = template.job_input()
    if isinstance(own.get("loras"), list):
        filled["loras"] = [_completed(one, models.get("loras", [])) for one in own["loras"]]
    if "checkpoint" in own:
        filled["checkpoint"] = _completed(own["checkpoint"], [models["checkpoint"]])
    return filled


def _of_task(preset: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The template's values for a task.

    img2img has no second pass, nor its denoising_strength. Its size follows from the job's picture:
    the template's would stretch it.
    """
    is_second = preset.get("enable_hr") and "enable_hr" not in known
    other = {"denoising_strength"} if is_second else set()
    other |= {"width", "height"} if "init_images" in known else set()
    return {key: value for key, value in preset.items() if key in known and key not in other}


def _override_settings(preset: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """The options of template and job; removes from both what the job sets by another field."""
    own = job.get("override_settings") or {}
    if not isinstance(own, Mapping):
        return {}
    merged = preset.pop("override_settings", None) or {}
    for field, option in _OVERRIDES.items():
        if field in job:
            merged.pop(option, None)
        if option in own and not (field == "checkpoint" and own[option] is None):
            preset.pop(field, None)
    return {**merged, **own}


def _completed(given: object, known: Iterable[Mapping[str, Any]]) -> object:
    """A model of the job, with the template's source for it if the job uses the template's name."""
    named = {"name": given} if isinstance(given, str) else given
    if not isinstance(named, Mapping) or named.keys() & {"url", "version_id", "air", "sha256"}:
        return given
    called = {_folded(named.get(key)) for key in ("name", "filename")} - {""}
    for one in known:
        if called & {_folded(one.get(key)) for key in ("name", "filename")}:
            # The template's `te` and `unet` must not be combined with the job's `scale`.
            kept = {k: v for k, v in one.items() if k not in {"scale", "te", "unet"}}
            weights = {"scale", "weight", "te", "unet"} & named.keys()
            return {**(kept if weights else one), **named}
    return given


def _folded(name: object) -> str:
    return without_suffix(name).casefold() if isinstance(name, str) else ""


def main() -> None:
    """Print the JSON Schema; templates.schema.json contains it."""
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
