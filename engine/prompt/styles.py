"""A1111's styles: named texts of `styles.csv` that a request adds to its prompts."""

import csv
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.errors import Unsupported

log = logging.getLogger(__name__)

PLACE = "{prompt}"
LONGEST_PROMPT = 1_000_000  # a style with its place twice doubles the prompt
UNREADABLE = (OSError, UnicodeDecodeError, csv.Error, KeyError)


@dataclass(frozen=True)
class Style:
    """An entry of GET /prompt-styles."""

    name: str
    prompt: str
    negative_prompt: str


_NONE = Style("None", "", "")


class Styles:
    """The styles that the file had when it was read; none if it cannot be read, as in A1111."""

    def __init__(self, file: Path | None = None) -> None:
        self.all: dict[str, Style] = {}
        if file is None or not file.is_file():
            return
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                for row in csv.DictReader(lines, skipinitialspace=True):
                    self._add(row)
        except UNREADABLE as error:
            log.warning("%s: the styles from here on are left out: %s", file, error)

    def _add(self, row: dict[str, str | None]) -> None:
        name = row["name"] or ""
        if not name.startswith("#"):  # a comment
            text = row["prompt"] if "prompt" in row else row["text"]  # its name in old files
            self.all[name] = Style(name, text or "", row.get("negative_prompt") or "")

    def describe(self) -> list[dict[str, str]]:
        """The answer of GET /prompt-styles."""
        return [asdict(style) for style in self.all.values()]

    def apply(self, prompt: str, negative: str, names: Iterable[str]) -> tuple[str, str]:
        """Both prompts with these styles, one after the other. An unknown one adds nothing."""
        for name in names:
            style = self.all.get(name, _NONE)
            prompt = _merged(style.prompt, prompt)
            negative = _merged(style.negative_prompt, negative)
        return prompt, negative

    def extract(self, prompt: str, negative: str) -> tuple[list[str], str, str]:
        """The styles that `apply` would have added to these prompts, and the prompts before."""
        names: list[str] = []
        left = [style for style in self.all.values() if style.prompt or style.negative_prompt]
        while True:
            for style in left:
                bare = (_cut(style.prompt, prompt), _cut(style.negative_prompt, negative))
                if bare[0] is not None and bare[1] is not None:
                    break
            else:
                return names, prompt, negative
            prompt, negative = bare[0], bare[1]
            left.remove(style)
            names.insert(0, style.name)


def _cut(style: str, prompt: str) -> str | None:
    """The prompt that `_merged` would have made this one from; None if there is none."""
    style, whole = style.strip(), prompt.strip()
    if PLACE in style:
        before, _, after = style.partition(PLACE)
        fits = whole.startswith(before) and whole.endswith(after)
        return whole[len(before) : len(whole) - len(after)] if fits else None
    if not whole.endswith(style):
        return None
    return whole[: len(whole) - len(style)].removesuffix(", ")


def _merged(style: str, prompt: str) -> str:
    """The prompt in the style's place for it, otherwise before the style."""
    if PLACE in style:
        merged = style.replace(PLACE, prompt)
    else:
        merged = ", ".join(filter(None, (prompt.strip(), style.strip())))
    if len(merged) > LONGEST_PROMPT:
        raise Unsupported(f"a prompt of more than {LONGEST_PROMPT} characters (from its styles)")
    return merged
