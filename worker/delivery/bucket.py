"""Uploads files to the operator's bucket and returns their URLs.

boto3 is imported only if a bucket is configured: the import takes some 0.3 s.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from worker.config.bucket_address import BucketAddress
from worker.delivery.limits import UPLOAD_LIMITS, UploadLimits
from worker.errors import ConfigError, DeliveryFailed

URL_LIFETIME = 7 * 86_400  # seconds; S3's longest


class Bucket:
    """A bucket of an S3-compatible service. Thread-safe.

    Attributes:
        label: `<host>/<bucket>`, for messages.
        lifetime: seconds for which its URLs are valid; None if they do not expire.

    Raises:
        ConfigError: boto3 refuses the endpoint or the region.
    """

    def __init__(
        self,
        address: BucketAddress,
        key_id: SecretStr,
        secret: SecretStr,
        public_url: str | None = None,
        limits: UploadLimits = UPLOAD_LIMITS,
    ) -> None:
        import boto3  # noqa: PLC0415 - see above
        from botocore.config import Config  # noqa: PLC0415

        self.label = f"{urlsplit(address.endpoint).netloc}/{address.name}"
        self.lifetime = None if public_url else URL_LIFETIME
        self._address = address
        self._public_url = public_url
        config = Config(
            signature_version="s3v4",
            # The bucket's name in the host name needs DNS and a certificate; not all have them.
            s3={"addressing_style": "path"},
            connect_timeout=limits.connect_timeout,
            read_timeout=limits.read_timeout,
            retries={"mode": "standard", "total_max_attempts": limits.attempts},
            # Many services other than Amazon's do not support boto3's own checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # A session of our own: boto3's default one is not thread-safe.
        try:
            self._client: Any = boto3.session.Session().client(
                "s3",
                endpoint_url=address.endpoint,
                region_name=address.region,
                aws_access_key_id=key_id.get_secret_value(),
                aws_secret_access_key=secret.get_secret_value(),
                config=config,
            )
        except ValueError as error:  # botocore's, for an invalid host or region
            raise ConfigError(
                f"BUCKET_ENDPOINT_URL or BUCKET_REGION is wrong ({address.endpoint}): {error}."
            ) from None

    def upload(self, key: str, data: bytes, content_type: str) -> str:
        """Store a file, replacing one with that key; returns a URL to download it from.

        Raises:
            DeliveryFailed: every attempt failed.
        """
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        name = self._address.name
        try:
            self._client.put_object(Bucket=name, Key=key, Body=data, ContentType=content_type)
            if self._public_url:
                return f"{self._public_url}/{quote(key)}"
            what = {"Bucket": name, "Key": key}
            return str(
                self._client.generate_presigned_url("get_object", what, ExpiresIn=URL_LIFETIME)
            )
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "no code")
            raise DeliveryFailed(
                f"the bucket {self.label} answered {status} ({code}).", status=status
            ) from None
        except (BotoCoreError, HTTPError, OSError) as error:
            # Their texts may contain the URL, so the message contains only the type.
            raise DeliveryFailed(
                f"the bucket {self.label} cannot be reached ({type(error).__name__})."
            ) from None
