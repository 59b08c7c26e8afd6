"""docs/save.py: from an answer to files."""

import base64
import json
from pathlib import Path

import pytest

from docs.save import save

PNG, JPEG, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"


def answer(*pictures):
    return {"output": {"images": [base64.b64encode(data).decode() for data in pictures]}}


def test_each_picture_becomes_a_file_of_its_kind_and_none_is_replaced(tmp_path, capsys):
    name = str(tmp_path / "fox")
    assert save(answer(PNG, JPEG, WEBP), name) == 0
    files = [f"{name}-0.png", f"{name}-1.jpeg", f"{name}-2.webp"]
    assert capsys.readouterr().out.splitlines() == files
    assert [Path(file).read_bytes() for file in files] == [PNG, JPEG, WEBP]
    assert save(answer(b"\x89PNG another"), name) == 1
    assert "fox-0.png is not written: File exists" in capsys.readouterr().err
    assert (tmp_path / "fox-0.png").read_bytes() == PNG


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"status": "FAILED", "error": "NO_CHECKPOINT: no."}, "no picture: NO_CHECKPOINT: no."),
        ({"status": "IN_QUEUE"}, "no picture: the job is IN_QUEUE"),
        ({"output": {"percent": 5}, "status": "IN_PROGRESS"}, "the job is IN_PROGRESS"),
    ],
    ids=json.dumps,
)
def test_without_a_picture_it_says_why(given, reason, capsys):
    assert save(given, "fox") == 1
    assert reason in capsys.readouterr().err


def test_a_picture_in_a_bucket_is_shown_by_its_url(capsys):
    assert save({"output": {"images": ["https://bucket.example/1.png"]}}, "fox") == 0
    assert capsys.readouterr().out == "https://bucket.example/1.png\n"
