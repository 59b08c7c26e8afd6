"""Proof that an answer is the requested picture.

A1111 v1.9.3 ignores an unknown checkpoint, an unknown VAE or a missing LoRA, and answers 200. Its
`info` names the models that it really used, so the worker reads that before it delivers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

from worker.errors import (
    IncompleteAnswer,
    LoraNotApplied,
    ModelMismatch,
    ModelNotListed,
    WrongCheckpoint,
    WrongDrawing,
    WrongVae,
)
from worker.extensions import proof as extension_proof
from worker.formats.names import without_suffix
from worker.generation.payload import Expected
from worker.generation.picture import size_of
from worker.images.parameters import entries
from worker.shown import shown_size


def check(info: Mapping[str, Any], images: Sequence[str], expected: Expected) -> None:
    """Compare the engine's `info` with the request.

    Raises:
        WrongCheckpoint, WrongVae, LoraNotApplied, IncompleteAnswer, WrongDrawing: names both
            values.
    """
    _check_checkpoint(info, expected)
    _check_vae(info, expected)
    missing = sorted(expected.loras - applied_loras(info).keys())
    if missing:
        raise LoraNotApplied(
            f"the engine did not apply the LoRA {', '.join(map(repr, missing))}.", missing=missing
        )
    # With save_images and more than one picture, the first image of A1111 is a grid of them.
    pictures = len(images) - int(info.get("index_of_first_image") or 0)
    if expected.units:
        extension_proof.check(info, pictures, expected.images, expected.units)
        pictures -= expected.units.maps
    if expected.images is None:
        if not images:
            raise IncompleteAnswer("the engine returned no picture.")
    elif pictures != expected.images:
        raise IncompleteAnswer(
            f"expected {expected.images} pictures, but the engine returned {pictures}."
        )
    maps = expected.units.maps if expected.units else 0
    _check_drawing(info, images[: len(images) - maps], expected)


def _check_drawing(info: Mapping[str, Any], images: Sequence[str], expected: Expected) -> None:
    """Compare how the pictures were drawn, such as with a mask, and their sizes."""
    used = info.get("extra_generation_params") or {}
    for name, wanted in expected.reported.items():
        if used.get(name) != wanted:
            raise WrongDrawing(
                f"expected {name} {wanted!r}, but the engine reports {used.get(name)!r}.",
                expected=wanted,
                used=used.get(name),
            )
    if not expected.size:
        return
    drawn = images[int(info.get("index_of_first_image") or 0) :]
    for size in set(map(size_of, drawn)) - {expected.size}:
        if size is None:
            raise IncompleteAnswer("the engine returned something that is no picture.")
        raise WrongDrawing(
            f"expected pictures of {shown_size(expected.size)} pixels, but the engine returned one"
            f" of {shown_size(size)}.",
            expected=expected.size,
            used=size,
        )


def _check_checkpoint(info: Mapping[str, Any], expected: Expected) -> None:
    if expected.checkpoint is None:
        return
    allowed = {expected.checkpoint, *_names_in(expected.script_args)}
    for used, short in _drawn_with(info, expected, "Model", "Model hash"):
        if used not in allowed:
            raise WrongCheckpoint(
                f"expected checkpoint {expected.checkpoint!r}, but the engine used {used!r}.",
                expected=expected.checkpoint,
                used=used,
            )
        # A1111 compares names: a loaded checkpoint stays loaded when another file gets its name.
        # `info` has the first 10 digits of the hash, and none with --no-hashing.
        sha256 = expected.checkpoint_sha256 if used == expected.checkpoint else None
        if sha256 and short and not sha256.startswith(short):
            raise WrongCheckpoint(
                f"expected checkpoint {expected.checkpoint!r} with sha256 {sha256[:10]}..., but the"
                f" engine used another file of that name, with {short}...",
                expected=sha256,
                used=short,
            )


def _check_vae(info: Mapping[str, Any], expected: Expected) -> None:
    if expected.vae is None:
        return
    allowed = {expected.vae, *_names_in(expected.script_args)}
    for used, _ in _drawn_with(info, expected, "VAE", "VAE hash"):
        if used not in allowed:
            raise WrongVae(
                f"expected VAE {expected.vae!r}, but the engine used {used!r}.",
                expected=expected.vae,
            )


# Scripts --------------------------------------------------------------------------------------

_REPORTED = {"Model": "sd_model_name", "Model hash": "sd_model_hash", "VAE": "sd_vae_name"}


def _drawn_with(
    info: Mapping[str, Any], expected: Expected, name: str, digest: str
) -> list[tuple[str | None, str | None]]:
    """The name and hash of the model of each picture.

    With a script `info` names no model, or only that of the first picture (A1111 v1.9.3: "prompts
    from file or textbox" and "x/y/z plot"). Each picture's infotext names its own.
    """
    infotexts = (info.get("infotexts") or []) if expected.images is None else []
    drawn = [entries(infotext) for infotext in infotexts]
    if not any(name in fields for fields in drawn):
        return [(info.get(_REPORTED[name]), info.get(_REPORTED.get(digest, "")))]
    return [(fields.get(name), fields.get(digest)) for fields in drawn]


def _names_in(script_args: Iterable[Any]) -> set[str]:
    """The names that a script's arguments may give to a model.

    "x/y/z plot" has them in a list or separated by commas, "prompts from file or textbox" behind
    `--sd_model`. A hash and a folder do not belong to the name that the infotext has.
    """
    names: set[str] = set()
    for text in _texts(script_args):
        words = [*re.split(r"[,\n]", text), *map(_first_word, text.split("--sd_model")[1:])]
        for word in words:
            name = word.strip().strip("\"'").partition(" [")[0]
            name = PurePosixPath(name.replace("\\", "/")).name
            names |= {name, without_suffix(name)}
    return names - {""}


def _first_word(text: str) -> str:
    text = text.lstrip()
    if text[:1] in {'"', "'"}:
        return text[1:].partition(text[0])[0]
    return text.split(None, 1)[0] if text else ""


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


# Lists ----------------------------------------------------------------------------------------


def check_listed(
    checkpoints: Iterable[Mapping[str, Any]],
    loras: Iterable[Mapping[str, Any]] | None,
    expected: Expected,
) -> None:
    """After a refresh: check that the engine lists the job's models.

    Args:
        checkpoints: the answer of GET /sd-models.
        loras: the answer of GET /loras; None if it is not known.
        expected: the models that the job needs.

    Raises:
        ModelNotListed: names what is missing.
    """
    stems = {PurePath(str(entry.get("filename"))).stem for entry in checkpoints}
    names = expected.loras if loras is None else {str(entry.get("name")) for entry in loras}
    required = {expected.checkpoint} - {None}
    missing = sorted([*map(str, required - stems), *(expected.loras - names)])
    if missing:
        raise ModelNotListed(
            f"the engine does not list {', '.join(map(repr, missing))}.", missing=missing
        )


def check_embeddings(listed: Mapping[str, Any], expected: Expected) -> None:
    """Check that the engine loaded the embeddings of the prompts for the picture's checkpoint.

    A1111 v1.9.3 skips an embedding that does not fit the checkpoint, and reads its name as words.

    Raises:
        ModelMismatch, ModelNotListed: names what is missing.
    """
    loaded, skipped = set(listed.get("loaded", {})), set(listed.get("skipped", {}))
    for name in sorted(expected.embeddings - loaded):
        if name in skipped:
            raise ModelMismatch(f"embedding {name!r} does not fit the checkpoint.", model=name)
        raise ModelNotListed(f"the engine does not list the embedding {name!r}.", missing=[name])


def applied_loras(info: Mapping[str, Any]) -> dict[str, str]:
    """Name -> 12-digit hash of each LoRA that the engine loaded for the pictures.

    A script's `info` may lack them: then they are those of the infotexts.
    """
    key = "Lora hashes"
    listed = [(info.get("extra_generation_params") or {}).get(key) or ""]
    if not listed[0] and info.get("sd_model_name") is None:
        listed = [entries(text).get(key, "") for text in info.get("infotexts") or []]
    pairs = (entry.rpartition(": ") for text in listed for entry in text.split(", ") if entry)
    return {name: digest for name, _, digest in pairs}
