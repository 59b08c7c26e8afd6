"""The engine's errors, and the answer that A1111 gives for each.

    Refused               the request is wrong; the message is the answer's `detail`
    ├── SamplerNotFound   404, the same as A1111
    ├── InvalidImage      500, the same as A1111
    ├── TooLarge          422, A1111 would try it until its memory is full
    └── Unsupported       422, names the feature that A1111 has and this engine does not
    NansException         500, A1111's name for a picture that contains NaN

Every other exception gets status 500 with its class and message, the same as in A1111.
"""

import reprlib

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlong = 3, 40
_repr.maxstring = _repr.maxother = 200


def shown(value: object) -> str:
    """A value of a request as text for a message: its `repr`, at most some hundred characters."""
    return _repr.repr(value)


class Refused(Exception):
    """A request that can never succeed; the answer has `status`, and the message as `detail`."""

    status = 422


class SamplerNotFound(Refused):
    """No sampler has this exact name."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Sampler not found")


class InvalidImage(Refused):
    """A picture of the request that cannot be decoded; `why` begins with "it" or "its"."""

    status = 500

    def __init__(self, why: str) -> None:
        super().__init__(f"Invalid encoded image: {why}")


class TooLarge(Refused):
    """A picture with more pixels than this engine makes."""


class Unsupported(Refused):
    """A feature of A1111 that this engine does not have; `what` names the field and its value."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"the embedded engine does not support {what}")


class NansException(ArithmeticError):
    """The model produced values that are not finite (a huge `cfg_scale`, a broken checkpoint)."""
