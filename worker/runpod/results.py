"""Posting what a job has to say to RunPod: its result, until it is accepted, and its progress.

The SDK tries a result three times after a 5xx and drops it after anything else: a broken
connection, 429, 400, 413. Here a fault that may pass is waited out, and what RunPod refuses for
good becomes a short error, so that the caller reads why instead of nothing.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from worker.answer import failure
from worker.errors import InternalError, ResultRefused, WorkerError
from worker.http.backoff import Backoff, retry_after

logger = logging.getLogger("worker.runpod")

PATIENCE = 120.0  # seconds for which a result is tried; then for as long the short error instead
SHORT_ATTEMPTS = 3  # for the short error, when it is refused as well
ATTEMPT = 120.0  # seconds for one attempt: 20 MB in a slow network
PROGRESS_ATTEMPT = 5.0  # seconds; the next report says more than one that is late

_PASSES = frozenset({408, 425, 429})  # and every 5xx: the same post may be accepted later
_HEADERS = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}  # the SDK's


@dataclass(frozen=True)
class _Answer:
    """How one attempt ended; no status means that there was no answer."""

    status: int | None
    said: str
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        return self.status is not None and self.status < 300  # noqa: PLR2004 - HTTP's classes

    @property
    def may_pass(self) -> bool:
        return self.status is None or self.status in _PASSES or self.status >= 500  # noqa: PLR2004


class Poster:
    """Posts over one session.

    `url` is RunPod's for results, with `$ID` for the job's; `patience` in seconds.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, patience: float = PATIENCE
    ) -> None:
        self._session = session
        self._url = url
        self._patience = patience

    async def result(self, job_id: str, verdict: Mapping[str, Any]) -> bool:
        """Post a result until RunPod has it, if need be as a short error; whether it has."""
        try:
            # 5 ms for 1 MB; in a thread it would hold the interpreter's lock just as long.
            body = _encode(verdict)
        except (TypeError, ValueError, RecursionError) as error:
            problem: WorkerError = InternalError(f"the result is no JSON: {error}.")
        else:
            answer = await self._insist(job_id, body)
            if answer.accepted:
                return True
            problem = _refused(answer, len(body))
        logger.error("%s", problem)
        return await self._in_short(job_id, _encode(in_short(problem, verdict)))

    async def _in_short(self, job_id: str, body: bytes) -> bool:
        """Post what cannot be too large nor wrong: if that is refused, it is not its fault."""
        backoff = Backoff()
        for _ in range(SHORT_ATTEMPTS):
            answer = await self._insist(job_id, body)
            if answer.accepted:
                return True
            await asyncio.sleep(backoff.pause(answer.retry_after))
        logger.error("RunPod does not know how the job ended: %s", answer.said)
        return False

    async def progress(self, job_id: str, output: object) -> bool:
        """Post a progress report, once; whether RunPod has it.

        It may be lost, the result may not: a report that RunPod does not take is not repeated.
        """
        try:
            body = _encode({"status": "IN_PROGRESS", "output": output})
        except (TypeError, ValueError, RecursionError) as error:
            logger.warning("a progress report is no JSON: %s", error)
            return False
        answer = await self._attempt(job_id, body, PROGRESS_ATTEMPT)
        if not answer.accepted:
            logger.info("a progress report was lost: %s", answer.said)
        return answer.accepted

    async def _insist(self, job_id: str, body: bytes) -> _Answer:
        """Post until there is an answer that will not change, or patience is at its end."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience
        backoff = Backoff()
        while True:
            answer = await self._attempt(job_id, body, ATTEMPT)
            if not answer.may_pass:
                return answer
            pause = backoff.pause(answer.retry_after)
            if clock() + pause > deadline:
                return answer
            logger.warning("RunPod has no result yet (%s): again in %.1f s", answer.said, pause)
            await asyncio.sleep(pause)

    async def _attempt(self, job_id: str, body: bytes, seconds: float) -> _Answer:
        url = f"{self._url.replace('$ID', job_id)}&isStream=false"
        try:
            async with self._session.post(
                url,
                data=io.BytesIO(body),  # sent in pieces: bytes would block the loop
                headers=_HEADERS | {"X-Request-ID": job_id},
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                wait = retry_after(response.headers)
                return _Answer(response.status, f"HTTP {response.status}", wait)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            # Only its name: the text may hold headers, and the key is one of them.
            return _Answer(None, f"no answer, {type(error).__name__}")


def in_short(problem: WorkerError, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The error as RunPod takes it; `stopPod` stays, for that the worker is broken stays true."""
    told = failure(problem)
    short: dict[str, Any] = {"error": told.pop("error"), "output": told}
    return short | {key: verdict[key] for key in ("stopPod",) if key in verdict}


def _refused(answer: _Answer, size: int) -> ResultRefused:
    megabytes = f"{size / 1e6:.1f} MB"
    if answer.may_pass:
        return ResultRefused(
            f"RunPod did not take the result in time ({answer.said}, {megabytes}).",
            hint="Send the job again.",
        )
    return ResultRefused(f"RunPod refused the result ({answer.said}, {megabytes}).")


def _encode(verdict: Mapping[str, Any]) -> bytes:
    return json.dumps(verdict, ensure_ascii=False, allow_nan=False).encode()
