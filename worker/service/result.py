"""What a job returns: plain JSON that the SDK can always send.

The SDK loses results in silence: bytes, NaN and lone surrogates never reach the platform, and an
`error` that is not a non-empty string turns a failure into a success without output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.answer import _plain_object
from worker.formats.model_file import ModelFile
from worker.job.model_fields import LoraReference
from worker.job.models import Models, lora_tag
from worker.webui.client import Txt2ImgAnswer
from worker.webui.payload import Payload
from worker.webui.proof import applied_loras


def success(
    answer: Txt2ImgAnswer,
    payload: Payload,
    models: list[dict[str, Any]],
    cache: Mapping[str, Mapping[str, int]],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """A1111's own three keys, and ours."""
    size = cache["checkpoints"]["total_size"] + cache["loras"]["total_size"]
    return _plain_object(
        {
            "images": answer.images,
            "parameters": answer.parameters,
            "info": answer.info,
            "cache_info": {
                "checkpoints_cached": cache["checkpoints"]["count"],
                "loras_cached": cache["loras"]["count"],
                "total_cache_size_mb": round(size / 2**20, 2),
            },
            "models": models,
            "timings": timings,
            "warnings": payload.warnings,
        }
    )


def templates(
    listed: list[dict[str, Any]], default: str | None, timings: Mapping[str, float]
) -> dict[str, Any]:
    """The answer of the task `templates`."""
    return _plain_object({"templates": listed, "default_template": default, "timings": timings})


def health(
    worker: Mapping[str, Any],
    engine: Mapping[str, Any],
    models: Mapping[str, Any],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """The answer of the task `health`."""
    parts = {"worker": worker, "engine": engine, "models": models, "timings": timings}
    return _plain_object(parts)


def models_used(facts: Mapping[str, Any], models: Models) -> list[dict[str, Any]]:
    """What the engine really used, the checkpoint first: kind, name, sha256, source.

    `source` says where a model was fetched from; it is `job` for a file of the operator's that
    the job named, `default` for the engine's own choice, `merged` for a checkpoint with LoRAs in
    it, which `merged_from` lists with their weights. The sha256 of an operator's checkpoint is
    left None: the engine knows it, and reading 7 GB again would cost.
    """
    source = (models.loaded.source or "job") if models.loaded else "default"
    name = facts.get("sd_model_name")
    used: list[dict[str, Any]] = [
        {
            "kind": "checkpoint",
            "name": name,
            "sha256": models.loaded.known_sha256 if models.loaded else None,
            "source": source,
        }
    ]
    if models.merged and models.checkpoint:
        loras = [_used(file) | _weights(file, reference) for file, reference in models.loras]
        used[0]["merged_from"] = [_used(models.checkpoint), *loras]
    used += [_used(models.vae)] if models.vae else []
    used += [_used(embedding) for embedding in models.embeddings]
    tagged = {file.stem: file for file in models.shown() if file.kind == "lora"}
    return used + [_used(tagged[name]) for name in applied_loras(facts) if name in tagged]


def _used(file: ModelFile) -> dict[str, Any]:
    return {
        "kind": file.kind,
        "name": file.stem,
        "sha256": file.sha256(),
        "source": file.source or "job",
    }


def _weights(file: ModelFile, reference: LoraReference) -> dict[str, float | None]:
    tag = lora_tag(file, reference)
    return {"te": tag.te, "unet": tag.unet}
