"""Upscaling, PNG info and interrogation: the engine answers what a real A1111 answered."""

import base64
import io
import json

import pytest
import requests
from fakes.recorded_tasks import recorded_tasks
from PIL import Image

# {why the engine's answer is another: requests}
DIFFERENT = {
    "it fetches no pictures": [
        *("extra-single/image http url", "extra-single/image local url", "extra-batch/url"),
        *("png-info/http url", "interrogate/image url"),
    ],
    "A1111 downloads a model, or goes on without it": [
        *(f"extra-single/upscaler {name}" for name in ("R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B")),
        *(f"extra-single/upscaler {name}" for name in ("ESRGAN_4x", "DAT x2", "LDSR")),
        *("extra-single/upscaler ScuNET PSNR", "extra-single/gfpgan_visibility 1, upscaler None"),
        *(f"extra-single/{name}_visibility 0.5" for name in ("gfpgan", "codeformer")),
        *(f"extra-single/{name}_visibility 1" for name in ("gfpgan", "codeformer")),
        *("interrogate/clip", "interrogate/deepdanbooru", "interrogate/model missing"),
    ],
    "it refuses the size by name": ["extra-single/upscaling_resize 1000000000.0"],
    "A1111 does not look at it": [
        *("extra-single/upscaler_1 None, upscaler_2 unknown", "png-info/truncated.png"),
        "png-info/bomb_header.png",
    ],
    "A1111 fails on EXIF data that has no text": [
        *("extra-single/image bad exif", "png-info/info_bad_exif.jpg"),
        "png-info/info_byte_comment.jpg",
    ],
    "it does not read AVIF": ["extra-single/image avif", "png-info/info_unicode.avif"],
    "A1111 takes pictures with the same bytes for the same": [
        "extra-single/cache: flat 32x64 second"
    ],
    "it refuses other types before it begins": [
        *("extra-single/image number", "png-info/number", "extra-single/infinite"),
    ],
}
JSON = {"content-type": "application/json"}
TEXTS = ("html_info", "caption", "info", "items")
TASKS = [task for task in recorded_tasks() if task.path != "img2img"]


def size(image):
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    return [picture.mode, *picture.size]


def facts(answer):
    """What was recorded of an answer."""
    body = answer.json()
    images = body.get("images") or [body.get("image")]
    found = {"status": answer.status_code}
    if answer.ok:
        found |= {name: body[name] for name in TEXTS if name in body}
        found |= {"pictures": [size(image) for image in images]} if all(images) else {}
    return found


@pytest.mark.parametrize("path", sorted({task.path for task in TASKS}))
def test_answers_as_recorded(client, path):
    others = set()
    for task in TASKS:
        if task.path == path:
            # not `json=`: it refuses NaN and Infinity, which were sent, too
            body = json.dumps(task.sent_body())
            answer = requests.post(client.url + path, data=body, headers=JSON, timeout=60)
            found = facts(answer)
            wanted = {name: task.answer[name] for name in found if name in task.answer}
            others |= {task.name} if found != wanted else set()
    expected = {name for names in DIFFERENT.values() for name in names}
    assert others == {task.name for task in TASKS if task.path == path} & expected
