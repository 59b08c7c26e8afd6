"""The field `output` of a job: format and delivery of the pictures. Pure.

    {"format": "webp", "quality": 85, "delivery": "s3"}
    {"delivery": "put", "urls": ["https://bucket.example/1.png?signature=..."]}

Part of the schema in `worker.job.request`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StringConstraints, model_validator

from worker.job.model_fields import Int, Strict

ImageFormat = Literal["png", "jpeg", "webp"]


def _usual_name(value: object) -> object:
    """`S3` as `s3` and `.JPG` as `jpeg`: capital letters and a file's suffix are understood."""
    if not isinstance(value, str):
        return value
    name = value.strip().lstrip(".").lower()
    return "jpeg" if name == "jpg" else name


Method = Literal["base64", "s3", "put"]
ReportedMethod = Literal["base64", "s3", "put", "stream"]
Url = Annotated[str, StringConstraints(min_length=1, max_length=8192, strip_whitespace=True)]

DEFAULT_QUALITY = 90


class Output(Strict):
    """The format of the pictures, and how they are delivered."""

    format: Annotated[ImageFormat, BeforeValidator(_usual_name)] = Field(
        "png", description="Format of the pictures; each has A1111's infotext in it."
    )
    quality: Int | None = Field(
        None, ge=1, le=100, description=f"Quality of jpeg and webp; {DEFAULT_QUALITY} if not given."
    )
    delivery: Annotated[Method, BeforeValidator(_usual_name)] = Field(
        "base64",
        description="`base64`: in the result; `s3`: uploaded to the bucket of the job's `s3Config`,"
        " or else of the endpoint; `put`: uploaded to the `urls` of the job. With `s3Config` the"
        " default is `s3`.",
    )
    urls: list[Url] = Field(
        default_factory=list,
        max_length=1024,
        description="Presigned PUT URLs (https), one for each picture, signed for the format's"
        " Content-Type, such as image/png.",
    )
    may_convert: StrictBool = Field(
        False,
        description="Pictures that are too large for the result may be converted to webp (jpeg"
        " stays jpeg) of the highest quality that fits.",
    )

    preview: StrictBool = Field(
        False,
        description="Progress reports have a small JPEG of the unfinished picture (A1111 only).",
    )

    stream: StrictBool = Field(
        False,
        description="Send progress and each finished picture to RunPod's `/stream` while the job"
        " runs; see docs/streaming.md.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Output:
        conflicts = [
            (self.format == "png" and self.quality is not None, "png has no quality"),
            (self.delivery == "put" and not self.urls, 'delivery "put" needs urls'),
            (self.delivery != "put" and bool(self.urls), 'urls need delivery "put"'),
            (
                len(set(self.urls)) < len(self.urls),
                "urls contains a URL twice: a picture would be lost",
            ),
        ]
        problems = [text for wrong, text in conflicts if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def too_few_or_many_urls(self, pictures: int | None) -> tuple[bool, str]:
        """Whether the numbers of pictures and URLs may differ, and the message for that.

        `pictures` is None if a script decides how many there are.
        """
        if pictures is None:
            return self.delivery == "put", (
                "output.delivery = 'put' needs a URL for each picture, but script_name makes an"
                " unknown number"
            )
        differ = self.delivery == "put" and len(self.urls) != pictures
        return differ, (
            f"output.urls has {len(self.urls)}, but the number of pictures is {pictures}: send a"
            " URL for each"
        )
