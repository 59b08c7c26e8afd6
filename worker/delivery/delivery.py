"""Pictures on their way to the caller: in the result, into a bucket, or to the job's own URLs.

    asked for     tried in this order, the next one only when the one before does not work
    base64        base64, the bucket, smaller pictures in base64
    s3            the bucket, base64, smaller pictures in base64
    put           the job's URLs, base64, the bucket, smaller pictures in base64

The bucket is left out where there is none, smaller pictures where the job does not permit them.
base64 works while the whole JSON is within RESULT_LIMIT_MB: RunPod loses a larger result without a
word. A picture that cost GPU time is never thrown away in silence: any change of the way is told
in `warnings`, and when none works, the error says so and OUTPUT_DIR has the files.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from worker.delivery.bucket import Bucket
from worker.delivery.put_url import put
from worker.errors import DeliveryFailed, InvalidInput, ModelUrlRefused, ResultTooLarge
from worker.http.client import SafeHttpClient
from worker.job.output_fields import DEFAULT_QUALITY, ImageFormat, Output
from worker.webui.client import Txt2ImgAnswer
from worker.webui.picture import Picture, from_engine

AT_ONCE = 4  # uploads or conversions of one job
QUALITIES = (90, 80, 70, 60, 50, 40, 30)  # of smaller pictures, tried in this order
# Bytes kept free for what is said after the measurement: the last timings, a full OUTPUT_DIR.
RESERVE = 1000
MB = 1e6
_NAMED = 4  # files in one message; `files` in the job's answer has all

_TOO_LARGE = (
    'Ask for fewer pictures in one job, for `output.format` "webp" or "jpeg", or permit'
    " `output.may_convert`; or set up a bucket (BUCKET_ENDPOINT_URL, see docs/delivery.md)."
    " Where RunPod has no part in it, RESULT_LIMIT_MB=0 removes the limit."
)
_NO_BUCKET = (
    "Set BUCKET_ENDPOINT_URL, BUCKET_NAME, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY on the"
    ' endpoint, or ask for "base64" or "put".'
)

logger = logging.getLogger("worker.delivery")

Answer = dict[str, Any]
Undeliverable = DeliveryFailed | ResultTooLarge
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class _Parcel:
    """One job's pictures: as the engine made them, as the job wants them, and what goes along."""

    job_id: str
    output: Output
    engines: Sequence[str]
    pictures: Sequence[Picture]
    grids: int  # pictures in front that the job did not count
    answer: Answer

    def addressed(
        self,
        method: str,
        images: Sequence[str],
        pictures: Sequence[Picture],
        problems: _Problems,
        **facts: object,
    ) -> Answer:
        """The job's answer with these images in it, an account of them, and what was in the way."""
        form = pictures[0]
        account: dict[str, Any] = {"method": method, "format": form.format}
        account |= {} if form.quality is None else {"quality": form.quality}
        account |= {"bytes": [len(picture.data) for picture in pictures], **facts}
        warnings = []
        if problems:
            how = (
                form.format if form.quality is None else f"{form.format} of quality {form.quality}"
            )
            warnings.append(f"{_messages(problems)} Delivered by {method}, as {how}.")
        if method == "put" and self.grids:
            warnings.append("the grid was left out, because the job has no URL for it.")
        if not all(picture.complete for picture in pictures):
            warnings.append("the infotext is too long for a JPEG file; `info` has it.")
        told = [*self.answer["warnings"], *warnings]
        return self.answer | {"images": list(images), "delivery": account, "warnings": told}


class Delivery:
    """Brings pictures to the caller. Thread-safe.

    Args:
        limit: bytes that a result may have as JSON; None: any number.
        folder: where pictures are also written; None: nowhere.
        bucket: the operator's; None: there is none.
        http: the way to the URLs of jobs.
    """

    def __init__(
        self, limit: int | None, folder: Path | None, bucket: Bucket | None, http: SafeHttpClient
    ) -> None:
        self._limit = limit
        self._folder = folder
        self._bucket = bucket
        self._http = http

    def check(self, output: Output) -> None:
        """Whether this worker can deliver so; asked before the picture costs anything.

        Raises:
            InvalidInput: there is no bucket, or a URL leads where the worker does not go.
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

    def deliver(
        self, picture: Txt2ImgAnswer, answer: Answer, output: Output, job_id: str
    ) -> Answer:
        """Bring the pictures on their way; blocks until they are there.

        Args:
            picture: what the engine returned.
            answer: the rest of the job's result; its `images` are replaced.
            output: what the job wants.
            job_id: names the files and the objects in the bucket.

        Returns:
            The answer with `images`, `delivery` and perhaps further `warnings`.

        Raises:
            ResultTooLarge: larger than the limit, and no other way is left.
            DeliveryFailed: uploads failed, and no other way is left; or a conversion did.
        """
        pictures: Sequence[Picture] = ()
        try:
            pictures = _all(partial(_form, output), picture.images)
            grids = int(picture.facts.get("index_of_first_image") or 0)
            parcel = _Parcel(job_id, output, picture.images, pictures, grids, answer)
            delivered, pictures = self._send(parcel)
        except (DeliveryFailed, ResultTooLarge) as error:
            self._keep(error, pictures or _all(from_engine, picture.images), job_id)
            raise
        for warning in delivered["warnings"][len(answer["warnings"]) :]:
            logger.warning("%s", warning)
        self._save(picture, delivered, pictures, job_id)
        return delivered

    def _send(self, parcel: _Parcel) -> tuple[Answer, Sequence[Picture]]:
        problems: list[Undeliverable] = []
        for way in self._ways(parcel.output):
            try:
                return way(parcel, tuple(problems))
            except (DeliveryFailed, ResultTooLarge) as error:
                problems.append(error)
        first = problems[0]
        details = {key: value for one in reversed(problems) for key, value in one.details.items()}
        raise type(first)(_messages(problems), hint=first.hint, **details)

    def _ways(self, output: Output) -> list[_Way]:
        """What is tried, in order; see above."""
        bucket: list[_Way] = [partial(self._to_bucket, self._bucket)] if self._bucket else []
        ways: dict[str, list[_Way]] = {
            "base64": [self._inline, *bucket],
            "s3": [*bucket, self._inline],
            "put": [self._to_urls, self._inline, *bucket],
        }
        return ways[output.delivery] + ([self._smaller] if output.may_convert else [])

    # The ways. Each returns the answer and the pictures as they were delivered.

    def _inline(self, parcel: _Parcel, problems: _Problems) -> _Delivered:
        pictures = parcel.pictures
        images = [picture.base64() for picture in pictures]
        return self._within_limit(parcel.addressed("base64", images, pictures, problems)), pictures

    def _to_bucket(self, bucket: Bucket, parcel: _Parcel, problems: _Problems) -> _Delivered:
        pictures = parcel.pictures
        folder = cleaned(parcel.job_id)
        keys = [f"{folder}/{number}.{one.suffix}" for number, one in enumerate(pictures)]
        types = [one.content_type for one in pictures]
        urls = _all(bucket.upload, keys, [one.data for one in pictures], types)
        facts = {"keys": keys} | ({"expires_in": bucket.lifetime} if bucket.lifetime else {})
        answer = parcel.addressed("s3", urls, pictures, problems, **facts)
        return self._within_limit(answer, uploaded=urls), pictures

    def _to_urls(self, parcel: _Parcel, problems: _Problems) -> _Delivered:
        pictures = parcel.pictures[parcel.grids :]
        urls = _all(partial(put, self._http), parcel.output.urls, pictures)
        answer = parcel.addressed("put", urls, pictures, problems)
        return self._within_limit(answer, uploaded=urls), parcel.pictures

    def _smaller(self, parcel: _Parcel, problems: _Problems) -> _Delivered:
        form: ImageFormat = "webp" if parcel.output.format == "png" else parcel.output.format
        best = 101 if parcel.output.format == "png" else parcel.output.quality or DEFAULT_QUALITY
        last = problems[-1]
        for quality in (one for one in QUALITIES if one < best):
            convert = partial(from_engine, format_=form, quality=quality)
            pictures = _all(convert, parcel.engines)
            images = [picture.base64() for picture in pictures]
            answer = parcel.addressed("base64", images, pictures, problems)
            try:
                return self._within_limit(answer), pictures
            except ResultTooLarge as error:
                last = error
        raise last

    # The limit and the files.

    def _within_limit(self, answer: Answer, **details: object) -> Answer:
        size = json_size(answer) + RESERVE
        if self._limit is None or size <= self._limit:
            return answer
        images = sum(map(len, answer["images"]))
        form = answer["delivery"]["format"]
        raise ResultTooLarge(
            f"the result would have {size / MB:.2f} MB, {images / MB:.2f} MB of them for"
            f" {len(answer['images'])} {form} pictures; RESULT_LIMIT_MB is {self._limit / MB:g}.",
            hint=_TOO_LARGE,
            bytes=size,
            limit_bytes=self._limit,
            picture_bytes=answer["delivery"]["bytes"],
            **details,
        )

    def _keep(self, error: Undeliverable, pictures: Sequence[Picture], job_id: str) -> None:
        """Before an error: the pictures go to OUTPUT_DIR, and the error says where they are."""
        if self._folder is None:
            error.hint += " With OUTPUT_DIR set, the pictures would have been kept there."
            return
        try:
            files = save(pictures, self._folder, job_id)
        except OSError as problem:
            error.hint += f" The pictures could not be kept in OUTPUT_DIR: {problem.strerror}."
        else:
            error.details["files"] = [str(file) for file in files]
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            named = ", ".join(map(str, files[:_NAMED])) + more
            error.hint += f" The pictures are kept in OUTPUT_DIR: {named}."

    def _save(
        self, picture: Txt2ImgAnswer, answer: Answer, pictures: Sequence[Picture], job_id: str
    ) -> None:
        """Also write the pictures to OUTPUT_DIR; the caller gets them even if that fails."""
        if self._folder is None:
            return
        try:
            files = save(pictures, self._folder, job_id)
        except OSError as error:
            answer["warnings"].append(f"not saved to OUTPUT_DIR: {error.strerror}")
        else:
            logger.info("saved\n%s", summary(picture, answer, files))


_Problems = tuple[Undeliverable, ...]
_Delivered = tuple[Answer, Sequence[Picture]]
_Way = Callable[[_Parcel, _Problems], _Delivered]


def _messages(problems: Sequence[Undeliverable]) -> str:
    sentences = dict.fromkeys(one.message for one in problems)
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def _form(output: Output, image: str) -> Picture:
    return from_engine(image, output.format, output.quality)


def _all(work: Callable[..., _R], *items: Iterable[_T]) -> list[_R]:
    """Do something for each picture, several at once; the first error counts."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="delivery") as pool:
        return list(pool.map(work, *items))


def json_size(answer: Mapping[str, Any]) -> int:
    """Bytes of what the SDK posts for this answer."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode())


def cleaned(job_id: str) -> str:
    """A job's id as part of a file's name or a key: nothing that means something there."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", job_id)[:128] or "job"


def save(pictures: Sequence[Picture], folder: Path, job_id: str) -> list[Path]:
    """Write each picture as `<time>-<job>-<n>.<suffix>`; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{cleaned(job_id)[:64]}"
    files = [folder / f"{stem}-{number}.{one.suffix}" for number, one in enumerate(pictures)]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture.data)
    return files


def summary(answer: Txt2ImgAnswer, result: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A few lines for people: what ran, with which seed and model, how long, where it is."""
    facts = answer.facts
    size = f"{facts['width']}x{facts['height']}"
    models = ", ".join(str(model["name"]) for model in result["models"])
    timings = ", ".join(f"{name} {value}" for name, value in result["timings"].items())
    lines = [
        f"prompt   {facts['prompt']}",
        f"picture  {size}, {facts['steps']} steps of {facts['sampler_name']}, seed {facts['seed']}",
        f"models   {models}",
        f"seconds  {timings}",
        *(f"file     {file}" for file in files),
        *(f"warning  {warning}" for warning in result["warnings"]),
    ]
    return "\n".join(lines)
