"""The form of a picture's text, before it is fetched or decoded."""

import pytest
from pydantic import BaseModel, ValidationError

from worker.images.base64_text import decoded
from worker.job.image_fields import MAX_TEXT, MAX_URL, ImageText, is_url


class Job(BaseModel):
    image: ImageText


GOOD = {
    "iVBORw0KGgo=": False,
    " iVBO\nRw0K\nGgo ": False,
    "data:image/png;base64,iVBORw0KGgo=": False,
    "DATA:IMAGE/SVG+XML;charset=utf-8;BASE64,aaaa": False,
    "https://host/a.png?sig=b": True,
    "HTTP://host/a": True,  # whether it is allowed depends on TRUSTED_HOSTS
    "https://host/" + "a" * (MAX_URL - 13): True,
    "A" * MAX_TEXT: False,
}


@pytest.mark.parametrize("text", GOOD, ids=lambda text: text[:20])
def test_accepted_forms(text):
    job = Job(image=text)
    assert job.image == text.strip()
    assert is_url(job.image) is GOOD[text]


BAD = {
    "": "at least 1 character",
    "photo.png": "is not a picture; send base64, a data URI",
    "/home/me/photo.png": "is not a picture",
    "C:\\photo.png": "is not a picture",
    "s3://bucket/key": "is not a picture",
    "file:///etc/passwd": "is not a picture",
    "https:///x": "is not a picture",
    "<img>": "is not a picture",
    "data:text/plain;base64,aaaa": "is a data URI, but not of the form",
    "data:image/png,aaaa": "is a data URI, but not of the form",
    "data:image/png;base64": "is a data URI, but not of the form",
    "data:image/png;base64," + "é" * 10: "is not a picture",
    "https://host/" + "a" * MAX_URL: "is a URL of 4,109 characters; at most 4,096 work",
    "A" * (MAX_TEXT + 1): "has 20 MB of base64, but RunPod accepts at most 20 MB",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=lambda text: text[:20])
def test_other_forms_are_refused_with_the_remedy(text, message):
    with pytest.raises(ValidationError) as refused:
        Job(image=text)
    (problem,) = refused.value.errors()
    assert message in problem["msg"]
    assert len(problem["msg"]) < 200


def test_the_form_that_is_accepted_is_the_one_that_is_decoded():
    assert all(decoded(text) for text, url in GOOD.items() if not url)


def test_a_long_text_is_not_searched():
    """Only its first characters matter here; the rest is decoded later."""
    assert Job(image="A" * 1000 + "*").image.endswith("*")
