"""The hashes of a local file, computed in one pass before its first byte is sent."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from worker.files import open_regular

_BLOCK = 1 << 20
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True)
class Digests:
    """The hashes of a file.

    Attributes:
        size: bytes.
        sha256: lower-case hex.
        md5: of the whole file.
        part: bytes of each part; the last one may be shorter.
        parts: the MD5 of each part.
    """

    size: int
    sha256: str
    md5: bytes
    part: int
    parts: tuple[bytes, ...]

    @classmethod
    def of_file(cls, path: Path, part: int) -> Digests:
        """Read the file once.

        Raises:
            OSError: it cannot be read.
        """
        whole, plain, size = hashlib.sha256(), _md5(), 0
        parts: list[hashlib._Hash] = []
        with open_regular(path) as file:
            while block := file.read(min(_BLOCK, part - size % part)):
                if size % part == 0:
                    parts.append(_md5())
                for digest in (whole, plain, parts[-1]):
                    digest.update(block)
                size += len(block)
        hashed = tuple(one.digest() for one in parts)
        return cls(size, whole.hexdigest(), plain.digest(), part, hashed)

    def could_be(self, etag: str) -> bool:
        """Whether a file with this ETag can be this one.

        S3's ETag is the MD5 of the file, or the MD5 of the MD5s of its parts with their number.
        Another form, and another number of parts, say nothing about the content.
        """
        match = _ETAG.fullmatch(etag)
        if match is None:
            return True
        if match[2] is None:
            return match[1] == self.md5.hex()
        return int(match[2]) != len(self.parts) or self.proved_by(etag)

    def proved_by(self, etag: str) -> bool:
        """Whether only this file can have this ETag."""
        of_parts = f"{_md5(b''.join(self.parts)).hexdigest()}-{len(self.parts)}"
        return etag in {self.md5.hex(), of_parts}

    def size_of(self, number: int) -> int:
        """Bytes of a part; the first one is number 1."""
        return min(self.part, self.size - (number - 1) * self.part)


def differs(etag: str, digest: bytes) -> bool:
    """Whether the ETag of a part, or of a small file, is the MD5 of another content."""
    match = _ETAG.fullmatch(etag)
    return bool(match and match[2] is None and match[1] != digest.hex())


def md5_of(data: bytes) -> bytes:
    """The MD5 of a part: S3 finds transfer errors with it; it protects from nothing else."""
    return _md5(data).digest()


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
