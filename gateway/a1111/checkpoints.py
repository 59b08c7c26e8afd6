"""The checkpoints that a client can choose: the back's own, its templates, and any reference. Pure.

A template appears in the list of checkpoints under its display name: clients of A1111 have a field
for the checkpoint, and none for a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.catalog.catalog import Lists
from worker.errors import InvalidInput
from worker.job.reference import StoreName, parse_reference

Item = Mapping[str, Any]


def titles(lists: Lists) -> dict[str, str]:
    """Display name of a template -> its name, where no checkpoint has that name."""
    taken = {name for model in lists.models for name in _names(model)}
    found = {str(one["name"]): str(one.get("template")) for one in lists.templates}
    return {title: name for title, name in found.items() if title not in taken}


def current(lists: Lists) -> str:
    """What a client gets that has chosen nothing: the default template, or the first checkpoint."""
    for title, name in titles(lists).items():
        if name == lists.default_template:
            return title
    return next((_title(model) for model in lists.models), "")


def chosen(lists: Lists, text: str) -> str | None:
    """The title of the checkpoint or template that this text names; None if there is none.

    The text is one of A1111's own forms (title, file name, name, hash), the name of a template, or
    a reference to a file elsewhere, such as a URL, which comes back unchanged.
    """
    text = text.strip()
    if text in titles(lists):
        return text
    for model in lists.models:
        if text in _names(model):
            return _title(model)
    try:
        ref = parse_reference(text)
    except InvalidInput:
        return None
    if not isinstance(ref, StoreName):
        return text
    # A title that has lost or gained its hash or its folder, and capital letters.
    wanted = ref.name.rpartition("/")[2].casefold()
    for model in lists.models:
        if wanted in {name.casefold() for name in _names(model)}:
            return _title(model)
    # As long as the back has not said what it has, it decides itself.
    return None if lists.is_known else text


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
