"""JSON with long texts in it is read and written as by Python's `json`, without scanning them."""

import json
import random

import pytest

from worker.errors import DeliveryFailed
from worker.generation.picture import from_engine
from worker.large_json import LONG, document_of, parse

LONG_TEXT = "iVBORw0KGgo" * (LONG // 10)
VALUES = [
    {"images": [LONG_TEXT, LONG_TEXT + "="], "info": '{"prompt": "a \\"fox\\""}'},
    {"image": LONG_TEXT, "html_info": ""},
    {LONG_TEXT: LONG_TEXT, LONG_TEXT + "2": [LONG_TEXT]},
    {LONG_TEXT: [1, None, 2.5, True, "caf\u00e9 \u72d0"]},
    {"parameters": {"alwayson_scripts": {"x": {"args": [{"image": LONG_TEXT}]}}}},
    {"data": f"data:image/png;base64,{LONG_TEXT}"},
    [LONG_TEXT + '"' + LONG_TEXT, LONG_TEXT + "\\", "\n" + LONG_TEXT, "\u72d0" + LONG_TEXT],
    [list(range(LONG)), LONG_TEXT],
    LONG_TEXT,
    {},
]


def written(value, **how):
    return json.dumps(value, **how).encode()


def whole(document):
    return b"".join(document.parts(1000))


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_a_document_is_read_and_written_as_json_does_it(value, how):
    document = document_of(value)

    assert parse(written(value, **how)) == value
    assert whole(document) == written(value, ensure_ascii=False)
    assert document.size == len(whole(document))


def test_long_texts_are_read_wherever_they_are():
    chance = random.Random(1)
    for _ in range(200):
        lengths = [chance.choice([0, 5, LONG // 3, LONG - 1, LONG, 2 * LONG]) for _ in range(8)]
        texts = [chance.choice("aB+/9") * length for length in lengths]
        assert parse(written(texts)) == texts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_another_encoding_is_read(encoding):
    assert parse(json.dumps(VALUES[0]).encode(encoding)) == VALUES[0]


def test_the_bytes_of_half_a_surrogate_pair_are_read_as_json_reads_them():
    document = json.dumps([LONG_TEXT + "\ud800"], ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    assert parse(document) == json.loads(document)


@pytest.mark.parametrize(
    "broken",
    [
        b'{"images": ["' + LONG_TEXT.encode(),
        b'["a"' + LONG_TEXT.encode() + b'"b"]',
        b'["' + LONG_TEXT.encode() + b'\xff"]',
        b'["' + LONG_TEXT.encode() + b'",]',
        b"[" * 100_000,
        b'["' + LONG_TEXT.encode() + b'",' + b"[" * 100_000,
        b"",
    ],
    ids=range(7),
)
def test_what_is_not_json_is_refused(broken):
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        parse(broken)


@pytest.mark.parametrize("control", ["\n", "\t", "\0", "\x1f"])
def test_a_control_character_in_a_long_text_is_refused_by_the_reader_of_pictures(control):
    written = f'{{"images": ["{LONG_TEXT}{control}{LONG_TEXT}"]}}'.encode()
    for image in parse(written)["images"]:
        with pytest.raises(DeliveryFailed, match="not base64"):
            from_engine(image)

    info = f'{{"info": "{{\\"seed\\": 1}}{control}{" " * LONG}"}}'.encode()
    with pytest.raises(ValueError, match="control character"):
        parse(info)


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": b"bytes"}, [LONG_TEXT, {1, 2}]])
def test_a_value_that_is_not_json_is_not_written(value):
    with pytest.raises((TypeError, ValueError)):
        document_of(value)


def test_a_long_text_of_plain_characters_is_not_copied_into_the_document():
    images = [LONG_TEXT, LONG_TEXT + "\u00e9", LONG_TEXT + "\n"]

    pieces = document_of({"images": images}).pieces

    assert [piece for piece in pieces if piece is images[0]] == images[:1]
    assert len(pieces) == 3
