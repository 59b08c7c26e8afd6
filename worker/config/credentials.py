"""The secrets of the environment: which variables hold them, and what must never be logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from worker.errors import ConfigError

# A variable whose name contains one of these words holds a secret.
SECRET_NAME = re.compile(r"TOKEN|API_KEY|SECRET|PASSWORD|ACCESS_KEY")

# The engine needs none of these either: an extension or a picture's metadata could leak them.
_PLATFORM_NAME = re.compile(r"(RUNPOD|BUCKET|AWS)_")

# Field of `worker.config.settings.Settings` -> the variables that may hold it. Each can also be
# given as a file, by `NAME_FILE`.
CREDENTIALS = {
    "civitai_api_key": ("CIVITAI_API_KEY", "CIVITAI_TOKEN"),
    "hf_token": ("HF_TOKEN",),
    "bucket_access_key_id": ("BUCKET_ACCESS_KEY_ID",),
    "bucket_secret_access_key": ("BUCKET_SECRET_ACCESS_KEY",),
}


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """The credentials, from `NAME`, or from the file that `NAME_FILE` names (Docker secrets).

    Raises:
        ConfigError: such a file cannot be read.
    """
    found = {}
    for field, names in CREDENTIALS.items():
        for name in names:
            value = environ.get(name) or _content(environ.get(f"{name}_FILE"), f"{name}_FILE")
            if value.strip():
                found[field] = value.strip()
                break
    return found


def _content(path: str | None, name: str) -> str:
    try:
        return Path(path).read_text() if path else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}={path!r} cannot be read: {error}.") from None


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """The values that must never be logged: credentials, and variables named like a secret."""
    named = [value for name, value in environ.items() if SECRET_NAME.search(name) and value]
    return list(dict.fromkeys([*named, *credentials(environ).values()]))


def hidden_from_engine(environ: Mapping[str, str]) -> list[str]:
    """The names of the variables that start.sh removes from the engine's environment."""
    return [name for name in environ if SECRET_NAME.search(name) or _PLATFORM_NAME.match(name)]
