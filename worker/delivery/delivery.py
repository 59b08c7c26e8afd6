"""Delivers a job's pictures: in the result, to the bucket, or to the job's own URLs.

    requested     tried in this order, until one works
    base64        base64, the bucket, smaller pictures in base64
    s3            the bucket, base64, smaller pictures in base64
    put           the job's URLs, base64, the bucket, smaller pictures in base64

The bucket is the one of the job's `s3Config`, which is also the default then; or else the
operator's. A job with a bucket of its own never uses the operator's, even if its own one fails.
The bucket is left out if there is none, smaller pictures if the job does not permit them. Of a job
that streams, the pictures may be on the stream alone: that is the last method, if RunPod has
accepted all of them there. base64 works while the whole JSON is within RESULT_LIMIT_MB: RunPod
drops a larger result without an error. Pictures that cost GPU time are never dropped silently:
`warnings` reports any change of the method, and if none works, the error reports why and OUTPUT_DIR
has the files.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from worker import cores
from worker.config.bucket_address import BucketAccess
from worker.delivery.bucket import Bucket
from worker.delivery.early import EarlyPictures
from worker.delivery.limits import MB, UPLOAD_LIMITS, ResultLimit, UploadLimits
from worker.delivery.output_dir import OutputDir, cleaned
from worker.delivery.put_url import put
from worker.errors import (
    ConfigError,
    DeliveryFailed,
    InvalidInput,
    ModelUrlRefused,
    ResultTooLarge,
)
from worker.generation.picture import Picture, from_engine
from worker.http.client import NO_CANCEL, SafeHttpClient
from worker.job.output_fields import DEFAULT_QUALITY, ImageFormat, Output
from worker.large_json import LONG
from worker.shown import shown

QUALITIES = (90, 80, 70, 60, 50, 40, 30)  # of smaller pictures, tried in this order
# Bytes kept free for what is added after the size is measured: the last timings, a warning.
RESERVE = 1000
_MOST_CONVERSIONS = 8  # at once

_TOO_LARGE = (
    'Ask for fewer pictures in one job, for `output.format` "webp" or "jpeg", or permit'
    " `output.may_convert`; or set up a bucket (BUCKET_ENDPOINT_URL) or send one (`s3Config`), see"
    " docs/delivery.md."
    " Outside RunPod, RESULT_LIMIT_MB=0 removes the limit."
)
_NO_BUCKET = (
    "Set BUCKET_ENDPOINT_URL, BUCKET_NAME, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY on the"
    ' endpoint, send `s3Config` beside the job\'s `input`, or ask for "base64" or "put".'
)

logger = logging.getLogger(__name__)

JobAnswer = dict[str, Any]
Undeliverable = DeliveryFailed | ResultTooLarge
_Failures = tuple[Undeliverable, ...]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Made(Protocol):
    """Pictures of the engine, such as a `worker.generation.picture_answer.PictureAnswer`."""

    @property
    def images(self) -> Sequence[str]:
        """Base64, grids first."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the engine reports about them; `index_of_first_image` is the number of grids."""


@dataclass(frozen=True)
class _Finished:
    """A job whose pictures were made, before their delivery.

    Attributes:
        originals: the pictures as the engine made them, base64.
        pictures: the same in the job's format.
        grids: number of grids, which come before the pictures.
        answer: the rest of the job's result.
        early: what was delivered while later pictures were drawn.
        stop: ends the uploads.
    """

    job_id: str
    output: Output
    originals: Sequence[str]
    pictures: Sequence[Picture]
    grids: int
    answer: JobAnswer
    early: EarlyPictures
    stop: threading.Event

    def answer_with(
        self,
        method: str,
        images: Sequence[str],
        pictures: Sequence[Picture],
        failures: _Failures,
        **facts: object,
    ) -> JobAnswer:
        """The job's answer with these images, how they were delivered, and the warnings."""
        first = pictures[0]
        delivery: dict[str, Any] = {"method": method, "format": first.format}
        delivery |= {} if first.quality is None else {"quality": first.quality}
        delivery |= {"bytes": [picture.size for picture in pictures], **facts}
        warnings = list(self.answer["warnings"])
        if failures:
            quality = "" if first.quality is None else f" of quality {first.quality}"
            warnings.append(
                f"{_messages(failures)} Delivered by {method}, as {first.format}{quality}."
            )
        if method == "put" and self.grids:
            warnings.append("the grid was left out, because the job has no URL for it.")
        if not all(picture.complete for picture in pictures):
            warnings.append("the infotext is too long for a JPEG file; `info` has it.")
        return self.answer | {"images": list(images), "delivery": delivery, "warnings": warnings}


_Delivered = tuple[JobAnswer, Sequence[Picture]]  # and the pictures as they were delivered
_Method = Callable[[_Finished, _Failures], _Delivered]


class Delivery:
    """Delivers pictures to the caller. Thread-safe.

    Args:
        limit: bytes that a result may have as JSON; None: no limit.
        folder: a folder to which pictures are also written, or None.
        bucket: the operator's bucket, or None; a job may bring another one.
        http: the client for the URLs and buckets of jobs.
        limits: of uploads.
    """

    def __init__(
        self,
        limit: int | None,
        folder: Path | None,
        bucket: Bucket | None,
        http: SafeHttpClient,
        limits: UploadLimits = UPLOAD_LIMITS,
    ) -> None:
        self._limit = ResultLimit(limit)
        self._output_dir = OutputDir(folder)
        self._bucket = bucket
        self._is_of_job = False
        self._http = http
        self._limits = limits

    @property
    def has_bucket(self) -> bool:
        """Whether pictures can be delivered as URLs of a bucket."""
        return self._bucket is not None

    def to_bucket_of_job(self, given: BucketAccess) -> Delivery:
        """The same delivery with the bucket that a job brings, instead of the operator's.

        Raises:
            InvalidInput: its endpoint is not allowed.
        """
        own = copy.copy(self)
        try:
            self._http.check(given.address.endpoint)
            own._bucket = Bucket(given, limits=self._limits, http=self._http)  # noqa: SLF001 - own
        except ModelUrlRefused as error:
            raise InvalidInput(f"s3Config.endpointUrl: {error.message}", hint=error.hint) from None
        except ConfigError:
            raise InvalidInput(
                f"s3Config.endpointUrl = {shown(given.address.endpoint)}: its host is no host name."
            ) from None
        own._is_of_job = True  # noqa: SLF001
        return own

    def shared(self) -> Delivery:
        """The same delivery for several results that are posted as one: they share the limit."""
        shared = copy.copy(self)
        shared._limit = self._limit.shared()  # noqa: SLF001 - its own
        return shared

    def fits(self, answer: JobAnswer) -> bool:
        """Whether an answer without pictures is within the limit, which it then counts in."""
        return self._limit.take(json_size(answer))

    def check(self, output: Output) -> None:
        """Check, before the engine is used, that this worker can deliver as the job asks.

        Raises:
            InvalidInput: there is no bucket, or a URL is not allowed.
        """
        if output.delivery == "s3" and not self._bucket:
            raise InvalidInput(
                "output.delivery = 's3': this endpoint has no bucket.", hint=_NO_BUCKET
            )
        for number, url in enumerate(output.urls):
            try:
                self._http.check(url)
            except ModelUrlRefused as error:
                raise InvalidInput(
                    f"output.urls.{number}: {error.message}", hint=error.hint
                ) from None

    def early(
        self, output: Output, job_id: str, stop: threading.Event = NO_CANCEL
    ) -> EarlyPictures:
        """For a job that streams: delivers each picture when it is finished."""
        output = self._meant(output)
        if output.delivery == "base64":
            return EarlyPictures(output, None)

        def upload(place: int, grids: int, picture: Picture) -> str:
            if output.delivery == "put":
                return put(self._http, output.urls[place - grids], picture, self._limits, stop)
            if not self._bucket:
                raise DeliveryFailed("this endpoint has no bucket.")
            key = _key(job_id, place, picture)
            return self._bucket.upload(key, picture.data, picture.content_type, stop)

        return EarlyPictures(output, upload)

    def deliver(
        self,
        generated: Made,
        answer: JobAnswer,
        output: Output,
        job_id: str,
        early: EarlyPictures | None = None,
        *,
        stop: threading.Event = NO_CANCEL,
    ) -> JobAnswer:
        """Deliver the pictures; returns when they are delivered.

        Args:
            generated: the engine's answer.
            answer: the rest of the job's result; its `images` are replaced.
            output: what the job asks for.
            job_id: becomes part of the names of files and of objects in the bucket.
            early: the same pictures, delivered while later ones were drawn.
            stop: ends the uploads; set it when nobody waits for the result any more.

        Returns:
            The answer with `images`, `delivery` and perhaps more `warnings`.

        Raises:
            ResultTooLarge: the result is larger than the limit, and no other method works.
            DeliveryFailed: uploads failed, and no other method works; or a conversion failed.
        """
        output = self._meant(output)
        early = early or EarlyPictures(output, None)
        pictures: Sequence[Picture] = early.pictures
        try:
            if len(pictures) < len(generated.images):
                pictures = _converted(generated.images, output.format, output.quality)
            grids = int(generated.facts.get("index_of_first_image") or 0)
            images = generated.images
            finished = _Finished(job_id, output, images, pictures, grids, answer, early, stop)
            delivered, pictures = self._try_methods(finished)
        except (DeliveryFailed, ResultTooLarge) as error:
            if not stop.is_set():
                originals = pictures or _converted(generated.images, "png", None)
                self._output_dir.keep(error, originals, job_id)
            raise
        for warning in delivered["warnings"][len(answer["warnings"]) :]:
            logger.warning("%s", warning)
        self._output_dir.save(generated.facts, delivered, pictures, job_id)
        return delivered

    def _try_methods(self, finished: _Finished) -> _Delivered:
        failures: list[Undeliverable] = []
        for method in self._methods(finished):
            try:
                return method(finished, tuple(failures))
            except (DeliveryFailed, ResultTooLarge) as error:
                failures.append(error)
            if finished.stop.is_set():
                break
        first = failures[0]
        details = {key: value for one in reversed(failures) for key, value in one.details.items()}
        raise type(first)(_messages(failures), hint=first.hint, **details)

    def _methods(self, finished: _Finished) -> list[_Method]:
        """The methods to try, in this order; see the module's docstring."""
        output = finished.output
        bucket: list[_Method] = [partial(self._to_bucket, self._bucket)] if self._bucket else []
        methods: dict[str, list[_Method]] = {
            "base64": [self._inline, *bucket],
            "s3": [*bucket, self._inline],
            "put": [self._to_urls, self._inline, *bucket],
        }
        smaller: list[_Method] = [self._smaller] if output.may_convert else []
        streamed: list[_Method] = [self._streamed] if finished.early.is_streamed else []
        return methods[output.delivery] + smaller + streamed

    def _meant(self, output: Output) -> Output:
        """With the method `s3` for a job that brings a bucket and names no method."""
        is_meant = self._is_of_job and "delivery" not in output.model_fields_set
        return output.model_copy(update={"delivery": "s3"}) if is_meant else output

    def _inline(self, finished: _Finished, failures: _Failures) -> _Delivered:
        pictures = finished.pictures
        images = [picture.base64() for picture in pictures]
        answer = finished.answer_with("base64", images, pictures, failures)
        return self._within_limit(answer), pictures

    def _to_bucket(self, bucket: Bucket, finished: _Finished, failures: _Failures) -> _Delivered:
        pictures = finished.pictures
        keys = [_key(finished.job_id, number, one) for number, one in enumerate(pictures)]
        data, types = [one.data for one in pictures], [one.content_type for one in pictures]
        upload = partial(bucket.upload, stop=finished.stop)
        urls = self._uploaded_early(finished, "s3") or self._for_all(upload, keys, data, types)
        facts: dict[str, Any] = {"keys": keys}
        facts |= {"expires_in": bucket.lifetime} if bucket.lifetime else {}
        facts |= {"endpoint": bucket.endpoint} if bucket.endpoint else {}
        answer = finished.answer_with("s3", urls, pictures, failures, **facts)
        return self._within_limit(answer, uploaded=urls), pictures

    def _to_urls(self, finished: _Finished, failures: _Failures) -> _Delivered:
        pictures = finished.pictures[finished.grids :]
        upload = partial(put, self._http, limits=self._limits, stop=finished.stop)
        urls = self._uploaded_early(finished, "put") or self._for_all(
            upload, finished.output.urls, pictures
        )
        answer = finished.answer_with("put", urls, pictures, failures)
        return self._within_limit(answer, uploaded=urls), finished.pictures

    @staticmethod
    def _uploaded_early(finished: _Finished, method: str) -> list[str]:
        """The URLs of pictures that were all uploaded while they were drawn; empty without.

        Raises:
            DeliveryFailed: an upload has failed then: it is not tried again.
        """
        early = finished.early
        if finished.output.delivery != method:
            return []
        if early.failure:
            raise early.failure
        grids = finished.grids if method == "put" else 0
        return early.urls if len(early.urls) == len(finished.pictures) - grids else []

    def _streamed(self, finished: _Finished, failures: _Failures) -> _Delivered:
        """Leave the pictures out of the result: the caller has them from the stream."""
        answer = finished.answer_with("stream", (), finished.pictures, failures)
        answer["warnings"].append("the result has no pictures: they are on /stream only.")
        return self._within_limit(answer), finished.pictures

    def _smaller(self, finished: _Finished, failures: _Failures) -> _Delivered:
        output = finished.output
        format_: ImageFormat = "webp" if output.format == "png" else output.format
        current = 101 if output.format == "png" else output.quality or DEFAULT_QUALITY
        last = failures[-1]
        for quality in (one for one in QUALITIES if one < current):
            pictures = _converted(finished.originals, format_, quality)
            images = [picture.base64() for picture in pictures]
            answer = finished.answer_with("base64", images, pictures, failures)
            try:
                return self._within_limit(answer), pictures
            except ResultTooLarge as error:
                last = error
        raise last

    def _within_limit(self, answer: JobAnswer, **details: object) -> JobAnswer:
        size = json_size(answer) + RESERVE
        if self._limit.take(size):
            return answer
        images = sum(map(len, answer["images"]))
        format_ = answer["delivery"]["format"]
        raise ResultTooLarge(
            f"the result would have {size / MB:.2f} MB, {images / MB:.2f} MB of them for"
            f" {len(answer['images'])} {format_} pictures; RESULT_LIMIT_MB is {self._limit}.",
            hint=_TOO_LARGE,
            bytes=size,
            limit_bytes=self._limit.bytes,
            picture_bytes=answer["delivery"]["bytes"],
            **details,
        )

    def _for_all(self, work: Callable[..., _R], *items: Iterable[_T]) -> list[_R]:
        """Upload each picture, several at once; raises the first error."""
        return _in_threads(self._limits.at_once, work, *items)


def _converted(
    images: Sequence[str], format_: ImageFormat, quality: int | None
) -> Sequence[Picture]:
    """Convert each picture, one for each core at once; raises the first error.

    Pillow computes without Python's lock. The limit is on memory: it grows with the threads.
    """
    if format_ == "png":  # as the engine made them: a thread would cost more than it does
        return [from_engine(image) for image in images]
    convert = partial(from_engine, format_=format_, quality=quality)
    return _in_threads(min(cores.usable(), _MOST_CONVERSIONS), convert, images)


def _in_threads(threads: int, work: Callable[..., _R], *items: Iterable[_T]) -> list[_R]:
    with ThreadPoolExecutor(threads, thread_name_prefix="delivery") as pool:
        return list(pool.map(work, *items))


def _key(job_id: str, place: int, picture: Picture) -> str:
    """The key of the object in the bucket; `place` is the picture's among the images."""
    return f"{cleaned(job_id)}/{place}.{picture.suffix}"


def _messages(failures: Sequence[Undeliverable]) -> str:
    sentences = dict.fromkeys(one.message for one in failures)
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def json_size(answer: Mapping[str, Any]) -> int:
    """Bytes of the JSON that is posted for this answer."""
    images = answer.get("images", ())
    # A long one is a picture in base64, which JSON has as it is.
    short = [image if len(image) < LONG else "" for image in images]
    rest = json.dumps({"output": {**answer, "images": short}}, ensure_ascii=False)
    return len(rest.encode()) + sum(len(image) for image in images if len(image) >= LONG)
