"""A network volume as its S3 API shows it: an object is a file on the volume.

RunPod's API has PutObject, HeadObject, GetObject, DeleteObject and the multipart requests. It may
answer 502 or 524 and still have done the work: see `Volume.complete`.
"""

from __future__ import annotations

import logging
import threading
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import HTTPClientError
from pydantic import SecretStr

from worker.config.bucket_address import BucketAddress
from worker.errors import ConfigError, VolumeFailed
from worker.http.backoff import Backoff
from worker.http.s3 import s3_client
from worker.models.volume.answers import (
    FAILURES,
    GONE,
    UNREADABLE,
    asked_to_wait,
    code_of,
    passes,
    problem,
    status_of,
)
from worker.models.volume.digests import differs, md5_of
from worker.models.volume.limits import DEFAULT, MOST_PARTS, SendLimits

_MISSING = 404
_ARRIVALS = 3  # attempts for a part that arrives with another content

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A file on the volume: its bytes, and its ETag without quotes."""

    size: int
    etag: str


class Volume:
    """A network volume. Thread-safe.

    Args:
        address: of its S3 API; the bucket is the volume.
        key_id: access key of the S3 API.
        secret: secret of that key.
        limits: of each request.

    Attributes:
        stop: set it to end the waits between attempts.

    Raises:
        ConfigError: boto3 refuses the address.
    """

    def __init__(
        self,
        address: BucketAddress,
        key_id: SecretStr,
        secret: SecretStr,
        limits: SendLimits = DEFAULT,
    ) -> None:
        self.stop = threading.Event()
        self._address = address
        self._limits = limits
        try:
            self._client: Any = s3_client(
                address,
                key_id,
                secret,
                connect_timeout=limits.connect_timeout,
                read_timeout=limits.read_timeout,
                attempts=1,  # `_request` tries again
                connections=limits.at_once,
            )
        except ValueError as error:  # botocore's, for an invalid host or region
            raise ConfigError(f"{address.endpoint} is no address of an S3 API: {error}.") from None

    # Files -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the volume exists and that the key may use it.

        Raises:
            VolumeFailed: says which of them is wrong.
        """
        try:
            self._request("head_bucket", self._limits.first_attempts)
        except FAILURES as error:
            raise problem(error, self._address) from None

    def head(self, key: str) -> Stored | None:
        """The file, if it exists."""
        answer = self._find("head_object", Key=key)
        return Stored(_needed(answer, "ContentLength"), _etag(answer)) if answer else None

    def read(self, key: str, limit: int = 1 << 20) -> bytes | None:
        """The content of a small file; None if it does not exist or is larger."""
        answer = self._find("get_object", Key=key)
        if answer is None:
            return None
        with closing(answer["Body"]) as body:
            try:
                content: bytes = body.read(limit + 1)
            except FAILURES as error:
                raise problem(error, self._address) from None
        return content if len(content) <= limit else None

    def put(self, key: str, data: bytes) -> None:
        """Write a file with one request, up to 500 MB."""
        self._send("put_object", data, Key=key)

    def delete(self, key: str) -> None:
        """Remove a file, if it exists."""
        self._find("delete_object", Key=key)

    # Files in parts --------------------------------------------------------------------------

    def begin(self, key: str) -> str:
        """Begin a file that is sent in parts; returns the upload's id."""
        return str(_needed(self._call("create_multipart_upload", Key=key), "UploadId"))

    def unfinished(self, key: str) -> tuple[str, dict[int, Stored]] | None:
        """The newest upload of this file that was not completed, and its parts by number."""
        answer = self._call("list_multipart_uploads", Prefix=key)
        found = [one for one in answer.get("Uploads", []) if one.get("Key") == key]
        if not found:
            return None
        newest = max(found, key=lambda one: str(one.get("Initiated", "")))
        upload = str(_needed(newest, "UploadId"))
        return upload, self._parts(key, upload)

    def _parts(self, key: str, upload: str) -> dict[int, Stored]:
        parts: dict[int, Stored] = {}
        more: dict[str, int] = {}
        for _ in range(MOST_PARTS):  # pages; each has at least one part
            answer = self._find("list_parts", Key=key, UploadId=upload, **more)
            listed = (answer or {}).get("Parts", [])
            for one in listed:
                parts[_needed(one, "PartNumber")] = Stored(_needed(one, "Size"), _etag(one))
            if not listed or not answer or not answer.get("IsTruncated"):
                break
            more = {"PartNumberMarker": max(parts)}
        return parts

    def send_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """Send one part; returns its ETag as the API wrote it."""
        return self._send("upload_part", data, Key=key, UploadId=upload, PartNumber=number)

    def complete(self, key: str, upload: str, etags: Sequence[str], size: int) -> None:
        """Put the parts together to a file of `size` bytes.

        RunPod copies them into one file, which can take longer than a proxy waits. So after a
        failure it is checked whether the file has come.

        Raises:
            VolumeFailed, StoreFull: it has not.
        """
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        for left in reversed(range(self._limits.completions)):
            try:
                self._ask(
                    "complete_multipart_upload",
                    Key=key,
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                )
            except FAILURES as error:
                may_be_done = passes(error) or code_of(error) == GONE
                if may_be_done and self._has_come(key, size):
                    return
                if not left or not passes(error):
                    raise problem(error, self._address) from None
            else:
                return

    def _has_come(self, key: str, size: int) -> bool:
        for _ in range(self._limits.looks):
            stored = self.head(key)
            if stored and stored.size == size:
                return True
            if self.stop.wait(self._limits.look_pause):
                break
        return False

    # Requests --------------------------------------------------------------------------------

    def _send(self, operation: str, data: bytes, **more: object) -> str:
        """Send data with their MD5, which S3 checks; compare it with the ETag in the answer too."""
        digest = md5_of(data)
        checksum = b64encode(digest).decode()
        for _ in range(_ARRIVALS):
            answer = self._call(operation, Body=data, ContentMD5=checksum, **more)
            if not differs(_etag(answer), digest):
                return str(answer.get("ETag", ""))
        raise VolumeFailed(
            f"{more['Key']} arrived {_ARRIVALS} times with another content.",
            hint="Check the network, and push again.",
        )

    def _find(self, operation: str, **more: object) -> Mapping[str, Any] | None:
        """The answer; None if the file does not exist."""
        try:
            return self._request(operation, self._limits.attempts, **more)
        except FAILURES as error:
            missing = status_of(error) == _MISSING and code_of(error) != "NoSuchBucket"
            if missing:
                return None
            raise problem(error, self._address) from None

    def _call(self, operation: str, **more: object) -> Mapping[str, Any]:
        try:
            return self._request(operation, self._limits.attempts, **more)
        except FAILURES as error:
            raise problem(error, self._address) from None

    def _request(self, operation: str, attempts: int, **more: object) -> Mapping[str, Any]:
        """The answer, after several attempts where that can help."""
        limits = self._limits
        backoff = Backoff(limits.first_pause, limits.longest_pause)
        while True:
            try:
                answer = self._ask(operation, **more)
            except FAILURES as error:
                if not passes(error) or backoff.failures + 1 >= attempts:
                    raise
                pause = backoff.pause(asked_to_wait(error))
                log.debug("%s: %s; again in %.0f s", operation, type(error).__name__, pause)
                if self.stop.wait(pause):
                    raise
            else:
                return answer

    def _ask(self, operation: str, **more: object) -> Mapping[str, Any]:
        """The answer to one request; one that boto3 cannot read counts as none."""
        try:
            answer: Mapping[str, Any] = getattr(self._client, operation)(
                Bucket=self._address.name, **more
            )
        except FAILURES:  # some of them are ValueErrors, too
            raise
        except UNREADABLE as error:
            raise HTTPClientError(error=error) from error
        return answer


def _needed(answer: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - as boto3 types it
    """A field that every S3 API sends; raises VolumeFailed without it."""
    if name not in answer:
        raise VolumeFailed(
            f"the answer of the S3 API has no {name}.", hint="Check its address; then push again."
        )
    return answer[name]


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')
