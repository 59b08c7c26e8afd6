import json
import re

import pytest

from worker.errors import InvalidInput
from worker.job.template import parse as parse_templates
from worker.job.txt2img import parse

SECRET = "5ecret-5ignature"
URL = f"https://bucket.example/1.png?X-Amz-Signature={SECRET}"
PUT = {"delivery": "put", "urls": [URL]}

MAKES = "but n_iter x batch_size makes"
REFUSED = [
    # output, the rest of the job, part of the message
    ("webp", {}, "output = 'webp'"),
    ({"format": "gif"}, {}, "output.format = 'gif': must be 'png', 'jpeg' or 'webp'"),
    ({"format": "jpeg", "quality": 0}, {}, "output.quality = 0"),
    ({"format": "jpeg", "quality": 101}, {}, "output.quality = 101"),
    ({"format": "webp", "quality": True}, {}, "must be a number, not true or false"),
    ({"quality": 80}, {}, "output: png has no quality"),
    ({"delivery": "ftp"}, {}, "output.delivery = 'ftp': must be 'base64', 's3' or 'put'"),
    ({"delivery": "put"}, {}, 'output: delivery "put" needs urls'),
    ({"urls": [URL]}, {}, 'output: urls need delivery "put"'),
    (PUT | {"urls": URL}, {}, "output.urls"),
    (PUT | {"urls": [URL, 5]}, {}, "output.urls.1 = 5"),
    (PUT | {"urls": [URL, URL]}, {"n_iter": 2}, "urls contains a URL twice"),
    (PUT, {"script_name": "x/y/z plot"}, "'put' needs a URL for each picture, but script_name"),
    (PUT, {"n_iter": 2}, f"output.urls has 1, {MAKES} 2 pictures"),
    (PUT | {"urls": [URL, URL + "2"]}, {}, f"output.urls has 2, {MAKES} 1 pictures"),
    (PUT, {"batch_size": 2}, "makes 2 pictures"),
    ({"may_convert": "yes"}, {}, "output.may_convert = 'yes'"),
    ({"formt": "png"}, {}, "output.formt is not a known field (did you mean `format`?)"),
]


@pytest.mark.parametrize(("output", "job", "message"), REFUSED, ids=str)
def test_a_wrong_output_is_refused(output, job, message):
    with pytest.raises(InvalidInput, match=re.escape(message)) as raised:
        parse(job | {"output": output})
    assert SECRET not in f"{raised.value} {raised.value.details}"


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ({}, {}),
        ({"format": "jpeg", "quality": 1}, {}),
        ({"format": "webp", "delivery": "s3", "may_convert": True}, {}),
        (PUT | {"urls": [f"{URL}{n}" for n in range(6)]}, {"n_iter": 2, "batch_size": 3}),
    ],
    ids=str,
)
def test_a_good_output_is_read_and_the_default_is_png_as_base64(output, job):
    read = parse(job | {"output": output}).output
    assert read.model_dump(exclude_unset=True) == output
    default = {"format": "png", "delivery": "base64", "may_convert": False}
    assert (default | output).items() <= read.model_dump().items()


def test_capital_letters_and_the_suffix_jpg_are_understood_and_empty_values_are_not_given():
    read = parse({"output": {"format": ".JPG", "delivery": "S3", "quality": None, "urls": None}})
    assert read.output.model_dump(exclude_unset=True) == {"format": "jpeg", "delivery": "s3"}


def test_a_template_may_have_an_output():
    fox = {"name": "Fox", "checkpoint": "x", "defaults": {"output": {"format": "webp"}}}
    one = parse_templates(json.dumps({"templates": {"fox": fox}})).templates["fox"]
    assert one.request().output.format == "webp"
    assert one.job_input()["output"] == {"format": "webp"}
