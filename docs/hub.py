"""The files of RunPod's Hub, `.runpod/*.json`, from the table of deployments and of GPUs.

Their fields are those of docs.runpod.io/hub/publishing-guide. docs/generate.py writes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.deployments import BY_NAME, DEPLOYMENTS, PORT
from worker.config import gpus
from worker.config.settings import PROJECT, Settings

# Where the project is on GitHub, as in the badge of README.md. The Hub shows the icon from there.
REPOSITORY = "OWNER/NAME"
ICON = "docs/images/icon.png"

DEFAULT = BY_NAME["sdxl"]
FIRST_START = 600_000  # ms; a test waits for the machine, the image of 4 GB and A1111, too

Object = dict[str, Any]


def badge() -> str:
    """The badge for a README: it leads to the listing in the Hub."""
    image = f"https://api.runpod.io/badge/{REPOSITORY}"
    return f"[![Runpod]({image})](https://console.runpod.io/hub/{REPOSITORY})"


def listing(*, load_balancing: bool = False) -> Object:
    """`hub.json`. A listing has one of RunPod's two types of endpoints."""
    kind: Object = {"endpointType": "LB"} if load_balancing else {}
    ports = ("PORT", "PORT_HEALTH") if load_balancing else ()
    return {
        "title": "A1111 worker" + (" (load balancing)" if load_balancing else ""),
        "description": "Pictures with any CivitAI or Hugging Face checkpoint and LoRA that a job"
        " names: AUTOMATIC1111 WebUI v1.9.3 behind RunPod's, A1111's and OpenAI's API. Each picture"
        " is delivered only after a proof that the right models drew it.",
        "type": "serverless",
        "category": "image",
        "iconUrl": f"https://raw.githubusercontent.com/{REPOSITORY}/main/{ICON}",
        "config": {
            "runsOn": "GPU",
            **kind,
            "containerDiskInGb": max(one.disk_gb for one in DEPLOYMENTS if one.preset),
            "gpuCount": 1,
            "gpuIds": ",".join(gpus.POOLS),
            "allowedCudaVersions": list(gpus.CUDA_OF_HOSTS),
            "presets": presets(),
            "env": [*inputs(), *({"key": name, "value": str(PORT)} for name in ports)],
        },
    }


def presets() -> list[Object]:
    """Named groups of values: a preset can set variables, but neither a GPU nor a model."""
    kinds = {one["key"]: one["input"]["type"] for one in inputs()}
    return [
        {
            "name": one.preset,
            "defaults": {
                key: int(value) if kinds[key] == "number" else value
                for key, value in one.env.items()
                if "RUNPOD_SECRET" not in value
            },
        }
        for one in DEPLOYMENTS
        if one.preset
    ]


def preset_table() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The presets, with what has to be chosen in the form beside each of them."""
    head = ("preset", "choose in the form", "sets")
    return head, [
        (
            str(one.preset),
            f"GPU: {', '.join(_cards(pool) for pool in one.pools)}"
            + (f"; Model: `{one.model}`" if one.model else ""),
            ", ".join(f"`{key}={value}`" for key, value in preset["defaults"].items()),
        )
        for one, preset in zip([d for d in DEPLOYMENTS if d.preset], presets(), strict=True)
    ]


def _cards(pool: str) -> str:
    return ", ".join(kind.names for kind in gpus.POOLS[pool])


def tests() -> Object:
    """`tests.json`: the Hub runs these jobs on a machine of its own before it lists a release."""
    return {
        "tests": [
            {"name": "health", "input": {"task": "health"}, "timeout": FIRST_START},
            {
                "name": "sd1_from_hugging_face",
                "input": {
                    "template": BY_NAME["sd1"].env["DEFAULT_TEMPLATE"],
                    "prompt": "portrait of a red fox in the snow, photo",
                    "seed": 1,
                },
                "timeout": FIRST_START,
            },
        ],
        "config": {
            "gpuTypeId": "NVIDIA GeForce RTX 4090",
            "gpuCount": 1,
            "env": [{"key": "DEFAULT_TEMPLATE", "value": "none"}],
            "allowedCudaVersions": list(gpus.CUDA_OF_HOSTS),
        },
    }


def files() -> dict[Path, str]:
    """The files with their content. The Hub reads hub.json; the other listing is a copy of it."""
    found = {
        "hub.json": listing(),
        "hub-load-balancing.json": listing(load_balancing=True),
        "tests.json": tests(),
    }
    return {
        PROJECT / ".runpod" / name: json.dumps(content, indent=2) + "\n"
        for name, content in found.items()
    }


# Inputs ------------------------------------------------------------------------------------------


def _default(name: str) -> Any:  # noqa: ANN401
    return Settings.model_fields[name.lower()].default


def _input(
    key: str,
    name: str,
    description: str,
    kind: str = "string",
    *,
    advanced: bool = True,
    **more: object,
) -> Object:
    hidden = {"advanced": True} if advanced else {}
    about = {"name": name, "type": kind, "description": description}
    return {"key": key, "input": {**about, **more, **hidden}}


def inputs() -> list[Object]:
    """The variables that the form of a deployment asks for."""
    return [*_models(), *_jobs(), *_bucket(), _log_level()]


def _models() -> list[Object]:
    return [
        _input(
            "DEFAULT_TEMPLATE",
            "Default template",
            "For jobs that name neither a template nor a checkpoint. Its models are downloaded at"
            " the first start.",
            options=_templates(),
            default=DEFAULT.env["DEFAULT_TEMPLATE"],
            advanced=False,
        ),
        _input(
            "CIVITAI_API_KEY",
            "CivitAI API key",
            "CivitAI requires an API key for downloads: civitai.com, Account settings, API Keys."
            " Models of Hugging Face need none.",
            advanced=False,
        ),
        _input("HF_TOKEN", "Hugging Face token", "Only for gated and private files."),
        _input(
            "MODELS_BUDGET_GB",
            "Models on the disk, GB",
            "Disk space for downloaded models; the least recently used ones are deleted. Leave it"
            " empty to use the whole disk.",
            "number",
            min=0,
            max=4000,
        ),
    ]


def _templates() -> list[Object]:
    """Those of templates.json whose models can be downloaded, and none."""
    found = json.loads((PROJECT / "templates.json").read_text())["templates"]
    options = [
        {"label": f"{one['name']} ({_host(one['checkpoint']['url'])})", "value": name}
        for name, one in found.items()
        if "url" in one["checkpoint"]
    ]
    return [*options, {"label": "None: the engine's own checkpoint", "value": "none"}]


def _host(url: str) -> str:
    return "Hugging Face" if "huggingface.co" in url else "CivitAI, needs a key"


def _jobs() -> list[Object]:
    sdxl = next(picture for picture in gpus.PICTURES if picture.name == "SDXL, 1024x1024")
    of_sdxl, of_sd1 = gpus.size_for(sdxl.memory(single=True)), gpus.size_for(gpus.SMALLEST_GPU)
    return [
        _input(
            "JOB_CONCURRENCY",
            "Jobs at once",
            "2: while one job generates, the next job's models are downloaded and the last job's"
            " pictures are delivered.",
            "number",
            min=1,
            max=8,
            default=_default("JOB_CONCURRENCY"),
        ),
        _input(
            "JOB_TIMEOUT",
            "Job timeout, seconds",
            "The longest time that a job may take, downloads included. Keep the endpoint's"
            " execution timeout above it.",
            "number",
            min=10,
            max=86400,
            default=int(_default("JOB_TIMEOUT")),
        ),
        _input(
            "WEBUI_ARGS",
            "GPU memory",
            "A1111's own flag for GPUs with little memory. Without it, SDXL needs a GPU of"
            f" {of_sdxl} GB, and SD1 one of {of_sd1} GB.",
            options=[
                {"label": "Enough for the models", "value": ""},
                {"label": f"Less than {of_sdxl} GB for SDXL: --medvram", "value": "--medvram"},
                {"label": f"Less than {of_sd1} GB, slow: --lowvram", "value": "--lowvram"},
            ],
            default="",
        ),
    ]


def _bucket() -> list[Object]:
    return [
        _input(
            "BUCKET_ENDPOINT_URL",
            "S3 endpoint URL",
            "Pictures go to this S3-compatible bucket instead of into the result, which RunPod"
            " limits to 10 MB. It may contain the bucket's name.",
        ),
        _input("BUCKET_NAME", "S3 bucket", "Needed unless the endpoint URL contains it."),
        _input("BUCKET_ACCESS_KEY_ID", "S3 access key id", "A key that may write to the bucket."),
        _input("BUCKET_SECRET_ACCESS_KEY", "S3 secret access key", "The secret half of that key."),
    ]


def _log_level() -> Object:
    return _input(
        "LOG_LEVEL",
        "Log level",
        "The least severe log lines that are written.",
        options=[
            {"label": "Warnings", "value": "WARNING"},
            {"label": "Normal", "value": "INFO"},
            {"label": "Everything", "value": "DEBUG"},
        ],
        default=_default("LOG_LEVEL"),
    )
