import asyncio
import base64

import pytest
from fakes.a1111.picture import png
from fakes.stub_engine import StubEngine, handler_with

from worker.errors import ConnectionLost, EngineFault

IMAGE = base64.b64encode(png(8, 8, b"\x01\x02\x03", "")).decode()
OFFLINE = EngineFault("interrogate: the engine answered 500: IndexError list index out of range.")


class DescribingEngine(StubEngine):
    """An engine that answers this, or raises it."""

    answer = None

    async def call(self, call, _stopwatch):
        assert call.body["image"] == IMAGE
        if isinstance(self.answer, Exception):
            raise self.answer
        return call.read(self.answer)


@pytest.mark.parametrize(
    ("fields", "answer", "found"),
    [
        ({}, {"caption": " a fox, by someone "}, "a fox, by someone"),
        ({}, {"caption": "<error>"}, "ENGINE_MODEL_MISSING: .* 'clip'. It needs BLIP and CLIP"),
        ({}, {"caption": "a fox<error>"}, "ENGINE_MODEL_MISSING"),
        ({}, {"caption": ""}, "ENGINE_MODEL_MISSING"),
        ({"model": "deepdanbooru"}, OFFLINE, "ENGINE_MODEL_MISSING: .*IndexError.*DeepDanbooru"),
        ({}, ConnectionLost("no answer."), "ENGINE_CONNECTION_LOST"),
        ({"model": "blip"}, {}, "INVALID_INPUT: model = 'blip': .*'clip' or 'deepdanbooru'"),
        ({"image": "https://"}, {}, "INVALID_INPUT: image = 'https://"),
        ({"images": [IMAGE]}, {}, "INVALID_INPUT: images is not a known field .*`image`"),
    ],
)
def test_a_caption_or_the_reason_why_there_is_none(tmp_path, catalog, fields, answer, found):
    import re

    engine = DescribingEngine(catalog, tmp_path)
    engine.answer = answer
    job = {"task": "interrogate", "image": IMAGE} | fields
    result = asyncio.run(handler_with(engine, tmp_path)({"id": "a", "input": job}))
    assert re.match(found, result.get("error", result.get("caption"))), result
