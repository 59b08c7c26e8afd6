"""Proof that an answer is the picture that was asked for.

A1111 v1.9.3 answers 200 when it ignored an unknown checkpoint, an unknown VAE or a missing LoRA.
Its `info` tells the truth, so it is read before anything is delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import IncompleteAnswer, LoraNotApplied, WrongCheckpoint, WrongVae
from worker.payload import Expected


def check(info: Mapping[str, Any], images: Sequence[str], expected: Expected) -> None:
    """Compare the engine's own account with what was asked for.

    Raises:
        WrongCheckpoint, WrongVae, LoraNotApplied, IncompleteAnswer: with both values.
    """
    used = info.get("sd_model_name")
    if expected.checkpoint is not None and used != expected.checkpoint:
        raise WrongCheckpoint(
            f"asked for checkpoint {expected.checkpoint!r}, the engine used {used!r}.",
            expected=expected.checkpoint,
            used=used,
        )
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
    if pictures != expected.images:
        raise IncompleteAnswer(
            f"asked for {expected.images} pictures, the engine returned {pictures}."
        )


def applied_loras(info: Mapping[str, Any]) -> dict[str, str]:
    """Name -> 12-digit hash of every LoRA that the engine loaded for the picture."""
    listed = (info.get("extra_generation_params") or {}).get("Lora hashes") or ""
    pairs = (entry.rpartition(": ") for entry in listed.split(", ") if entry)
    return {name: digest for name, _, digest in pairs}
