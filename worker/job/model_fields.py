"""The fields with which a job names a model. Part of the schema in `worker.job.request`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from worker.clients.nothing_asked import is_blank
from worker.errors import InvalidInput
from worker.formats.names import Kind, stem_of, without_suffix
from worker.job.reference import (
    Sha256,
    Wanted,
    local_path,
    parse_reference,
    reference_from_fields,
)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic's way
    return value


def _number_as_bool(value: object) -> object:
    """The two numbers that A1111 and its clients write for false and true."""
    return bool(value) if type(value) is int and value in (0, 1) else value


def no_nul(value: str) -> str:
    """Refuse text that a C library would truncate."""
    if "\x00" in value:
        raise ValueError("must not contain the character NUL")
    return value


def file_of_path(name: str) -> str:
    """The file name of a whole path of this machine: models are named by their files."""
    is_whole = name.startswith("/") or name[1:3] in {":/", ":\\"}
    if is_whole and without_suffix(name) != name:
        return PurePosixPath(name.replace("\\", "/")).name
    return name


ABOUT_TASK = "Name of the task; a job without this field is a txt2img job."

Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Switch = Annotated[StrictBool, BeforeValidator(_number_as_bool)]
Weight = Annotated[Float, Field(ge=-10, le=10)]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512, strip_whitespace=True),
    AfterValidator(no_nul),
]
ModelName = Annotated[Name, AfterValidator(file_of_path)]
Link = Annotated[str, StringConstraints(min_length=1, max_length=4096, strip_whitespace=True)]
Id = Annotated[Int, Field(ge=1, le=2**53 - 1)]
Timeout = Annotated[
    Annotated[Float, Field(ge=1, le=86_400)] | None,
    Field(description="Seconds that this job may take, at most JOB_TIMEOUT."),
]


def _standard_bounds(schema: dict[str, Any]) -> None:
    """Give bounds the names of JSON Schema: behind a validator pydantic writes `ge` and `le`."""
    for field in schema.get("properties", {}).values():
        for part in (field, *field.get("anyOf", ())):
            for own, standard in (("ge", "minimum"), ("le", "maximum")):
                if own in part:
                    part[standard] = part.pop(own)


class Strict(BaseModel):
    """An object without unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=False,
        defer_build=True,  # the start does not wait for models that only jobs use
        json_schema_extra=_standard_bounds,
    )


class TaskInput(Strict):
    """The input of a task; null and blank texts are read as fields that are not given."""

    @model_validator(mode="before")
    @classmethod
    def _what_is_asked(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {name: one for name, one in value.items() if not is_blank(one)}


class ModelReference(Strict):
    """A checkpoint, VAE or embedding: its source, or its name in the store."""

    name: ModelName | None = Field(
        None,
        description="Display name; as the only field: file name in the store, or any reference.",
    )
    url: Link | None = Field(
        None, description="CivitAI page or download URL, Hugging Face file, any https URL."
    )
    version_id: Id | None = Field(None, description="CivitAI model version.")
    air: Link | None = Field(None, description="AIR, such as `civitai:4384@128713`.")
    sha256: Link | None = Field(
        None,
        description="SHA-256 that the file must have, 64 hex digits; used instead of the host's.",
    )
    filename: ModelName | None = Field(
        None, description="File name in the store, or the name to store the downloaded file under."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"version_id": value}
        if not isinstance(value, Mapping | ModelReference):
            raise ValueError('must be a reference, or an object such as {"url": "..."}')  # noqa: TRY004
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A text or a number is allowed, too (`_from_text`)."""
        plain: list[JsonSchemaValue] = [
            {"type": "string", "minLength": 1},
            {"type": "integer", "minimum": 1},
        ]
        return {"anyOf": [*plain, handler(core_schema)]}

    @model_validator(mode="after")
    def _can_be_read(self) -> ModelReference:
        try:
            self.wanted("checkpoint")
        except InvalidInput as error:
            raise ValueError(f"{error.message} {error.hint}".strip()) from None
        return self

    def wanted(self, kind: Kind) -> Wanted:
        """The same as the model store's type; raises InvalidInput if it cannot be read."""
        ref = reference_from_fields(
            url=self.url,
            version_id=self.version_id,
            air=self.air,
            sha256=self.sha256,
            filename=self.filename,
            name=self.name,
        )
        sha256 = Sha256(self.sha256.lower().removeprefix("sha256:")).digest if self.sha256 else None
        local = local_path(self.name) if self.name_is_reference and self.name else None
        return Wanted(ref, kind, sha256, self.filename, local)

    def is_named(self, name: str) -> bool:
        """Whether this text, such as an option of A1111, names the same model."""
        try:
            return name == self.name or parse_reference(name) == self.wanted("checkpoint").ref
        except InvalidInput:
            return False

    @property
    def label(self) -> str:
        """Its name for people, without the secrets of a URL, which `name` alone may also be."""
        display = None if self.name_is_reference else self.name
        return display or self.wanted("checkpoint").ref.shown

    @property
    def name_is_reference(self) -> bool:
        """Whether `name` is the reference itself, not a name for display."""
        return not (self.url or self.version_id or self.air or self.sha256 or self.filename)

    @property
    def stems(self) -> list[str]:
        """The names that the caller may use for the file in a LoRA tag."""
        named = [name for name in (self.filename, self.name) if name]
        return [form for name in named for form in (without_suffix(name), stem_of(name))]


class LoraReference(ModelReference):
    """A LoRA and its weight; `te` and `unet` differ from `scale` only where they are given."""

    scale: Weight = Field(
        1.0, validation_alias=AliasChoices("scale", "weight"), description="Weight of the LoRA."
    )
    te: Weight | None = Field(None, description="Weight in the text encoder.")
    unet: Weight | None = Field(None, description="Weight in the UNet.")
    trigger_words: StrictBool | None = Field(
        None, description="Add its trained words to the prompt, if they are not in it."
    )
