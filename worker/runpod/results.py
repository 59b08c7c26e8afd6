"""Posts a job's result to RunPod until it is accepted, and before it its progress and its chunks.

The SDK tries a result three times after a 5xx and drops it after any other failure: a broken
connection, 429, 400, 413. Here the worker tries again after a temporary failure. A result that
RunPod refuses for good is replaced by a short error, so that the caller reads the reason instead
of nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from worker.answer import failure
from worker.errors import InternalError, ResultRefused, WorkerError
from worker.http.backoff import Backoff, retry_after
from worker.large_json import Document, document_of
from worker.runpod.json_payload import JsonPayload
from worker.runpod.timing import TransportTiming

logger = logging.getLogger(__name__)

_ENCODED_AT_ONCE = 4  # results
SHORT_ERROR_ATTEMPTS = 3  # when the short error is refused as well

_TEMPORARY = frozenset({408, 425, 429})  # and every 5xx: the same post may be accepted later
_HEADERS = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}  # the SDK's

_NOT_JSON = (TypeError, ValueError, RecursionError)  # json's errors


@dataclass(frozen=True)
class _Reply:
    """How one attempt ended; `status` is None if there was no answer."""

    status: int | None
    summary: str
    retry_after: float | None = None

    @property
    def is_accepted(self) -> bool:
        return self.status is not None and self.status < 300  # noqa: PLR2004 - HTTP's classes

    @property
    def is_temporary(self) -> bool:
        return self.status is None or self.status in _TEMPORARY or self.status >= 500  # noqa: PLR2004


class ResultPoster:
    """Posts over one session.

    Args:
        session: has the headers with the key.
        url: RunPod's route for results, with `$ID` for the job's id.
        stream_url: the same for the chunks of a job that streams; None: it is not known.
        timing: how long to wait.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        timing: TransportTiming,
        stream_url: str | None = None,
    ) -> None:
        self._session = session
        self._url = url
        self._stream_url = stream_url
        self._timing = timing
        self._streamed: set[str] = set()  # the running jobs that have sent a chunk
        # Threads of its own: all of the jobs' may wait for a volume that does not answer.
        self._threads = ThreadPoolExecutor(_ENCODED_AT_ONCE, thread_name_prefix="result")

    @property
    def can_stream(self) -> bool:
        """Whether RunPod's route for chunks is known."""
        return self._stream_url is not None

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._streamed.discard(job_id)

    async def post_result(self, job_id: str, body: Mapping[str, Any]) -> bool:
        """Post a result, or a short error in its place; returns whether RunPod accepted one."""
        url = self._done_url(job_id, is_stream=job_id in self._streamed)
        try:
            # In a thread: megabytes of pictures must not delay the request for the next job.
            encode = asyncio.get_running_loop().run_in_executor
            encoded = await encode(self._threads, document_of, body)
        except _NOT_JSON as error:
            problem: WorkerError = InternalError(f"the result is not JSON: {error}.")
        else:
            answer = await self._post_again(url, job_id, encoded)
            if answer.is_accepted:
                return True
            problem = _refused(answer, encoded.size)
        logger.error("%s", problem)
        return await self._post_short_error(url, job_id, document_of(short_error(problem, body)))

    async def _post_short_error(self, url: str, job_id: str, encoded: Document) -> bool:
        """Post the short error; it is small and valid, so a refusal is probably temporary."""
        back_off = self._back_off()
        for _ in range(SHORT_ERROR_ATTEMPTS):
            answer = await self._post_again(url, job_id, encoded)
            if answer.is_accepted:
                return True
            await asyncio.sleep(back_off.pause(answer.retry_after))
        logger.error("RunPod did not accept the job's result or error: %s", answer.summary)
        return False

    async def post_progress(self, job_id: str, output: object) -> bool:
        """Post a progress report, once; returns whether RunPod accepted it.

        A lost report does no harm, so it is not repeated.
        """
        try:
            encoded = document_of({"status": "IN_PROGRESS", "output": output})
        except _NOT_JSON as error:
            logger.warning("a progress report is not JSON: %s", error)
            return False
        url = self._done_url(job_id, is_stream=False)
        answer = await self._post(url, job_id, encoded, self._timing.progress)
        if not answer.is_accepted:
            logger.info("a progress report was lost: %s", answer.summary)
        return answer.is_accepted

    async def post_chunk(self, job_id: str, chunk: Mapping[str, Any], *, again: bool) -> bool:
        """Post a chunk to the job's `/stream`; returns whether RunPod accepted it.

        With `again` it is posted as a result is, until RunPod accepts or refuses it for good;
        otherwise once, as a progress report. The chunks of a job must be awaited one by one.
        """
        if self._stream_url is None:
            return False
        self._streamed.add(job_id)
        url = f"{_with_id(self._stream_url, job_id)}&isStream=false"  # as the SDK
        try:
            encoded = document_of({"output": chunk})
        except _NOT_JSON as error:
            logger.warning("a chunk of the stream is not JSON: %s", error)
            return False
        if again:
            answer = await self._post_again(url, job_id, encoded, "a chunk of the stream")
        else:
            answer = await self._post(url, job_id, encoded, self._timing.progress)
        if not answer.is_accepted:
            what = "a picture's chunk" if again else "a progress chunk"
            level = logging.WARNING if again else logging.INFO
            logger.log(level, "%s was lost: %s", what, answer.summary)
        return answer.is_accepted

    def _done_url(self, job_id: str, *, is_stream: bool) -> str:
        return f"{_with_id(self._url, job_id)}&isStream={str(is_stream).lower()}"

    async def _post_again(
        self, url: str, job_id: str, encoded: Document, what: str = "the result"
    ) -> _Reply:
        """Post until RunPod accepts or refuses for good, at most for `timing.result`."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timing.result
        back_off = self._back_off()
        while True:
            answer = await self._post(url, job_id, encoded, self._timing.post)
            if not answer.is_temporary:
                return answer
            pause = back_off.pause(answer.retry_after)
            if clock() + pause > deadline:
                return answer
            logger.warning(
                "RunPod has not accepted %s (%s): next attempt in %.1f s",
                what,
                answer.summary,
                pause,
            )
            await asyncio.sleep(pause)

    async def _post(self, url: str, job_id: str, encoded: Document, seconds: float) -> _Reply:
        try:
            async with self._session.post(
                url,
                data=JsonPayload(encoded),
                headers=_HEADERS | {"X-Request-ID": _quoted(job_id)},
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                wait = retry_after(response.headers)
                return _Reply(response.status, f"HTTP {response.status}", wait)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            # Only the type's name: the text may contain headers, and the key is one of them.
            return _Reply(None, f"no answer, {type(error).__name__}")

    def _back_off(self) -> Backoff:
        return Backoff(self._timing.first_post_pause, self._timing.longest_post_pause)


def _with_id(url: str, job_id: str) -> str:
    return url.replace("$ID", _quoted(job_id))


def _quoted(job_id: str) -> str:
    """The id as a part of a URL or as a header; RunPod's own ids stay as they are."""
    return quote(job_id, safe="", errors="replace")  # JSON can have half a surrogate pair


def result_body(answer: object) -> dict[str, Any]:
    """The body to post for a handler's answer, by the SDK's rules: `output`, `error`, `stopPod`."""
    if not isinstance(answer, Mapping):
        return {"output": answer}
    output = {key: answer[key] for key in answer if key not in {"error", "refresh_worker"}}
    body: dict[str, Any] = {"output": output} if output else {}
    if answer.get("error"):
        # RunPod treats a job as successful if `error` is not a string.
        body["error"] = str(answer["error"])
    if answer.get("refresh_worker"):
        body["stopPod"] = True
    return body


def short_error(problem: WorkerError, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a failed job; keeps `stopPod`, because a broken worker still has to go."""
    details = failure(problem)
    short: dict[str, Any] = {"error": details.pop("error"), "output": details}
    return short | {key: body[key] for key in ("stopPod",) if key in body}


def _refused(answer: _Reply, size: int) -> ResultRefused:
    megabytes = f"{size / 1e6:.1f} MB"
    if answer.is_temporary:
        return ResultRefused(
            f"RunPod did not accept the result in time ({answer.summary}, {megabytes}).",
            hint="Send the job again.",
        )
    return ResultRefused(f"RunPod refused the result ({answer.summary}, {megabytes}).")
