"""The templates of this worker: one file, read again when it has changed."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from worker.clients.nothing_asked import without_blanks
from worker.errors import ConfigError, TemplateNotFound, WorkerError
from worker.formats.names import Kind
from worker.job import template
from worker.job.model_fields import ModelReference
from worker.job.reference import Wanted, parse_reference
from worker.job.request import PictureRequest, TemplateDefaults
from worker.job.template import Template, TemplatesFile
from worker.job.txt2img import Txt2ImgRequest
from worker.shown import shown
from worker.spelling import near_matches

NONE = "none"  # for DEFAULT_TEMPLATE and for a job: no template

log = logging.getLogger(__name__)


class Templates:
    """The templates of one file, read again when it has changed. Thread-safe.

    Args:
        file: templates.json; None for no templates at all.
        default: name of the default template, instead of the file's own; "none" for none.

    Raises:
        ConfigError: the file cannot be used; the message names the position and the reason.
    """

    def __init__(self, file: Path | None, default: str | None = None) -> None:
        self._file = file
        self._default = default
        self._reading = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._content = TemplatesFile(templates={})
        self.reload_templates()

    # These methods have the names of the functions in the diffusers worker's templates.py.

    def get_templates(self) -> Mapping[str, Template]:
        """The templates by name, read again if the file has changed."""
        self._look_again()
        return self._content.templates

    def get_default_template(self) -> str | None:
        """Name of the default template, if there is one."""
        self._look_again()
        if self._default is None:
            return self._content.default_template
        return None if self._default == NONE else self._default

    def get_template(self, name: str | None = None) -> Template:
        """The template of that name, or the default one.

        Raises:
            TemplateNotFound: the message lists the known names, similar ones first.
        """
        known = self.get_templates()
        name = name or self.get_default_template() or ""
        if name in known:
            return known[name]
        raise _not_found(name, known)

    def list_templates(self) -> list[dict[str, Any]]:
        """Each template as plain JSON, see `worker.tasks.templates.ListedTemplate`."""
        default = self.get_default_template()
        return [
            {
                "template": key,
                "name": one.name,
                "description": one.description,
                "default": key == default,
                "checkpoint": one.checkpoint.label,
                "loras": [
                    {"name": lora.label, "scale": lora.scale, "te": lora.te, "unet": lora.unet}
                    for lora in one.loras
                ],
                "defaults": _public(one.defaults),
            }
            for key, one in self.get_templates().items()
        ]

    def titles(self) -> dict[str, str]:
        """Each display name and the name of its template in jobs."""
        return {one.name: key for key, one in self.get_templates().items()}

    def get_all_unique_checkpoints(self) -> dict[Wanted, ModelReference]:
        """Each checkpoint once, even if templates name it in different ways."""
        return _unique("checkpoint", (one.checkpoint for one in self.get_templates().values()))

    def get_all_unique_loras(self) -> dict[Wanted, ModelReference]:
        """Each LoRA once, even if templates give it different scales."""
        return _unique("lora", (ref for one in self.get_templates().values() for ref in one.loras))

    def reload_templates(self) -> None:
        """Read the file now.

        Raises:
            ConfigError: it cannot be used; the templates from before are kept.
        """
        with self._reading:
            self._seen = _version(self._file)
            content = _read(self._file) if self._file else TemplatesFile(templates={})
            wanted = self._default
            if wanted not in {None, NONE, *content.templates}:
                known = ", ".join(map(repr, content.templates)) or "none"
                raise ConfigError(f"DEFAULT_TEMPLATE={wanted!r}: no such template. Known: {known}.")
            self._content = content

    def _look_again(self) -> None:
        if _version(self._file) == self._seen:
            return
        try:
            self.reload_templates()
        except ConfigError as error:
            log.error("%s The templates from before are kept.", error)  # noqa: TRY400
        else:
            log.info("%s was read again: %d templates", self._file, len(self._content.templates))

    # For jobs --------------------------------------------------------------------------------

    def fill_in(
        self, job_input: object, known: Collection[str] = Txt2ImgRequest.model_fields
    ) -> object:
        """The job's input, completed with the values of its template for the task's fields.

        Raises:
            TemplateNotFound: there is no template of the name in the job.
        """
        if not isinstance(job_input, Mapping):
            return job_input
        job_input = without_blanks(job_input)
        name = job_input.get("template")
        if "template" not in job_input and not template.names_checkpoint(job_input):
            name = self.get_default_template()
        if not isinstance(name, str) or not name.strip():
            return job_input  # no template, or a value that the schema rejects
        if name.strip().casefold() == NONE and name.strip() not in self.get_templates():
            return {**job_input, "template": None}  # the word of DEFAULT_TEMPLATE
        return template.fill_in(name.strip(), self.get_template(name.strip()), job_input, known)


def hint_about_default(wanted: PictureRequest, job_input: object, error: WorkerError) -> str:
    """The hint that a missing model belongs to the default template; empty if it does not."""
    is_default = isinstance(job_input, Mapping) and "template" not in job_input
    if not (wanted.template and is_default):
        return ""
    name = error.details.get("name")
    if name and str(name) in json.dumps(job_input, ensure_ascii=False):
        return ""
    return (
        f" The job names neither a template nor a checkpoint, so the default template"
        f" {wanted.template!r} was used; DEFAULT_TEMPLATE=none switches that off."
    )


def _read(file: Path) -> TemplatesFile:
    try:
        return template.parse(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}") from None


def _version(file: Path | None) -> tuple[int, ...] | None:
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None


def _unique(kind: Kind, references: Iterable[ModelReference]) -> dict[Wanted, ModelReference]:
    unique: dict[Wanted, ModelReference] = {}
    for reference in references:
        unique.setdefault(reference.wanted(kind), reference)
    return unique


def _not_found(name: str, known: Mapping[str, Template]) -> TemplateNotFound:
    near = near_matches(name, known)
    names = [*near, *(other for other in known if other not in near)]
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return TemplateNotFound(
        f"template {shown(name)} is not known.",
        hint=f"{hint}Known: {', '.join(map(repr, names)) or 'none'}.",
        near=near,
        templates=names,
    )


def _public(defaults: TemplateDefaults) -> dict[str, Any]:
    """The defaults with only the names of models: a URL may be signed."""
    shown = defaults.model_dump(mode="json", exclude_unset=True)
    if defaults.vae:
        shown["vae"] = defaults.vae.label
    if "embeddings" in shown:
        shown["embeddings"] = [one.label for one in defaults.embeddings]
    override = shown.get("override_settings") or {}
    for part, name in (
        (shown, "refiner_checkpoint"),
        (shown, "hr_checkpoint_name"),
        (override, "sd_vae"),
        (override, "sd_model_checkpoint"),
    ):
        if part.get(name):
            part[name] = parse_reference(part[name]).shown
    return shown
