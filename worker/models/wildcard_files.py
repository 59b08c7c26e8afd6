"""The files of wildcards in the model stores, and the prompts of a job resolved with them."""

from __future__ import annotations

import fnmatch
import re
import secrets
from pathlib import Path
from typing import TypeVar

from worker.errors import InvalidInput
from worker.files import read_small
from worker.job import wildcards
from worker.job.request import JobFields
from worker.job.wildcards import Line
from worker.models.store.listing import Listing
from worker.shown import shown
from worker.spelling import near_matches

FOLDER, SUFFIX = "wildcards", ".txt"
PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")

LARGEST_FILE = 1 << 20  # bytes
MOST_FILES, MOST_CHARACTERS = 200, 4_000_000  # of the files that one job reads
MOST_SEEDS = 2**32 - 2  # A1111 chooses a seed below this number for a job with -1

_GLOB = re.compile(r"[*?]")

Request = TypeVar("Request", bound=JobFields)


class WildcardFiles:
    """The text files below the folder `wildcards` of each store. Thread-safe.

    Args:
        stores: folders of model files; of two files with one name, that of the first store counts.
    """

    def __init__(self, *stores: Path) -> None:
        suffixes = (SUFFIX, SUFFIX.upper())
        self._listings = [Listing(store / FOLDER, suffixes=suffixes) for store in stores]

    def resolve(self, request: Request) -> Request:
        """The job with a seed and without wildcards in its prompts, if it asks for that.

        Raises:
            InvalidInput: a prompt or a file cannot be used; names it.
        """
        if not request.wildcards:
            return request
        seed = request.seed if request.seed >= 0 else secrets.randbelow(MOST_SEEDS)
        texts = {name: getattr(request, name) for name in PROMPTS if getattr(request, name, "")}
        resolved = wildcards.resolve(texts, seed, _Reader(self.paths()).lines)
        return request.with_prompts(resolved, seed)

    def paths(self) -> dict[str, tuple[Path, Path]]:
        """Name of a wildcard, such as `artists/dutch` -> its file, and the folder it is in."""
        found: dict[str, tuple[Path, Path]] = {}
        for listing in self._listings:
            for path in listing.files():
                name = path.relative_to(listing.folder).with_suffix("").as_posix()
                found.setdefault(name, (path, listing.folder))
        return found


class _Reader:
    """Reads the files that one job needs, each once."""

    def __init__(self, paths: dict[str, tuple[Path, Path]]) -> None:
        self._paths = paths
        self._read: dict[str, list[Line]] = {}
        self._characters = 0

    def lines(self, name: str) -> list[Line]:
        """The lines of all files that the name in a prompt means.

        Raises:
            InvalidInput: there is no such file, or one cannot be used.
        """
        return [line for one in self._meant(name.replace("\\", "/")) for line in self._of(one)]

    def _meant(self, name: str) -> list[str]:
        if name in self._paths:
            return [name]
        folded = name.casefold()
        if _GLOB.search(name):
            names = [one for one in self._paths if fnmatch.fnmatchcase(one.casefold(), folded)]
        else:
            names = [one for one in self._paths if one.casefold() == folded][:1]
        if not names:
            raise _unknown(name, list(self._paths))
        return sorted(names)

    def _of(self, name: str) -> list[Line]:
        if name not in self._read:
            content = _content(name, *self._paths[name])
            self._characters += len(content)
            if len(self._read) >= MOST_FILES or self._characters > MOST_CHARACTERS:
                raise InvalidInput(
                    f"the job's wildcards need more than {MOST_FILES} files, or files with more"
                    f" than {MOST_CHARACTERS:,} characters together.",
                    hint="Name fewer wildcards, or use a narrower pattern.",
                )
            self._read[name] = wildcards.lines_of(content, name)
        if not self._read[name]:
            file = f"{FOLDER}/{name}{SUFFIX}"
            hint = "Write one option on each line."
            raise InvalidInput(f"{file!r} has no line with words.", hint=hint)
        return self._read[name]


def _content(name: str, path: Path, folder: Path) -> str:
    file = f"{FOLDER}/{name}{SUFFIX}"
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(
                f"{file!r} is a link that leads out of the folder {FOLDER!r}.",
                hint="Put the file itself into the folder.",
            )
        content = read_small(path, LARGEST_FILE).decode("utf-8-sig")
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        reason = getattr(error, "strerror", None) or "its links form a circle"
        raise InvalidInput(f"{file!r} cannot be read: {reason}.", hint=_LARGEST) from error
    except UnicodeDecodeError:
        content = "\0"
    if "\0" in content:
        raise InvalidInput(f"{file!r} is not a text in UTF-8.", hint="Save it in UTF-8.")
    return content


_LARGEST = f"It must be a file of at most {LARGEST_FILE >> 20} MiB."


def _unknown(name: str, known: list[str]) -> InvalidInput:
    last = name.rpartition("/")[2].casefold()
    same = [one for one in known if one.rpartition("/")[2].casefold() == last][:3]
    near = same or near_matches(name, known)
    if near:
        hint = f"Did you mean {' or '.join(f'__{one}__' for one in near)}?"
    elif known:
        hint = f"The model store has {len(known)} wildcards, such as __{min(known)}__."
    else:
        hint = f"The folder {FOLDER!r} of the model store has no {SUFFIX} file."
    return InvalidInput(
        f"the wildcard {shown(f'__{name}__')} is not known.",
        hint=rf"{hint} Text that is no wildcard is written \__name__.",
        near=near,
    )
