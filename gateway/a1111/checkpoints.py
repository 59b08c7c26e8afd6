"""The checkpoints that a client can choose: the back's own, its templates, and any reference. Pure.

A template appears in the list of checkpoints under its display name: clients of A1111 have a field
for the checkpoint, and none for a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.catalog.catalog import Lists
from worker.errors import InvalidInput
from worker.job.reference import StoreName, parse_reference

Item = Mapping[str, Any]
LONGEST = 4096  # characters of a name


def titles(lists: Lists) -> dict[str, str]:
    """Display name of a template -> its name, where no checkpoint has that name."""
    taken = {name for model in lists.models for name in _names(model)}
    found = {str(one["name"]): str(one.get("template")) for one in lists.templates}
    return {title: name for title, name in found.items() if title not in taken}


def current(lists: Lists) -> str:
    """What a client gets that has chosen nothing: the default template, or the only checkpoint.

    Otherwise the engine decides, and the text is empty: a client that sends all options back must
    not choose another checkpoint with it.
    """
    if lists.default_template is not None:
        named = (title for title, name in titles(lists).items() if name == lists.default_template)
        return next(named, "")
    return _title(lists.models[0]) if len(lists.models) == 1 else ""


def chosen(lists: Lists, text: str) -> str | None:
    """The title of the checkpoint or template that this text names; None if there is none.

    The text is one of A1111's own forms (title, file name, name, hash), the name of a template, or
    a reference to a file elsewhere, such as a URL, which comes back unchanged, as does a text that
    several files may mean.
    """
    text = text.strip()
    if text in titles(lists):
        return text
    if exact := [model for model in lists.models if text in _names(model)]:
        return _only(exact) or text
    try:
        ref = parse_reference(text)
    except InvalidInput:
        return None
    if not isinstance(ref, StoreName):
        return text
    # A title that has lost or gained its hash, and capital letters.
    if similar := _similar(lists, ref.name):
        return _only(similar) or text
    # The list has no folders, and as long as the back has not said what it has, it is empty. So
    # the back decides itself.
    may_be = _similar(lists, ref.name.rpartition("/")[2])
    return text if may_be or not lists.is_known else None


def _similar(lists: Lists, name: str) -> list[Item]:
    wanted = name.casefold()
    return [one for one in lists.models if wanted in {form.casefold() for form in _names(one)}]


def _only(models: Sequence[Item]) -> str | None:
    """The title of the one model; None for several files, between which only the back decides."""
    is_one = len(models) == 1 or len({str(one.get("sha256") or id(one)) for one in models}) == 1
    return _title(models[0]) if is_one else None


def with_titles(body: Mapping[str, Any], lists: Lists) -> dict[str, Any]:
    """The body with the title of the checkpoint that its `override_settings` name, if it is one."""
    options = body.get("override_settings")
    named = options.get("sd_model_checkpoint") if isinstance(options, Mapping) else None
    title = chosen(lists, named) if isinstance(named, str) and len(named) <= LONGEST else None
    if title is None or not isinstance(options, Mapping):
        return dict(body)  # not named, or refused by the worker
    return {**body, "override_settings": {**options, "sd_model_checkpoint": title}}


def as_a1111(lists: Lists) -> list[dict[str, Any]]:
    """The answer of GET /sdapi/v1/sd-models: templates first."""
    return [
        *(
            _listed(title, title, None, f"templates/{name}")
            for title, name in titles(lists).items()
        ),
        *(
            _listed(
                _title(model),
                str(model.get("model_name") or _stem(model)),
                model.get("sha256"),
                f"models/Stable-diffusion/{model['name']}",
                model.get("hash"),
            )
            for model in lists.models
        ),
    ]


def _listed(
    title: str, name: str, sha256: object, filename: str, short: object = None
) -> dict[str, Any]:
    return {
        "title": title,
        "model_name": name,
        "hash": short,
        "sha256": sha256,
        "filename": filename,
        "config": None,
    }


def _title(model: Item) -> str:
    return str(model.get("title") or model["name"])


def _stem(model: Item) -> str:
    return str(model["name"]).rpartition("/")[2].rpartition(".")[0] or str(model["name"])


def _names(model: Item) -> set[str]:
    return set(_forms(model))


def _forms(model: Item) -> Iterator[str]:
    yield from (_title(model), str(model["name"]), _stem(model))
    for key in ("model_name", "hash", "sha256"):
        if isinstance(model.get(key), str):
            yield model[key]
