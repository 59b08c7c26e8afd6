"""The network volume that the arguments of `push` name, with the key from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import SecretStr

from worker.config import bucket_address
from worker.config.bucket_address import BucketAddress
from worker.config.credentials import VOLUME_KEYS, credential
from worker.errors import ConfigError
from worker.models.volume.limits import DEFAULT, SendLimits
from worker.models.volume.volume import Volume

_DATA_CENTER = re.compile(r"[A-Za-z]{2,4}-[A-Za-z]{2,4}-[0-9]{1,3}")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_HINT = "docs/network-volume.md shows how to push."


def connect(
    environ: Mapping[str, str],
    volume: str,
    data_center: str | None = None,
    endpoint_url: str | None = None,
    limits: SendLimits = DEFAULT,
) -> Volume:
    """The volume; nothing is sent yet.

    Args:
        environ: has RUNPOD_S3_ACCESS_KEY and RUNPOD_S3_SECRET_KEY, or RunPod's own names for them.
        volume: its id.
        data_center: where it is, such as "EU-RO-1".
        endpoint_url: of its S3 API; None for that of the data center.
        limits: of each request.

    Raises:
        ConfigError: the key is missing, or one of the arguments is malformed.
    """
    keys = {name: credential(environ, names) for name, names in VOLUME_KEYS.items()}
    if missing := [name for name, value in keys.items() if not value]:
        raise ConfigError(
            f"{' and '.join(missing)} must be set.",
            hint="Create a key in RunPod's console: Settings, S3 API Keys.",
        )
    key_id, secret = map(SecretStr, keys.values())
    return Volume(_address(volume, data_center, endpoint_url), key_id, secret, limits)


def _address(volume: str, data_center: str | None, endpoint_url: str | None) -> BucketAddress:
    if not _VOLUME.fullmatch(volume):
        raise ConfigError(f"--volume {volume!r} is not the id of a network volume.", hint=_HINT)
    if data_center is not None and not _DATA_CENTER.fullmatch(data_center):
        raise ConfigError(f"--data-center {data_center!r} does not look like EU-RO-1.", hint=_HINT)
    if endpoint_url is None and data_center is None:
        raise ConfigError("--data-center is missing: it is where the volume is.", hint=_HINT)
    url = endpoint_url or f"https://s3api-{str(data_center).lower()}.runpod.io"
    region = data_center.upper() if data_center else None
    try:
        return bucket_address.read(url, volume, region)
    except ValueError:  # its text names other settings, and a URL can contain a password
        raise ConfigError(
            "--endpoint-url must look like https://s3api-eu-ro-1.runpod.io.", hint=_HINT
        ) from None
