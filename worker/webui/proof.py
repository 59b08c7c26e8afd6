"""Proof that an answer is the requested picture.

A1111 v1.9.3 ignores an unknown checkpoint, an unknown VAE or a missing LoRA, and answers 200. Its
`info` names the models that it really used, so the worker reads that before it delivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from worker.errors import (
    IncompleteAnswer,
    LoraNotApplied,
    ModelMismatch,
    ModelNotListed,
    WrongCheckpoint,
    WrongVae,
)
from worker.webui.payload import Expected


def check(info: Mapping[str, Any], images: Sequence[str], expected: Expected) -> None:
    """Compare the engine's `info` with the request.

    Raises:
        WrongCheckpoint, WrongVae, LoraNotApplied, IncompleteAnswer: names both values.
    """
    _check_checkpoint(info, expected)
    vae = info.get("sd_vae_name")
    if expected.vae is not None and vae != expected.vae:
        raise WrongVae(
            f"expected VAE {expected.vae!r}, but the engine used {vae!r}.",
            expected=expected.vae,
        )
    missing = sorted(expected.loras - applied_loras(info).keys())
    if missing:
        raise LoraNotApplied(
            f"the engine did not apply the LoRA {', '.join(map(repr, missing))}.", missing=missing
        )
    # With save_images and more than one picture, the first image of A1111 is a grid of them.
    pictures = len(images) - int(info.get("index_of_first_image") or 0)
    if expected.images is None:
        if not images:
            raise IncompleteAnswer("the engine returned no picture.")
    elif pictures != expected.images:
        raise IncompleteAnswer(
            f"expected {expected.images} pictures, but the engine returned {pictures}."
        )


def _check_checkpoint(info: Mapping[str, Any], expected: Expected) -> None:
    used, short = info.get("sd_model_name"), info.get("sd_model_hash")
    if expected.checkpoint is not None and used != expected.checkpoint:
        raise WrongCheckpoint(
            f"expected checkpoint {expected.checkpoint!r}, but the engine used {used!r}.",
            expected=expected.checkpoint,
            used=used,
        )
    # A1111 compares names: a loaded checkpoint stays loaded when another file gets its name. `info`
    # has the first 10 digits of the hash, and none with --no-hashing.
    sha256 = expected.checkpoint_sha256
    if sha256 and short and not sha256.startswith(short):
        raise WrongCheckpoint(
            f"expected checkpoint {expected.checkpoint!r} with sha256 {sha256[:10]}..., but the"
            f" engine used another file of that name, with {short}...",
            expected=sha256,
            used=short,
        )


def check_listed(
    checkpoints: Iterable[Mapping[str, Any]], loras: Iterable[Mapping[str, Any]], expected: Expected
) -> None:
    """After a refresh: check that the engine lists the job's models.

    Args:
        checkpoints: the answer of GET /sd-models.
        loras: the answer of GET /loras.
        expected: the models that the job needs.

    Raises:
        ModelNotListed: names what is missing.
    """
    stems = {PurePath(str(entry.get("filename"))).stem for entry in checkpoints}
    names = {str(entry.get("name")) for entry in loras}
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
    """Name -> 12-digit hash of each LoRA that the engine loaded for the picture."""
    listed = (info.get("extra_generation_params") or {}).get("Lora hashes") or ""
    pairs = (entry.rpartition(": ") for entry in listed.split(", ") if entry)
    return {name: digest for name, _, digest in pairs}
