"""Endpoint, name and region of a bucket, from the forms that an endpoint's URL can have. Pure.

RunPod's SDK has no variable for the bucket's name, so its documents put the name into the URL. All
of these are valid:

    https://s3.eu-west-1.amazonaws.com                  with BUCKET_NAME=pictures
    https://s3.eu-west-1.amazonaws.com/pictures
    https://pictures.s3.eu-west-1.amazonaws.com
    https://<account>.r2.cloudflarestorage.com/pictures
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

# Hosts whose first labels can be a bucket's name.
_VIRTUAL_HOST = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)\."
    r"(?P<host>s3[.-][a-z0-9-]+\.amazonaws\.com|s3\.amazonaws\.com"
    r"|[a-z0-9-]+\.digitaloceanspaces\.com|s3\.[a-z0-9-]+\.backblazeb2\.com)"
)
# A signature contains the region; many host names contain it too, so it need not be set.
_REGIONS = tuple(
    re.compile(pattern)
    for pattern in (
        r"s3[.-]([a-z0-9-]+)\.amazonaws\.com",
        r"([a-z0-9-]+)\.digitaloceanspaces\.com",
        r"s3\.([a-z0-9-]+)\.backblazeb2\.com",
        r"s3\.([a-z0-9-]+)\.wasabisys\.com",
        r"s3\.([a-z0-9-]+)\.scw\.cloud",
    )
)
_RUNPOD = re.compile(r"s3api-([a-z0-9-]+)\.runpod\.io")  # its regions are in upper case
_R2 = re.compile(r"(?:[a-z0-9-]+\.)+r2\.cloudflarestorage\.com")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_NEEDED = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")
_DEFAULT_REGION = "us-east-1"  # the name that servers without regions use, such as MinIO
_LONGEST_NAME = 80  # characters of a wrong name in a message


@dataclass(frozen=True)
class Names:
    """What the person who gave the URL and the bucket's name calls them."""

    url: str = "BUCKET_ENDPOINT_URL"
    bucket: str = "BUCKET_NAME"


SETTINGS = Names()


@dataclass(frozen=True)
class BucketAddress:
    """A bucket.

    Attributes:
        endpoint: the S3 API's base URL, without the bucket.
        name: the bucket's name.
        region: the region for which requests are signed.
        signs_urls: whether the host accepts presigned URLs; RunPod's volumes do not.
    """

    endpoint: str
    name: str
    region: str
    signs_urls: bool


@dataclass(frozen=True)
class BucketAccess:
    """A bucket, and the keys that may write to it."""

    address: BucketAddress
    key_id: SecretStr
    secret: SecretStr


def check_whole(variables: Collection[str]) -> None:
    """Check that the variables for a bucket are all set, or none of them.

    Raises:
        ValueError: names the missing variables.
    """
    given = sorted(name for name in variables if name.startswith("BUCKET_"))
    missing = [name for name in _NEEDED if name not in given]
    if given and missing:
        raise ValueError(
            f"{', '.join(given)} is set without {', '.join(missing)}: set all of them, or none"
        )


def read(
    url: str, name: str | None = None, region: str | None = None, names: Names = SETTINGS
) -> BucketAddress:
    """Read an endpoint's URL.

    Args:
        url: http or https; may have the bucket's name as its path or before its host.
        name: the bucket's name, if it is not in the URL.
        region: overrides the region in the host's name.
        names: of both, for the messages.

    Raises:
        ValueError: the URL has another form, or the bucket's name is missing or contradictory.
    """
    parts, port = _split(url, names)
    host = (parts.hostname or "").lower()
    in_path = parts.path.strip("/")
    if parts.query or parts.fragment or parts.username is not None or "/" in in_path:
        raise ValueError(
            f"{names.url} can have a host and a bucket's name, nothing else: remove the rest"
        )
    in_host = ""
    if virtual := _VIRTUAL_HOST.fullmatch(host):
        in_host, host = virtual["name"], virtual["host"]
    bucket = _one_of({one for one in (in_path, in_host, name) if one}, names)
    written = f"[{host}]" if ":" in host else host
    endpoint = f"{parts.scheme}://{written}{f':{port}' if port else ''}"
    return BucketAddress(endpoint, bucket, region or _region(host), not _RUNPOD.fullmatch(host))


def _split(url: str, names: Names) -> tuple[SplitResult, int | None]:
    """The parts of the URL, and its port."""
    with suppress(ValueError):  # whose text may have a password of the URL in it
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts, parts.port
    raise ValueError(f"{names.url} must look like https://s3.eu-west-1.amazonaws.com")


def _one_of(found: Collection[str], names: Names) -> str:
    if len(found) > 1:
        several = " and ".join(repr(one[:_LONGEST_NAME]) for one in sorted(found))
        raise ValueError(f"{names.url} and {names.bucket} name two buckets, {several}: name one")
    for bucket in found:
        if _NAME.fullmatch(bucket):
            return bucket
        raise ValueError(
            f"{bucket[:_LONGEST_NAME]!r} cannot be the name of a bucket: use letters, digits, '.',"
            " '_' and '-'"
        )
    raise ValueError(f"{names.bucket} is missing, and {names.url} has no bucket's name in it")


def _region(host: str) -> str:
    if runpod := _RUNPOD.fullmatch(host):
        return runpod[1].upper()
    if _R2.fullmatch(host):
        return "auto"
    found = (pattern.fullmatch(host) for pattern in _REGIONS)
    return next((match[1] for match in found if match), _DEFAULT_REGION)
