"""Where a bucket is: what people write into BUCKET_ENDPOINT_URL, taken apart. Pure.

RunPod's SDK has no variable for the bucket's name, so its documents put the name into the URL. All
of these are understood:

    https://s3.eu-west-1.amazonaws.com                  with BUCKET_NAME=pictures
    https://s3.eu-west-1.amazonaws.com/pictures
    https://pictures.s3.eu-west-1.amazonaws.com
    https://<account>.r2.cloudflarestorage.com/pictures
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

# Hosts whose first labels may be a bucket's name.
_VIRTUAL_HOST = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)\."
    r"(?P<host>s3[.-][a-z0-9-]+\.amazonaws\.com|s3\.amazonaws\.com"
    r"|[a-z0-9-]+\.digitaloceanspaces\.com|s3\.[a-z0-9-]+\.backblazeb2\.com)"
)
# A signature holds the region; where a host names it, nobody must write it a second time.
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
_ELSEWHERE = "us-east-1"  # what servers without regions, such as MinIO, call theirs


@dataclass(frozen=True)
class BucketAddress:
    """A bucket.

    Attributes:
        endpoint: the S3 API's base URL, without the bucket.
        name: the bucket's name.
        region: what requests are signed for.
        signs_urls: whether the host accepts presigned URLs; RunPod's volumes do not.
    """

    endpoint: str
    name: str
    region: str
    signs_urls: bool


def check_whole(variables: Collection[str]) -> None:
    """Whether the variables that are set are a whole bucket's, or none's.

    Raises:
        ValueError: names those that are missing.
    """
    given = sorted(name for name in variables if name.startswith("BUCKET_"))
    missing = [name for name in _NEEDED if name not in given]
    if given and missing:
        raise ValueError(
            f"{', '.join(given)} without {', '.join(missing)}: set all of them, or none"
        )


def read(url: str, name: str | None = None, region: str | None = None) -> BucketAddress:
    """Take an endpoint's URL apart.

    Args:
        url: http or https; may hold the bucket's name as its path or in front of its host.
        name: the bucket's name, if it is said apart from the URL.
        region: wins over what the host's name tells.

    Raises:
        ValueError: the URL is none of the forms above, or names no bucket, or another one.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    in_path = parts.path.strip("/")
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("BUCKET_ENDPOINT_URL must look like https://s3.eu-west-1.amazonaws.com")
    if parts.query or parts.fragment or parts.username is not None or "/" in in_path:
        raise ValueError("BUCKET_ENDPOINT_URL may hold a host and a bucket's name, nothing else")
    in_host = ""
    if virtual := _VIRTUAL_HOST.fullmatch(host):
        in_host, host = virtual["name"], virtual["host"]
    named = {one for one in (in_path, in_host, name) if one}
    if len(named) != 1:
        several = " and ".join(map(repr, sorted(named)))
        raise ValueError(
            f"BUCKET_ENDPOINT_URL and BUCKET_NAME name two buckets, {several}: name one"
            if named
            else "BUCKET_NAME is missing"
        )
    bucket = named.pop()
    if not _NAME.fullmatch(bucket):
        raise ValueError(f"{bucket!r} cannot be the name of a bucket")
    port = f":{parts.port}" if parts.port else ""
    endpoint = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"
    return BucketAddress(endpoint, bucket, region or _region(host), not _RUNPOD.fullmatch(host))


def _region(host: str) -> str:
    if runpod := _RUNPOD.fullmatch(host):
        return runpod[1].upper()
    if _R2.fullmatch(host):
        return "auto"
    found = (pattern.fullmatch(host) for pattern in _REGIONS)
    return next((match[1] for match in found if match), _ELSEWHERE)
