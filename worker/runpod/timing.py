"""How long the transport waits: values with defaults, so that tests can pass shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransportTiming:
    """All in seconds."""

    connect: float = 10.0  # until a connection to RunPod is established

    # Taking jobs
    hold: float = 90.0  # one long poll, as in the SDK
    # When a poll is ended: for an answer that may be on its way. RunPod closes such a poll at once,
    # so the whole wait happens only if it is far away or busy.
    ended_poll: float = 2.0
    begun_answer: float = 20.0  # when a poll is ended: for the rest of an answer, up to 20 MB a job
    between_takes: float = 0.2  # at least, from one poll without a job to the next
    too_many_requests: float = 5.0  # at least, after a 429, as in the SDK
    # The longest pause after a failed poll. FlashBoot's 400 is usual, so it is short.
    longest_take_pause: float = 5.0

    # Stop signals
    between_stops: float = 1.0  # at least, from one poll without a signal to the next; the SDK's
    longest_stop_pause: float = 30.0  # after a failed poll
    early_stop: float = 30.0  # a stop signal that comes before its job is kept this long

    # Posting
    post: float = 120.0  # one attempt: 20 MB in a slow network
    # A result is posted again for so long, then the short error in its place for as long.
    result: float = 120.0
    first_post_pause: float = 0.2  # after a failed attempt; doubles with each one
    longest_post_pause: float = 10.0
    progress: float = 5.0  # the only attempt for a progress report: the next one is newer

    # The watchdog: whatever blocks for long runs in threads, so the event loop never does.
    silence: float = 60.0


TIMING = TransportTiming()
