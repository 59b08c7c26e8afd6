"""What a job may say about its result: the form of the pictures and the way they take. Pure.

    {"format": "webp", "quality": 85, "delivery": "s3"}
    {"delivery": "put", "urls": ["https://bucket.example/1.png?signature=..."]}

Part of the schema in `worker.job.request`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints, model_validator

from worker.job.model_fields import Int, Strict

ImageFormat = Literal["png", "jpeg", "webp"]
Method = Literal["base64", "s3", "put"]
Url = Annotated[str, StringConstraints(min_length=1, max_length=8192, strip_whitespace=True)]

DEFAULT_QUALITY = 90


class Output(Strict):
    """The form of the pictures, and how the caller gets them."""

    format: ImageFormat = Field(
        "png", description="Form of the pictures; A1111's infotext is in each of them."
    )
    quality: Int | None = Field(
        None, ge=1, le=100, description=f"For jpeg and webp; {DEFAULT_QUALITY} when left out."
    )
    delivery: Method = Field(
        "base64",
        description="`base64`: in the result; `s3`: uploaded to the endpoint's bucket; `put`:"
        " uploaded to the job's own `urls`.",
    )
    urls: list[Url] = Field(
        default_factory=list,
        max_length=1024,
        description="Presigned PUT URLs (https), one for each picture, signed for the format's"
        " Content-Type, such as image/png.",
    )
    may_convert: StrictBool = Field(
        False,
        description="Pictures that are too large for the result may be made webp (jpeg stays"
        " jpeg) of the highest quality that fits.",
    )

    preview: StrictBool = Field(
        False,
        description="Reports of progress carry a small JPEG of what there is so far (A1111 only).",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Output:
        conflicts = [
            (self.format == "png" and self.quality is not None, "png has no quality"),
            (self.delivery == "put" and not self.urls, 'delivery "put" needs urls'),
            (self.delivery != "put" and bool(self.urls), 'urls need delivery "put"'),
            (len(set(self.urls)) < len(self.urls), "a URL stands twice: one picture would be lost"),
        ]
        problems = [text for wrong, text in conflicts if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def too_few_or_many_urls(self, pictures: int | None) -> tuple[bool, str]:
        """Whether the job's pictures and its URLs may differ in number, and what to say then.

        `pictures` is None where a script decides how many there are.
        """
        if pictures is None:
            wrong = "output.delivery = 'put' needs a URL a picture; script_name makes any number"
            return self.delivery == "put", wrong
        differ = self.delivery == "put" and len(self.urls) != pictures
        return differ, (
            f"output.urls are {len(self.urls)}, but n_iter x batch_size makes {pictures} pictures"
        )
