"""What the engine refuses, by the answer A1111 gives.

    Refused               the request is wrong; its text is the answer's `detail`
    ├── SamplerNotFound   404, as A1111
    └── Unsupported       422, naming what this engine lacks (A1111 has it)
    NansException         500, A1111's own name for a picture that is not a number

Every other exception is answered 500 with its class and text, as A1111 does.
"""


class Refused(Exception):
    """A request that can never succeed, answered `status` with the text as `detail`."""

    status = 422


class SamplerNotFound(Refused):
    """No sampler has this exact name."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Sampler not found")


class Unsupported(Refused):
    """A1111 would do it, this engine does not; `what` names the field and value."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the embedded engine does not support {what}")


class NansException(ArithmeticError):
    """The model produced no finite picture (a huge `cfg_scale`, a broken checkpoint)."""
