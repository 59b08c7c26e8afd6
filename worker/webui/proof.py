"""Proof that an answer is the picture that was asked for.

A1111 v1.9.3 answers 200 when it ignored an unknown checkpoint, an unknown VAE or a missing LoRA.
Its `info` tells the truth, so it is read before anything is delivered.
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
    """Compare the engine's own account with what was asked for.

    Raises:
        WrongCheckpoint, WrongVae, LoraNotApplied, IncompleteAnswer: with both values.
    """
    _check_checkpoint(info, expected)
    vae = info.get("sd_vae_name")
    if expected.vae is not None and vae != expected.vae:
        raise WrongVae(
            f"asked for VAE {expected.vae!r}, the engine used {vae!r}.", expected=expected.vae
        )
    missing = sorted(expected.loras - applied_loras(info).keys())
    if missing:
        raise LoraNotApplied(
            f"the engine left out the LoRA {', '.join(map(repr, missing))}.", missing=missing
        )
    # With save_images and more than one picture, A1111 puts a grid in front.
    pictures = len(images) - int(info.get("index_of_first_image") or 0)
    if expected.images is None:
        if not images:
            raise IncompleteAnswer("the engine returned no picture.")
    elif pictures != expected.images:
        raise IncompleteAnswer(
            f"asked for {expected.images} pictures, the engine returned {pictures}."
        )


def _check_checkpoint(info: Mapping[str, Any], expected: Expected) -> None:
    used, short = info.get("sd_model_name"), info.get("sd_model_hash")
    if expected.checkpoint is not None and used != expected.checkpoint:
        raise WrongCheckpoint(
            f"asked for checkpoint {expected.checkpoint!r}, the engine used {used!r}.",
            expected=expected.checkpoint,
            used=used,
        )
    # A1111 goes by names: one that it has loaded stays loaded when its file becomes another. It
    # tells the first 10 digits, and none with --no-hashing.
    sha256 = expected.checkpoint_sha256
    if sha256 and short and not sha256.startswith(short):
        raise WrongCheckpoint(
            f"asked for checkpoint {expected.checkpoint!r} with sha256 {sha256[:10]}..., the engine"
            f" used another file of that name, {short}...",
            expected=sha256,
            used=short,
        )


def check_listed(
    checkpoints: Iterable[Mapping[str, Any]], loras: Iterable[Mapping[str, Any]], expected: Expected
) -> None:
    """After the engine has read its folders: does it see what the job needs?

    Args:
        checkpoints: the answer of GET /sd-models.
        loras: the answer of GET /loras.
        expected: what the picture must be made with.

    Raises:
        ModelNotListed: names what is missing.
    """
    seen = {PurePath(str(entry.get("filename"))).stem for entry in checkpoints}
    names = {str(entry.get("name")) for entry in loras}
    wanted = {expected.checkpoint} - {None}
    missing = sorted([*map(str, wanted - seen), *(expected.loras - names)])
    if missing:
        raise ModelNotListed(
            f"the engine does not list {', '.join(map(repr, missing))}.", missing=missing
        )


def check_embeddings(listed: Mapping[str, Any], expected: Expected) -> None:
    """Were the embeddings that a prompt uses loaded for the checkpoint of the picture?

    A1111 v1.9.3 skips one that does not fit the checkpoint, and reads its name as plain words.

    Raises:
        ModelMismatch, ModelNotListed: names what is missing.
    """
    loaded, skipped = set(listed.get("loaded", {})), set(listed.get("skipped", {}))
    for name in sorted(expected.embeddings - loaded):
        if name in skipped:
            raise ModelMismatch(f"embedding {name!r} does not fit the checkpoint.", model=name)
        raise ModelNotListed(f"the engine does not list the embedding {name!r}.", missing=[name])


def applied_loras(info: Mapping[str, Any]) -> dict[str, str]:
    """Name -> 12-digit hash of every LoRA that the engine loaded for the picture."""
    listed = (info.get("extra_generation_params") or {}).get("Lora hashes") or ""
    pairs = (entry.rpartition(": ") for entry in listed.split(", ") if entry)
    return {name: digest for name, _, digest in pairs}
