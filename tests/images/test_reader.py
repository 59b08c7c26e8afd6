"""The pictures of a job, from the text in its fields to what the engine gets."""

import base64
import sys
import threading

import pytest
from fakes.hosts.fixtures import client_for
from images.samples import file_of, picture, png_header, text_of, tiff_bomb

from worker.config.settings import PROJECT
from worker.errors import FetchStopped, ImageUrlRefused, InvalidInput
from worker.http.client import SafeHttpClient
from worker.images.base64_text import decoded
from worker.images.limits import ImageLimits
from worker.images.reader import ImageReader

FILE = file_of()
NEVER = threading.Event()


def read(images, stop=NEVER, http=None, **limits):
    reader = ImageReader(http or SafeHttpClient(), ImageLimits(**limits))
    return reader.read_all(images, stop)


def refused(images, **limits):
    with pytest.raises(InvalidInput) as error:
        read(images, **limits)
    return error.value


TEXT = text_of(file_of(picture("RGB", (90, 80)), format_="JPEG"))
FORMS = {
    "base64": TEXT,
    "line breaks": "\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
    "a space between all characters": " ".join(TEXT),
    "no padding": TEXT.rstrip("="),
    "for URLs": TEXT.replace("+", "-").replace("/", "_"),
    "data URI": f"data:image/jpeg;base64,{TEXT}",
    "data URI with a parameter": f"DATA:image/jpeg;charset=utf-8;base64,{TEXT}",
    "data URI of another type": f"data:image/png;base64,{TEXT}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_base64_is_the_same_picture(form):
    assert decoded(FORMS[form]) == base64.b64decode(TEXT)


def test_pictures_come_in_the_order_of_the_fields_and_as_a1111_takes_them(hosts):
    url = hosts.add_web("/a.png", FILE)
    fields = {"mask": TEXT, "init_images.0": url, "init_images.1": FORMS["data URI"]}
    images = read(fields, http=client_for(hosts))
    assert list(images) == list(fields)
    assert images["init_images.0"].data == FILE
    assert images["mask"].base64() == images["init_images.1"].base64() == TEXT
    assert (images["mask"].width, images["mask"].height) == (90, 80)
    assert read({}) == {}


PROBLEMS = {
    "A": "mask: the base64 is incomplete",
    "iVBORw0KGgo=*": "mask: the text is not base64",
    "é": "mask: the text is not base64",
    "data:image/png;base64,": "mask: the base64 is empty",
    text_of(b"hello"): "mask: it is not a picture",
    text_of(FILE[:60]): "mask: the picture is damaged",
    text_of(png_header(9000, 2)): "mask: the picture has 9000 x 2 pixels",
}


@pytest.mark.parametrize(("text", "message"), PROBLEMS.items(), ids=PROBLEMS.values())
def test_an_error_names_the_field_and_what_to_do(text, message):
    error = refused({"init_images.0": TEXT, "mask": text})
    assert error.message.startswith(message)
    assert "Send" in error.hint or "smaller" in error.hint


SIZE = len(base64.b64decode(TEXT))
BOUNDS = [
    ({"count": 1}, "the job has 2 pictures; at most 1 are accepted"),
    ({"file_bytes": SIZE - 1}, "a: the picture's file has 0.0 MB or more"),
    ({"total_bytes": 2 * SIZE - 1}, "b: with this one, the pictures of the job have more"),
    ({"side": 89}, "a: the picture has 90 x 80 pixels; at most 89 x 89"),
    ({"total_pixels": 2 * 90 * 80 - 1}, "b: with this one, the pictures of the job have more"),
]


@pytest.mark.parametrize(("limits", "message"), BOUNDS)
def test_each_bound_holds_to_the_byte(limits, message):
    job = {"a": TEXT, "b": TEXT}
    assert refused(job, **limits).message.startswith(message)
    ((name, most),) = limits.items()
    assert len(read(job, **{name: most + 1})) == 2


def test_a_url_is_checked_only_after_the_cheap_fields(hosts):
    with pytest.raises(InvalidInput, match="b: the text is not base64"):
        read({"a": hosts.add_web("/a.png", FILE), "b": "**"}, http=client_for(hosts))
    assert hosts.requests == []
    with pytest.raises(ImageUrlRefused, match=r"a: 'http://example\.com/x' is not an https URL"):
        read({"a": "http://example.com/x"})


# The process that decodes -----------------------------------------------------------------------


def test_a_bomb_costs_the_process_that_decodes_and_not_this_one():
    """Pillow reads each entry of a TIFF anew: 4 MB of base64 would become 3.6 GB."""
    data = tiff_bomb(1200, 3_000_000)
    error = refused({"a": TEXT, "b": text_of(data)}, decode_memory=512 << 20)
    assert error.message.startswith("b: ")
    assert "memory" in error.message


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ends_by", ["time", "stop"])
def test_a_process_that_hangs_is_killed(monkeypatch, ends_by):
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr("worker.images.sandbox._COMMAND", hangs)
    stop = threading.Event()
    if ends_by == "stop":
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(FetchStopped, match="stopped while its pictures were read"):
            read({"a": TEXT}, stop)
    else:
        with pytest.raises(InvalidInput, match=r"a: .* too much memory or time"):
            read({"a": TEXT}, decode_seconds=0.2)


def test_the_process_gets_no_secret(monkeypatch):
    """Code that a picture could run there finds nothing in its environment."""
    import subprocess

    from worker.images import sandbox

    monkeypatch.setenv("HF_TOKEN", "planted")
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **named):
            started.append(named["env"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr(sandbox.subprocess, "Popen", Recorded)
    assert read({"a": TEXT})
    (environ,) = started
    assert environ.keys() <= {"MALLOC_ARENA_MAX", *sandbox._KEPT}
    assert "planted" not in str(environ)


def test_many_jobs_read_at_the_same_time():
    reader, found = ImageReader(SafeHttpClient()), []

    def job(size):
        text = text_of(file_of(picture("RGB", (size, 1))))
        found.append((size, reader.read_all({"a": text}, NEVER)["a"].width))

    threads = [threading.Thread(target=job, args=[size]) for size in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(size, size) for size in range(1, 5)]
    assert not any(one.name.startswith("decode") for one in threading.enumerate())


def test_the_page_about_pictures_names_the_limits():
    page, limits = (PROJECT / "docs/input-images.md").read_text(), ImageLimits()
    for row in (
        f"| {limits.file_bytes >> 20} MiB |",
        f"| {limits.side} pixels |",
        f"| {limits.count} pictures, {limits.total_bytes >> 20} MiB, ",
        f" {limits.total_pixels / 1e6:.0f} million pixels |",
        f"| {limits.fetch_seconds:.0f} seconds, and never",
        f"| {limits.decode_seconds:.0f} seconds, {limits.decode_memory >> 30} GiB |",
        f"| {limits.text_bytes >> 20} MiB and 64 names;",
    ):
        assert row in page


def test_the_limit_of_all_pictures_holds_for_the_inputs_of_a_batch_together():
    size = len(base64.b64decode(TEXT))
    alone = ImageReader(SafeHttpClient(), ImageLimits(total_bytes=2 * size))
    batch = alone.shared()
    for reader, count in ((alone, 5), (batch, 2)):
        for _ in range(count):
            assert reader.read_all({"mask": TEXT}, NEVER)
    with pytest.raises(InvalidInput, match="with this input, the pictures that the job brings"):
        batch.read_all({"mask": TEXT}, NEVER)
