"""What is known about a fetched model: the content of its metadata file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from worker.formats.names import Kind

# `About.mtime` of a file that was verified before it was sent to a volume, where it gets another
# time: the first worker that sees the file with its whole size takes the time that it has.
UNKNOWN_TIME = -1

_SECOND = 1_000_000_000  # ns


@dataclass(frozen=True)
class About:
    """The metadata file of a blob.

    Attributes:
        stem: the clean name under which it is linked; unique in its folder.
        name: the clean name of its file at its host, which other files may have, too; empty in
            metadata of older workers.
        mtime: the blob's modification time when it was verified; another time means that the
            blob may have changed. In whole seconds; UNKNOWN_TIME: not known yet.
        fraction: the nanoseconds of `mtime` after its last whole second; 0: not known, because
            image layers, some network volumes and the metadata of older workers have none.
        source: where it was fetched from, as text for messages.
        ref: the reference that can fetch it again; None if that contains a secret.
        family: the family that its host names.
    """

    kind: Kind
    stem: str
    suffix: str
    size: int
    mtime: int
    source: str
    ref: str | None = None
    title: str = ""
    family: str | None = None
    trained_words: tuple[str, ...] = ()
    name: str = ""
    fraction: int = 0

    def is_unchanged(self, size: int, mtime_ns: int) -> bool:
        """Whether a file of this size and time is the one that was verified."""
        seconds, fraction = divmod(mtime_ns, _SECOND)
        # A file system may keep fewer digits than the one on which the file was verified.
        fewer, more = sorted((_digits(fraction), _digits(self.fraction)), key=len)
        return (size, seconds) == (self.size, self.mtime) and more.startswith(fewer)

    def with_mtime(self, mtime_ns: int) -> About:
        """The same with this modification time."""
        seconds, fraction = divmod(mtime_ns, _SECOND)
        return replace(self, mtime=seconds, fraction=fraction)


ABOUT = TypeAdapter(About)


def _digits(fraction: int) -> str:
    """Nanoseconds as the digits behind the point: 120000000 is "12"."""
    return f"{fraction:09}".rstrip("0")
