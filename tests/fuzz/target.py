"""What is fuzzed: functions that read a text or bytes from outside, and how they are judged.

A target gets a `Draw` and hands what it draws to the code. It may raise only the errors that the
code promises, and may take CPU time only in proportion to what was drawn.
"""

import contextlib
import importlib
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.draw import Draw

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
OURS = ("worker", "engine", "gateway", "handler.py", "model_manager.py", "runpod_sdk.py")


@dataclass(frozen=True)
class Target:
    """One reader of something from outside.

    Attributes:
        raises: the errors that it promises.
        seconds: of CPU time that any input may take: ten times what the slowest takes here.
        per_mb: further seconds for each million characters that were drawn.
        share: of the time of all targets, 1 for most.
    """

    name: str
    use: Callable[[Draw], object]
    raises: tuple[type[Exception], ...]
    seconds: float
    per_mb: float
    share: float

    def __call__(self, data: bytes) -> None:
        """Use one input; raises what the target does not promise."""
        with contextlib.suppress(*self.raises):
            self.use(Draw(data))

    def allowed(self, draw: Draw) -> float:
        """Seconds of CPU for this input."""
        return self.seconds + self.per_mb * draw.made / 1e6


TARGETS: dict[str, Target] = {}


def target(*raises, seconds=0.5, per_mb=10.0, share=1.0):
    """Register the function as a target under its own name."""

    def register(use):
        name = use.__name__.replace("_", "-")
        assert name not in TARGETS, name
        TARGETS[name] = Target(name, use, raises, seconds, per_mb, share)
        return use

    return register


@dataclass
class Finding:
    """An input with which a target did what it must not.

    Attributes:
        place: the kind of the fault: two findings with one place are the same fault.
        text: for people.
    """

    target: str
    place: str
    text: str
    data: bytes = field(repr=False)
    times: int = 1


def judged(one: Target, data: bytes, factor: float = 1.0) -> Finding | None:
    """Run a target once.

    Args:
        one: the target.
        data: its input.
        factor: by how much slower this process is, for example because its coverage is measured.
    """
    draw, began = Draw(data), time.process_time()
    try:
        one.use(draw)
    except one.raises:
        pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Finding(one.name, _place(error), _text(error), data)
    took = time.process_time() - began
    if took > factor * one.allowed(draw):
        took = min(took, *(_seconds(one, data) for _ in range(2)))
        if took > factor * one.allowed(draw):
            text = (
                f"{took:.2f} s of CPU for {draw.made} characters, {one.allowed(draw):.2f} allowed"
            )
            return Finding(one.name, "too slow", text, data)
    return None


def _seconds(one: Target, data: bytes) -> float:
    began = time.process_time()
    one(data)
    return time.process_time() - began


def _place(error: BaseException) -> str:
    """Kind of the error, and the last line of our own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [(str(Path(one.filename)).removeprefix(f"{ROOT}/"), one.name) for one in frames]
    own = [name for name in names if name[0].startswith(OURS)] or names[-1:]
    where = ":".join(own[-1]) if own else "?"
    if isinstance(error, RecursionError):  # the depth at which it comes is chance
        where = ":".join(own[0]) if own else "?"
    return f"{type(error).__name__} in {where}"


def _text(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return re.sub(r"\s+", " ", text.encode("ascii", "backslashreplace").decode())[:300]


def shrunk(one: Target, finding: Finding, attempts: int = 400) -> bytes:
    """A shorter input with the same fault."""
    data, size = finding.data, max(1, len(finding.data) // 2)
    while size and attempts > 0:
        at = 0
        while at < len(data) and attempts > 0:
            attempts -= 1
            shorter = data[:at] + data[at + size :]
            found = judged(one, shorter)
            if found and found.place == finding.place:
                data = shorter
            else:
                at += size
        size //= 2
    return data.rstrip(b"\0")


def kept_inputs(name: str) -> list[bytes]:
    """The inputs that have found a fault before, or that reach far."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def load(*, embedded: bool = sys.version_info >= (3, 11)) -> dict[str, Target]:
    """All targets; those of the embedded engine, which needs torch, only if asked for."""
    names = ["jobs", "prompts", "hosts", "webui", "model_files", "pictures", "settings", "gateways"]
    for name in [*names, *(["embedded"] if embedded else [])]:
        importlib.import_module(f"tests.fuzz.{name}")
    return TARGETS
