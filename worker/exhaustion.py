"""Whether an error comes from a machine that is short of memory, threads or file descriptors.

Such an error can come from any line, so it is recognized where it arrives. Pure.
"""

from __future__ import annotations

import errno

_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
# Of errors without a number: of the thread module, and of the loader of an import.
_TEXTS = ("can't start new thread", "failed to map segment", "cannot allocate memory")
_DEEPEST = 20  # causes; an error may be its own cause


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, says that the machine has no more to give."""
    for _ in range(_DEEPEST):
        if error is None:
            return False
        if isinstance(error, MemoryError) or _has_number(error):
            return True
        # Only what the interpreter itself writes: a message with a caller's text says nothing.
        if isinstance(error, (RuntimeError, ImportError)):
            text = str(error).lower()[:1000]
            if any(one in text for one in _TEXTS):
                return True
        error = error.__cause__ or error.__context__
    return False


def _has_number(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _ERRNOS
