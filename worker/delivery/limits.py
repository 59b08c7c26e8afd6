"""How long uploads may take: values with defaults, so that tests can pass smaller ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UploadLimits:
    """For uploads to a bucket or to a job's own URLs.

    Attributes:
        at_once: uploads or conversions of one job.
        attempts: for each file.
        longest_wait: seconds between two attempts to `put`; the caller waits for the result.
        connect_timeout: seconds, to the bucket.
        read_timeout: seconds for the bucket's answer.
    """

    at_once: int = 4
    attempts: int = 3
    longest_wait: float = 5.0
    connect_timeout: float = 5.0
    read_timeout: float = 30.0


UPLOAD_LIMITS = UploadLimits()
