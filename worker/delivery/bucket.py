"""Uploads files to a bucket, the operator's or a job's, and returns their URLs."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote, urlsplit

from worker.config.bucket_address import BucketAccess
from worker.delivery.limits import UPLOAD_LIMITS, UploadLimits
from worker.errors import ConfigError, DeliveryFailed, ModelUrlRefused
from worker.http.client import NO_CANCEL, SafeHttpClient
from worker.http.interrupt import within
from worker.http.s3 import s3_client

URL_LIFETIME = 7 * 86_400  # seconds; S3's longest


class Bucket:
    """A bucket of an S3-compatible service. Thread-safe.

    Args:
        public_url: where everybody can read the bucket's files; None: URLs are signed.
        http: sends the requests, for a bucket that a job names; None: boto3 itself sends them.

    Attributes:
        label: `<host>/<bucket>`, for messages.
        lifetime: seconds for which its URLs are valid; None if they do not expire.
        endpoint: the API's URL, which a reader of `s3://` URLs needs; None: they are https URLs.

    Raises:
        ConfigError: boto3 refuses the endpoint or the region.
    """

    def __init__(
        self,
        access: BucketAccess,
        public_url: str | None = None,
        *,
        limits: UploadLimits = UPLOAD_LIMITS,
        http: SafeHttpClient | None = None,
    ) -> None:
        address = access.address
        self.label = f"{urlsplit(address.endpoint).netloc}/{address.name}"
        is_signed = address.signs_urls and not public_url
        self.lifetime = URL_LIFETIME if is_signed else None
        self.endpoint = None if address.signs_urls or public_url else address.endpoint
        self._address = address
        self._public_url = public_url
        self._limits = limits
        self._is_of_job = http is not None
        self._client = _client(access, limits)
        if http:
            from worker.delivery.s3_requests import SafeRequests  # noqa: PLC0415 - loads boto3

            SafeRequests(http).serve(self._client)

    def upload(
        self, key: str, data: bytes, content_type: str, stop: threading.Event = NO_CANCEL
    ) -> str:
        """Store a file, replacing one with that key.

        Returns:
            An https URL to download it from, or `s3://<bucket>/<key>`.

        Raises:
            DeliveryFailed: every attempt failed, or `stop` was set, which ends only the upload to a
                bucket that a job names.
        """
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - loads boto3
        from botocore.parsers import ResponseParserError  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            with within(self._limits.seconds, stop) if self._is_of_job else nullcontext():
                self._put(key, data, content_type)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "no code")
            raise DeliveryFailed(
                f"the bucket {self.label} answered {status} ({code}).", status=status
            ) from None
        except ModelUrlRefused as error:
            raise DeliveryFailed(f"the bucket {self.label} was refused: {error.message}") from None
        except (BotoCoreError, HTTPError, OSError) as error:
            # Their texts may contain the URL, so the message contains only the type.
            raise DeliveryFailed(
                f"the bucket {self.label} cannot be reached ({type(_cause(error)).__name__})."
            ) from None
        except (ResponseParserError, ValueError, TypeError) as error:  # numbers that are none, ...
            raise DeliveryFailed(
                f"the answer of {self.label} is none of an S3 service ({type(error).__name__})."
            ) from None
        return self._url_of(key)

    def _put(self, key: str, data: bytes, content_type: str) -> None:
        name = self._address.name
        answer = self._client.put_object(Bucket=name, Key=key, Body=data, ContentType=content_type)
        if not answer.get("ETag"):
            raise DeliveryFailed(
                f"{self.label} answered without an ETag, so it is no bucket of an S3 service."
            )

    def _url_of(self, key: str) -> str:
        name = self._address.name
        if self._public_url:
            return f"{self._public_url}/{quote(key)}"
        if self.endpoint:
            return f"s3://{name}/{key}"
        what = {"Bucket": name, "Key": key}
        return str(self._client.generate_presigned_url("get_object", what, ExpiresIn=URL_LIFETIME))


def _client(access: BucketAccess, limits: UploadLimits) -> Any:  # noqa: ANN401 - boto3 has no types
    address = access.address
    try:
        return s3_client(
            address,
            access.key_id,
            access.secret,
            connect_timeout=limits.connect_timeout,
            read_timeout=limits.read_timeout,
            attempts=limits.attempts,
        )
    except ValueError as error:  # botocore's, for an invalid host or region
        raise ConfigError(
            f"BUCKET_ENDPOINT_URL or BUCKET_REGION is wrong ({address.endpoint}): {error}."
        ) from None


def _cause(error: BaseException) -> BaseException:
    while error.__cause__:
        error = error.__cause__
    return error
