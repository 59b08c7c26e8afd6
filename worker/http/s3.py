"""A client of an S3 API: what buckets and network volumes have in common.

boto3 is imported only if there is one: the import takes some 0.3 s.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from worker.config.bucket_address import BucketAddress
from worker.http.urls import is_public_host

# Below this level it logs whole requests, with the id of the key.
logging.getLogger("botocore").setLevel(logging.WARNING)


def s3_client(
    address: BucketAddress,
    key_id: SecretStr,
    secret: SecretStr,
    *,
    connect_timeout: float,
    read_timeout: float,
    attempts: int,
    connections: int = 10,
) -> Any:  # noqa: ANN401 - boto3 has no types
    """A client of boto3; it is thread-safe.

    Args:
        address: of the API.
        key_id: of the access key.
        secret: of the access key.
        connect_timeout: seconds.
        read_timeout: seconds for the answer.
        attempts: of boto3 itself, for each request.
        connections: that are kept open.

    Raises:
        ValueError: boto3 refuses the endpoint or the region.
    """
    import boto3  # noqa: PLC0415 - see above
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        signature_version="s3v4",
        # The bucket's name in the host name needs DNS and a certificate; not all have them.
        s3={"addressing_style": "path"},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        max_pool_connections=connections,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Many services other than Amazon's do not support boto3's own checksums, and RunPod
        # documents no support for them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A proxy of the environment does not reach a service on this machine or beside it. None:
        # boto3 asks the environment.
        proxies=None if is_public_host(urlsplit(address.endpoint).hostname or "") else {},
    )
    # A session of our own: boto3's default one is not thread-safe.
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        aws_access_key_id=key_id.get_secret_value(),
        aws_secret_access_key=secret.get_secret_value(),
        config=config,
    )
    client.meta.events.register_last("before-parameter-build.s3", _redirect_once)
    return client


def _redirect_once(model: Any, context: dict[str, Any], **_: object) -> None:  # noqa: ANN401
    """boto3's event: do not follow a redirect of HeadBucket.

    boto3 asks HeadBucket for the region that another request was redirected to. A host that
    redirects that as well would be asked again and again, until Python's stack is full.
    """
    if model.name == "HeadBucket":
        context["s3_redirect"]["redirected"] = True
