"""The secrets of the environment: which variables hold them, and what must never be logged."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic_core import ErrorDetails

from worker.config.as_written import as_meant
from worker.errors import ConfigError
from worker.shown import in_plain_words, shown

# A variable holds a secret if its name has one of these words, or ends with one of the short ones.
SECRET_WORDS = (
    *("TOKEN", "SECRET", "PASSWORD", "PASSPHRASE", "CREDENTIAL"),
    *("API_KEY", "APIKEY", "ACCESS_KEY", "PRIVATE_KEY"),
)
SECRET_ENDS = ("_KEY", "_PASS", "_PASSWD", "_PWD", "_PAT", "_AUTH")
SECRET_NAME = re.compile(rf"{'|'.join(SECRET_WORDS)}|(?:{'|'.join(SECRET_ENDS)})\Z", re.IGNORECASE)
# `https://user:password@host`, also in a variable with a harmless name.
_PASSWORD = re.compile(r"://[^\s/:@]{0,200}:([^\s/@]{1,500})@")

# What an engine and its libraries read. It gets no other variable, because an extension or a
# picture's metadata could leak it, and nobody can list all names of secrets.
_FOR_ENGINE = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|HOSTNAME|PWD|TZ|LANG|LANGUAGE|TMPDIR|TEMP|TMP|NO_COLOR"
    r"|VIRTUAL_ENV|DEBIAN_FRONTEND|IGNORE_CMD_ARGS_ERRORS|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE"
    r"|(?i:https?_proxy|no_proxy|all_proxy)"
    r"|(?:LC|LD|XDG|PYTHON|CUDA|CUDNN|CUBLAS|CUBLASLT|CUFFT|NVIDIA|NVRTC|NCCL|HIP|HSA|ROCM|ROCR"
    r"|MIOPEN|GPU|TORCH|TORCHDYNAMO|TORCHINDUCTOR|PYTORCH|TRITON|XFORMERS|SAFETENSORS|ACCELERATE|DIFFUSERS"
    r"|TRANSFORMERS|OMP|GOMP|KMP|MKL|BLIS|OPENBLAS|NUMBA|NUMEXPR|VECLIB|MALLOC|TCMALLOC|GLIBC"
    r"|OPENCV|ORT|TF|MPL|YOLO|ULTRALYTICS|GIT_PYTHON|GRADIO|WEBUI|SD_WEBUI|A1111"
    r"|HF_(?:HOME|HUB|DATASETS|ASSETS|XET)|HUGGINGFACE_HUB_CACHE)(?:_.*|\Z)|MALLOC_TRIM_THRESHOLD_"
    r"|PYTHON[A-Z]+|MPL[A-Z]+"
)

# Field of `worker.config.settings.Settings` -> the variables that may hold it; the first one that
# is set counts. Each can also be given as a file, by `NAME_FILE`. The further names are those of
# other tools: CivitAI's own scripts, and Hugging Face's libraries in their older releases.
CREDENTIALS = {
    "civitai_api_key": ("CIVITAI_API_KEY", "CIVITAI_TOKEN", "CIVITAI_API_TOKEN"),
    "hf_token": (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HUGGINGFACE_HUB_TOKEN",
        "HUGGINGFACE_TOKEN",
    ),
    "bucket_access_key_id": ("BUCKET_ACCESS_KEY_ID",),
    "bucket_secret_access_key": ("BUCKET_SECRET_ACCESS_KEY",),
    "gateway_login": ("GATEWAY_LOGIN",),
    "gateway_token": ("GATEWAY_TOKEN",),
}

# For `model_manager.py push`: the variable -> those that may hold it. RunPod's own documents set
# the variables of AWS's tools.
VOLUME_KEYS = {
    "RUNPOD_S3_ACCESS_KEY": ("RUNPOD_S3_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    "RUNPOD_S3_SECRET_KEY": ("RUNPOD_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
}


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """The credentials, from `NAME`, or from the file that `NAME_FILE` names (Docker secrets).

    Raises:
        ConfigError: such a file cannot be read.
    """
    found = {field: credential(environ, names) for field, names in CREDENTIALS.items()}
    return {field: value for field, value in found.items() if value}


def credential(environ: Mapping[str, str], names: Iterable[str]) -> str:
    """The first of these variables that is set, from `NAME` or the file of `NAME_FILE`; or "".

    Raises:
        ConfigError: such a file cannot be read.
    """
    for name in names:
        file = as_meant(environ.get(f"{name}_FILE", ""))
        value = as_meant(environ.get(name, "")) or as_meant(_content(file, f"{name}_FILE"))
        if value:
            return value
    return ""


def _content(path: str, name: str) -> str:
    try:
        return Path(path).expanduser().read_text() if path else ""
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name}={path!r} cannot be read: {error}.") from None


def check_one_word(secret: str) -> None:
    """Whether it can be sent in a header.

    Raises:
        ValueError: it cannot, or it is no secret, but RunPod's reference to one.
    """
    if "{{ RUNPOD_SECRET_" in secret:
        raise ValueError("is a reference that RunPod did not replace: create that secret there")
    # Another character in a header would cause an error whose text contains the secret.
    if not re.fullmatch(r"[!-~]+", secret):
        raise ValueError("must be one word of printable ASCII characters")


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """The values that must never be logged: credentials, variables named like a secret, and
    passwords in URLs.
    """
    written = [value for name, value in environ.items() if value and SECRET_NAME.search(name)]
    meant = [value for value in map(as_meant, written) if value]
    known = credentials(environ)
    password = known.get("gateway_login", "").partition(":")[2]
    volume = (credential(environ, names) for names in VOLUME_KEYS.values())
    of_urls = (found[1] for value in environ.values() for found in _PASSWORD.finditer(value))
    more = filter(None, [password, *volume, *of_urls])
    return list(dict.fromkeys([*written, *meant, *known.values(), *more]))


def hidden_from_engine(environ: Mapping[str, str], further: Collection[str] = ()) -> list[str]:
    """The names of the variables that start.sh removes from the engine's environment.

    Args:
        environ: the variables of start.sh.
        further: names that the operator lets the engine have.
    """
    return [
        name
        for name, value in environ.items()
        if name not in further and (not _FOR_ENGINE.fullmatch(name) or _is_secret(name, value))
    ]


def _is_secret(name: str, value: str) -> bool:
    return bool(SECRET_NAME.search(name) or _PASSWORD.search(value))


def problem_with(detail: ErrorDetails) -> str:
    """A wrong setting: its name, its value unless that is secret, and what it must be."""
    message = in_plain_words(detail["msg"])
    if not detail["loc"]:
        return message  # about several variables
    name = str(detail["loc"][0])
    given = detail["input"]
    hidden = name in CREDENTIALS or "auth" in str(given)  # `--api-auth` of WEBUI_ARGS
    value = "***" if hidden else shown(given)
    return f"{name.upper()}={value}: {message}"
