"""The sizes, waits and counts of a download, in one place. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from worker.http.backoff import LONGEST_WAIT, Backoff

MIB = 1 << 20


@dataclass(frozen=True)
class DownloadLimits:
    """Sizes in bytes, times in seconds.

    Attributes:
        largest_file: a larger file is refused; no model that A1111 v1.9.3 loads comes near.
        block: read at once; block and hash stay in a core's cache.
        inspect_from: bytes that must have arrived before the first inspection.
        room_step: room to make in one step while the file's size is unknown.
        tick: between two checks of the transfer.

        attempts: of a connection in a row, while no other connection makes progress either.
        least: an attempt that breaks off with fewer bytes counts as failed.
        first_pause: after a failed attempt; then twice as long, and so on.
        longest_wait: the longest pause that a host can ask for.

        first_part: before the size is known; enough for nearly every header.
        early_part: the parts at the beginning of a large file.
        smallest_part, largest_part: of the file that one connection fetches.

        fewest_connections, most_connections: to one host.
        judge_from, judge_within: bytes or time after which the first connection shows its rate.
        fast: bytes per second of a first connection that needs only the fewest others at first.
        short: a rest that would arrive within this time needs no more connections.
        growth: more connections are tried in steps of this factor.
        worth_it: more connections must raise the rate by this factor.
        settling: that new connections need until they deliver.
        measuring: over which a rate is measured.
        try_again: until more connections are tried again.
        quiet: without new requests, while those that the host has answered are counted.

        stalled: a connection that delivers no block for this long is replaced.
        window: over which a connection is compared with the others.
        slow: a connection with less than this fraction of the median rate is replaced.
        samples: number of ended connections that also count in that median.

        sync_every: between two syncs to the disk; they make the sync at the end short.
        follow_every: between two checks for bytes to hash.
    """

    largest_file: int = 32 << 30
    block: int = 256 * 1024
    inspect_from: int = 256 * 1024
    room_step: int = 256 * MIB
    tick: float = 0.1

    attempts: int = 6
    least: int = 16 * 1024
    first_pause: float = 0.5
    longest_wait: float = LONGEST_WAIT

    first_part: int = 2 * MIB
    early_part: int = 4 * MIB
    smallest_part: int = 2 * MIB
    largest_part: int = 16 * MIB

    fewest_connections: int = 3
    most_connections: int = 32
    judge_from: int = MIB
    judge_within: float = 0.02
    fast: float = 100e6
    short: float = 0.05
    growth: int = 8
    worth_it: float = 1.15
    settling: float = 0.2
    measuring: float = 0.2
    try_again: float = 5.0
    quiet: float = 1.0

    stalled: float = 20.0
    window: float = 10.0
    slow: float = 0.25
    samples: int = 8

    sync_every: float = 0.5
    follow_every: float = 0.02

    def backoff(self) -> Backoff:
        """The pauses of one connection."""
        return Backoff(self.first_pause, self.longest_wait, longest_wait=self.longest_wait)


DEFAULT = DownloadLimits()
