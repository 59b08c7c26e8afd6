"""Reads the pictures that a job brings: text -> file -> decoded picture."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping

from worker.errors import InvalidInput
from worker.http.client import SafeHttpClient
from worker.images.base64_text import decoded
from worker.images.fetch import fetch_all
from worker.images.field_errors import about
from worker.images.input_image import InputImage
from worker.images.limits import IMAGE_LIMITS, ImageLimits, check_file, check_files
from worker.images.sandbox import decode_all
from worker.job.image_fields import is_url


class ImageReader:
    """Reads pictures. Thread-safe.

    Args:
        http: fetches the URLs.
        limits: on the pictures of one job.
    """

    def __init__(self, http: SafeHttpClient, limits: ImageLimits = IMAGE_LIMITS) -> None:
        self._http = http
        self._limits = limits
        self._is_shared = False
        self._taken = 0  # bytes of the pictures that were read, if the limit is shared
        self._lock = threading.Lock()

    def shared(self) -> ImageReader:
        """A reader for several inputs of one job: `total_bytes` holds for all of them together."""
        reader = copy.copy(self)
        reader._is_shared, reader._lock = True, threading.Lock()  # noqa: SLF001 - its own
        return reader

    def read_all(self, images: Mapping[str, str], stop: threading.Event) -> dict[str, InputImage]:
        """Read the pictures of a job: field -> text becomes field -> picture, in the same order.

        Args:
            images: name of the field, such as `init_images.0` or `mask` -> base64, data URI or URL.
            stop: set it to end the work; the errors below name the field.

        Raises:
            InvalidInput: a picture is damaged, too large, or of a form that is not accepted.
            ImageUrlRefused: its URL is not allowed, or its host refuses it.
            ImageHostFailed: its host failed; the same job may succeed later.
            FetchStopped: `stop` was set.
        """
        limits = self._limits
        if len(images) > limits.count:
            raise InvalidInput(
                f"the job has {len(images)} pictures; at most {limits.count} are accepted.",
                hint="Send several jobs.",
            )
        files = {field: self._decoded(field, text) for field, text in images.items()}
        urls = {field: text for field, text in images.items() if is_url(text)}
        if urls:
            files |= fetch_all(self._http, urls, limits, stop)
        if not files:
            return {}
        check_files(list(files)[-1], files.values(), limits)
        pictures = decode_all(files, limits, stop)
        if self._is_shared:
            self._take(sum(len(one.data) for one in pictures.values()))
        return pictures

    def _take(self, size: int) -> None:
        with self._lock:
            if self._taken + size > self._limits.total_bytes:
                raise InvalidInput(
                    "with this input, the pictures that the job brings have more than"
                    f" {self._limits.total_bytes / 1e6:.0f} MB: all are in memory together.",
                    hint="Send fewer or smaller pictures, or several jobs.",
                )
            self._taken += size

    def _decoded(self, field: str, text: str) -> bytes:
        """The file that is in the text; empty, as long as it is only a URL."""
        if is_url(text):
            return b""
        try:
            data = decoded(text)
            check_file(len(data), self._limits)
        except InvalidInput as error:
            raise about(field, error) from None
        return data
