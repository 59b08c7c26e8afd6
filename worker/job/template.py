"""A template: a named preset of a checkpoint, LoRAs and defaults. Pure.

    {"templates": {"fox": {"name": "Foxes", "description": "...",
                           "checkpoint": {"name": "...", "url": "...", "filename": "..."},
                           "loras": [{"name": "...", "url": "...", "scale": 1.5}],
                           "defaults": {"steps": 25, "negative_prompt": "blurry"}}},
     "default_template": "fox"}

A job names one with `template`; whatever it says itself counts instead of what the template says.
`python -m worker.job.template` prints the JSON Schema of templates.json, which editors use to help.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from worker.errors import ConfigError, InvalidInput
from worker.formats.names import without_suffix
from worker.job.model_fields import LoraReference, ModelReference, Name, Strict
from worker.job.models import wanted_models
from worker.job.request import JobFields, Txt2ImgRequest, joined, problems_of

# A1111's two names for one thing, and what belongs to a choice: said by the job, none of the
# template's is left.
_TOGETHER = (
    {"sampler_name", "sampler_index", "scheduler"},
    {"hr_sampler_name", "hr_scheduler"},
    {"refiner_checkpoint", "refiner_switch_at"},
)
# The same as a field of its own and below `override_settings`.
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
        description="Not needed: `bake --diffusers` names the folder itself. Permitted, so that"
        " a templates.json of the diffusers worker can be used.",
    )


class Template(Strict):
    """A preset of a checkpoint, LoRAs and defaults."""

    name: Name = Field(description="What people call it.")
    description: str = Field("", description="What it is good for.")
    checkpoint: Checkpoint
    loras: list[LoraReference] = Field(
        default_factory=list, max_length=32, description="LoRAs with their scales."
    )
    defaults: JobFields = Field(
        default_factory=JobFields,
        description="Values for any other field of a job, such as steps or negative_prompt.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_in_their_place(cls, value: object) -> object:
        misplaced = set(value) & set(JobFields.model_fields) if isinstance(value, Mapping) else ()
        if misplaced:
            raise ValueError(f"{', '.join(sorted(misplaced))} must stand inside `defaults`")
        return value

    @model_validator(mode="after")
    def _is_a_job(self) -> Template:
        try:
            wanted_models(self.request())
        except ValidationError as error:
            raise ValueError("; ".join(problems_of(error))) from None
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return self

    def job_input(self) -> dict[str, Any]:
        """What a job would say to get the same without the template."""
        given = self.model_dump(
            mode="json", include={"checkpoint", "loras"}, exclude_unset=True, exclude_none=True
        )
        given["checkpoint"].pop("diffusers_dir", None)
        return given | self.defaults.model_dump(mode="json", exclude_unset=True)

    def request(self) -> Txt2ImgRequest:
        """The job that says nothing itself."""
        return Txt2ImgRequest.model_validate(self.job_input())


class TemplatesFile(Strict):
    """The whole file."""

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
                f"default_template {name!r} is none of {', '.join(map(repr, self.templates))}"
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
        raise ConfigError(joined(problems_of(error, _json_path))) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON: {error}.") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a templates.json."""
    return TemplatesFile.model_json_schema()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _json_path(loc: tuple[int | str, ...]) -> str:
    """`("templates", "a fox", "loras", 0)` as `$.templates['a fox'].loras[0]`."""
    return "$" + "".join(
        f".{key}" if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) else f"[{key!r}]"
        for key in loc
    )


# The job and the template ----------------------------------------------------------------------


def names_checkpoint(job_input: Mapping[str, Any]) -> bool:
    """Whether the job chooses its checkpoint itself."""
    override = job_input.get("override_settings")
    in_override = isinstance(override, Mapping) and override.get(_OVERRIDES["checkpoint"])
    return bool(job_input.get("checkpoint") or in_override)


def fill_in(name: str, template: Template, job_input: Mapping[str, Any]) -> dict[str, Any]:
    """The job's input, and what the template says wherever the job says nothing."""
    # The LoRAs belong to the checkpoint: on the engine's own one they would be noise.
    said = {k: v for k, v in job_input.items() if k != "checkpoint" or v is not None}
    preset = template.job_input()
    for group in _TOGETHER:
        if group & said.keys():
            preset = {key: value for key, value in preset.items() if key not in group}
    override = _override_settings(preset, said)
    filled = preset | said | {"template": name}
    if override:
        filled["override_settings"] = override
    if isinstance(said.get("loras"), list):
        own = template.job_input().get("loras", [])
        filled["loras"] = [_completed(one, own) for one in said["loras"]]
    if "checkpoint" in said:
        filled["checkpoint"] = _completed(said["checkpoint"], [template.job_input()["checkpoint"]])
    return filled


def _override_settings(preset: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides' options in one; takes out of the preset what the job says the other way."""
    own = said.get("override_settings") or {}
    if not isinstance(own, Mapping):
        return {}
    theirs = preset.pop("override_settings", None) or {}
    for field, option in _OVERRIDES.items():
        if field in said:
            theirs.pop(option, None)
        if option in own and not (field == "checkpoint" and own[option] is None):
            preset.pop(field, None)
    return {**theirs, **own}


def _completed(given: object, own: Iterable[Mapping[str, Any]]) -> object:
    """A model that the job calls by the template's name for it: the template knows where it is."""
    named = {"name": given} if isinstance(given, str) else given
    if not isinstance(named, Mapping) or named.keys() & {"url", "version_id", "air", "sha256"}:
        return given
    called = {_folded(named.get(key)) for key in ("name", "filename")} - {""}
    for one in own:
        if called & {_folded(one.get(key)) for key in ("name", "filename")}:
            # A weight for the text encoder or the UNet alone must not survive another scale.
            kept = {k: v for k, v in one.items() if k not in {"scale", "te", "unet"}}
            weights = {"scale", "weight", "te", "unet"} & named.keys()
            return {**(kept if weights else one), **named}
    return given


def _folded(name: object) -> str:
    return without_suffix(name).casefold() if isinstance(name, str) else ""


def main() -> None:
    """Print the schema, as it stands in templates.schema.json."""
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
