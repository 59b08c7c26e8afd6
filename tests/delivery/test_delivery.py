"""Which way pictures take, measured with pictures that no compression makes smaller."""

import base64
import io
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from fakes.a1111.picture import png
from fakes.a1111.process import free_port
from fakes.hosts.bucket import KEY_ID, NAME, SECRET, s3_server
from fakes.hosts.put_host import put_host
from PIL import Image, PngImagePlugin

from handler import build_delivery
from worker.config.settings import PROJECT, Settings
from worker.delivery import bucket, delivery, put_url
from worker.delivery.delivery import RESERVE, cleaned, json_size
from worker.errors import DeliveryFailed, InvalidInput, ResultTooLarge
from worker.job.output_fields import Output
from worker.webui.client import Txt2ImgAnswer
from worker.webui.picture import infotext

INFOTEXT = "a fox, caf\u00e9 \u72d0\nSteps: 5, Sampler: Euler a"
MB = 10**6


def noise(number, side=1024):
    image = Image.frombytes("RGB", (side, side), random.Random(number).randbytes(3 * side * side))
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", INFOTEXT)
    image.save(file, "PNG", pnginfo=chunks, compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def large():
    """Eight pictures of 1024x1024, some 4.2 MB each as base64: the largest that there can be."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(noise, range(8)))


@pytest.fixture(scope="module")
def small():
    return [noise(number, side=64) for number in range(3)]


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def host():
    with put_host() as running:
        yield running


def made(images, **facts):
    facts = {"width": 64, "height": 64, "steps": 5, "sampler_name": "Euler a", "seed": 1} | facts
    return Txt2ImgAnswer(images, {"prompt": "\u72d0"}, json.dumps(facts), {"prompt": "x"} | facts)


def answer_with(images):
    """What the handler has before the delivery."""
    return {
        "images": images,
        "parameters": {"prompt": "caf\u00e9 \u72d0 \U0001f98a"},
        "info": '{"prompt": "\\u72d0"}',
        "models": [{"name": "first"}],
        "timings": {"generate": 1.234, "total": 2.345},
        "warnings": ["from before"],
    }


def worker(**environ):
    return build_delivery(Settings.from_environ(environ))


def limit(number_of_bytes):
    return {"RESULT_LIMIT_MB": repr(number_of_bytes / MB)}


def delivered(images, output=None, job_id="job-1", facts=None, **environ):
    picture = made(images, **(facts or {}))
    output = Output.model_validate(output or {})
    return worker(**environ).deliver(picture, answer_with(images), output, job_id)


def as_the_sdk_sends(answer):
    """`_handle_result` of runpod/serverless/modules/rp_http.py; aiohttp sends text as UTF-8."""
    return json.dumps({"output": answer}, ensure_ascii=False).encode()


def said_too_large(raised, size):
    assert f"would have {size / MB:.2f} MB" in str(raised.value)
    for cure in ("fewer pictures", "output.format", "may_convert", "BUCKET_ENDPOINT_URL"):
        assert cure in str(raised.value)


# The payload table -------------------------------------------------------------------------------

COUNTS = [1, 4, 8]
AT_ITS_SIZE = {"below": 1, "at": 0, "over": -1}  # the limit's distance from the result's size


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("where", AT_ITS_SIZE)
def test_the_payload_table(large, server, tmp_path, count, where):
    """1, 4 and 8 pictures of 1024x1024 in results below, at and over the limit."""
    images = large[:count]
    within = delivered(images, RESULT_LIMIT_MB="0")
    size = len(as_the_sdk_sends(within)) + RESERVE
    assert 4.19 * MB * count < size < 4.24 * MB * count + 2000
    now = limit(size + AT_ITS_SIZE[where])
    if where != "over":
        assert delivered(images, **now) == within
        assert within["images"] == images
        assert within["delivery"]["method"] == "base64"
        return

    with pytest.raises(ResultTooLarge) as raised:
        delivered(images, **now)
    said_too_large(raised, size)
    assert raised.value.details["bytes"] == raised.value.details["limit_bytes"] + 1

    with pytest.raises(ResultTooLarge) as raised:
        delivered(images, OUTPUT_DIR=str(tmp_path), **now)
    kept = sorted(map(str, tmp_path.iterdir()))
    assert raised.value.details["files"] == kept
    assert [Path(file).read_bytes() for file in kept] == [base64.b64decode(i) for i in images]

    uploaded = delivered(images, **server.environ(), **now)
    assert uploaded["delivery"]["method"] == "s3"
    assert [requests.get(url, timeout=20).content for url in uploaded["images"]] == [
        base64.b64decode(image) for image in images
    ]

    converted = delivered(images, {"may_convert": True}, **now)
    assert converted["delivery"]["format"] == "webp"
    assert len(as_the_sdk_sends(converted)) + RESERVE < size


@pytest.mark.parametrize(("count", "fits"), [(1, True), (2, True), (3, False), (8, False)])
def test_the_default_limit_is_what_runpod_takes_from_both_routes(large, count, fits):
    images = large[:count]
    if fits:
        assert len(as_the_sdk_sends(delivered(images))) < 9 * MB
    else:
        with pytest.raises(ResultTooLarge, match="RESULT_LIMIT_MB is 9"):
            delivered(images)


def test_the_size_is_that_of_what_the_sdk_posts(small):
    answer = answer_with([*small, "https://x.example/a?b=\u72d0"])

    assert json_size(answer) == len(as_the_sdk_sends(answer))


def test_the_reserve_is_enough_for_what_comes_after_the_measurement():
    timings = dict.fromkeys(("validate", "prepare", "generate", "deliver", "total"), 86399.999)
    longest = "not saved to OUTPUT_DIR: " + "x" * 255

    assert len(json.dumps({"timings": timings, "warnings": [longest]})) < RESERVE


# base64 and the forms ----------------------------------------------------------------------------


def test_base64_png_is_what_the_engine_made(small):
    answer = delivered(small)

    assert answer == answer_with(small) | {
        "delivery": {
            "method": "base64",
            "format": "png",
            "bytes": [len(base64.b64decode(image)) for image in small],
        }
    }


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_forms_have_a_quality_and_the_infotext(small, form):
    answer = delivered(small, {"format": form, "quality": 70})

    assert (answer["delivery"]["format"], answer["delivery"]["quality"]) == (form, 70)
    for image, size in zip(answer["images"], answer["delivery"]["bytes"], strict=True):
        data = base64.b64decode(image)
        assert len(data) == size
        picture = Image.open(io.BytesIO(data))
        assert picture.format == form.upper()
        assert infotext(picture) == INFOTEXT


def test_an_infotext_that_no_jpeg_holds_is_a_warning():
    image = base64.b64encode(png(8, 8, b"\x01\x02\x03", "x" * 40_000)).decode()

    assert "too long for a JPEG" in delivered([image], {"format": "jpeg"})["warnings"][-1]
    assert delivered([image], {"format": "webp"})["warnings"] == ["from before"]


def test_pictures_stay_in_order(small):
    answer = delivered(small * 5, {"format": "jpeg"})
    alone = [delivered([image], {"format": "jpeg"})["images"][0] for image in small]

    assert answer["images"] == alone * 5


# Smaller pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "form", "qualities"),
    [
        ({}, "webp", delivery.QUALITIES),
        ({"format": "webp"}, "webp", delivery.QUALITIES[1:]),
        ({"format": "jpeg", "quality": 60}, "jpeg", delivery.QUALITIES[4:]),
    ],
    ids=str,
)
def test_the_best_quality_that_fits_is_taken(small, output, form, qualities):
    sizes = {
        quality: json_size(delivered(small, {"format": form, "quality": quality}))
        for quality in delivery.QUALITIES
    }
    for quality in qualities[:3]:
        room = sizes[quality] + RESERVE + 400  # for the warning
        answer = delivered(small, output | {"may_convert": True}, **limit(room))
        assert answer["delivery"]["quality"] == quality
        assert answer["delivery"]["format"] == form
        warning = answer["warnings"][-1]
        assert warning.startswith("The result would have ")
        assert warning.endswith(f"Delivered by base64, as {form} of quality {quality}.")
        data = base64.b64decode(answer["images"][0])
        assert infotext(Image.open(io.BytesIO(data))) == INFOTEXT


def test_what_cannot_be_made_small_enough_is_an_error_with_all_sizes(small):
    with pytest.raises(ResultTooLarge) as raised:
        delivered(small, {"may_convert": True}, **limit(3000))

    assert "3 png pictures" in str(raised.value)
    assert "3 webp pictures" in str(raised.value)


def test_nothing_is_converted_without_permission(small):
    with pytest.raises(ResultTooLarge):
        delivered(small, {"format": "jpeg"}, **limit(3000))


# The bucket --------------------------------------------------------------------------------------


def test_the_bucket_gets_files_by_the_jobs_id(small, server):
    answer = delivered(small, {"delivery": "s3", "format": "jpeg"}, "a/b: c", **server.environ())

    keys = [f"a_b_c/{number}.jpg" for number in range(3)]
    assert answer["delivery"]["keys"] == keys
    assert answer["delivery"]["expires_in"] == 604_800
    files = server.files()
    assert [files[key][0] for key in keys] == ["image/jpeg"] * 3
    assert [len(files[key][1]) for key in keys] == answer["delivery"]["bytes"]
    for url, key in zip(answer["images"], keys, strict=True):
        assert requests.get(url, timeout=10).content == files[key][1]
    assert answer["warnings"] == ["from before"]
    assert SECRET not in json.dumps(answer)


def test_a_public_bucket_has_plain_urls(small, server):
    public = {"BUCKET_PUBLIC_URL": "https://cdn.example"}
    answer = delivered(small[:1], {"delivery": "s3"}, **server.environ(), **public)

    assert answer["images"] == ["https://cdn.example/job-1/0.png"]
    assert "expires_in" not in answer["delivery"]


def test_a_full_result_goes_to_the_bucket_and_says_so(small, server):
    answer = delivered(small, **server.environ(), **limit(5000))

    assert answer["delivery"]["method"] == "s3"
    assert answer["warnings"][-1].endswith("Delivered by s3, as png.")
    assert "RESULT_LIMIT_MB" in answer["warnings"][-1]


def test_a_bucket_goes_before_smaller_pictures(small, server):
    answer = delivered(small, {"may_convert": True}, **server.environ(), **limit(5000))

    assert (answer["delivery"]["method"], answer["delivery"]["format"]) == ("s3", "png")


BROKEN = {"BUCKET_NAME": "nowhere"}


def test_a_bucket_that_fails_gives_way_to_base64(small, server):
    answer = delivered(small, {"delivery": "s3"}, **server.environ() | BROKEN)

    assert answer["images"] == small
    assert answer["delivery"]["method"] == "base64"
    assert "404 (NoSuchBucket). Delivered by base64" in answer["warnings"][-1]


def test_a_bucket_that_cannot_be_reached_gives_way_too(small, server, monkeypatch):
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    gone = {"BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    answer = delivered(small, {"delivery": "s3"}, **server.environ() | gone)

    assert answer["delivery"]["method"] == "base64"


def test_a_bucket_that_fails_gives_way_to_smaller_pictures(small, server):
    output = {"delivery": "s3", "may_convert": True}
    answer = delivered(small, output, **server.environ() | BROKEN | limit(20_000))

    assert (answer["delivery"]["method"], answer["delivery"]["format"]) == ("base64", "webp")
    assert "NoSuchBucket" in answer["warnings"][-1]
    assert "RESULT_LIMIT_MB" in answer["warnings"][-1]


@pytest.mark.parametrize(
    ("way", "kind"), [("s3", DeliveryFailed), ("base64", ResultTooLarge)], ids=["s3", "base64"]
)
def test_when_no_way_is_left_the_error_is_that_of_the_first_and_names_all(
    small, server, tmp_path, way, kind
):
    environ = server.environ() | BROKEN | limit(5000) | {"OUTPUT_DIR": str(tmp_path)}
    with pytest.raises(kind) as raised:
        delivered(small, {"delivery": way}, **environ)

    assert "NoSuchBucket" in str(raised.value)
    assert "RESULT_LIMIT_MB" in str(raised.value)
    assert len(raised.value.details["files"]) == len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        assert str(file) in str(raised.value)
    for secret in (SECRET, KEY_ID):
        assert secret not in f"{raised.value}{raised.value.details}"


def test_without_a_bucket_s3_is_refused_before_anything_costs(server):
    with pytest.raises(InvalidInput, match=r"has no bucket.*BUCKET_ENDPOINT_URL"):
        worker().check(Output(delivery="s3"))

    worker(**server.environ()).check(Output(delivery="s3"))
    worker().check(Output())


def test_without_a_bucket_boto3_is_not_imported():
    """It takes a third of a second."""
    code = (
        "import sys; from handler import build_delivery;"
        " from worker.config.settings import Settings;"
        " build_delivery(Settings.from_environ({}));"
        " assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_a_result_too_large_without_its_pictures_still_tells_where_they_are(small, server):
    answer = answer_with(small) | {"parameters": {"alwayson_scripts": "x" * 50_000}}
    picture, output = made(small), Output(delivery="s3")
    with pytest.raises(ResultTooLarge) as raised:
        worker(**server.environ(), **limit(20_000)).deliver(picture, answer, output, "job-9")

    assert len(raised.value.details["uploaded"]) == 3
    assert requests.get(raised.value.details["uploaded"][0], timeout=10).ok


# The job's own URLs ------------------------------------------------------------------------------


def to(host, count, **output):
    urls = [host.url(f"{number}.png") for number in range(count)]
    return {"delivery": "put", "urls": urls} | output


def test_each_url_gets_its_picture(small, host):
    answer = delivered(small, to(host, 3), TRUSTED_HOSTS=host.address)

    paths = [f"/{number}.png" for number in range(3)]
    assert [host.files()[path] for path in paths] == [base64.b64decode(i) for i in small]
    assert answer["images"] == [f"http://{host.address}{path}" for path in paths]
    assert answer["delivery"]["method"] == "put"
    assert answer["warnings"] == ["from before"]
    assert "5ecret" not in json.dumps(answer)


def test_urls_that_s3_signed_work(small, server):
    """The signature holds the content type; the server gets nothing but what it was told."""
    keys = [f"signed/{number}.webp" for number in range(3)]
    what = [{"Bucket": NAME, "Key": key, "ContentType": "image/webp"} for key in keys]
    urls = [server.client.generate_presigned_url("put_object", one) for one in what]
    output = {"format": "webp", "delivery": "put", "urls": urls}
    answer = delivered(small, output, TRUSTED_HOSTS=server.endpoint.removeprefix("http://"))

    files = server.files()
    assert [files[key][0] for key in keys] == ["image/webp"] * 3
    assert [len(files[key][1]) for key in keys] == answer["delivery"]["bytes"]


def test_a_grid_in_front_takes_no_url(small, host):
    facts = {"index_of_first_image": 1}
    answer = delivered(small, to(host, 2), facts=facts, TRUSTED_HOSTS=host.address)

    assert host.files() == {
        f"/{n}.png": base64.b64decode(image) for n, image in enumerate(small[1:])
    }
    assert len(answer["images"]) == len(answer["delivery"]["bytes"]) == 2
    assert "the grid was left out" in answer["warnings"][-1]


def test_a_refused_url_gives_way_to_base64(small, host):
    host.answers = [(403, {}, b"<Code>AccessDenied</Code>")] * 3
    answer = delivered(small, to(host, 3), TRUSTED_HOSTS=host.address)

    assert answer["images"] == small
    assert answer["delivery"]["method"] == "base64"
    assert "answered 403 (AccessDenied). Delivered by base64" in answer["warnings"][-1]


def test_a_refused_url_and_a_full_result_give_way_to_the_bucket(small, host, server):
    host.answers = [(403, {}, b"")] * 3
    environ = server.environ() | limit(5000) | {"TRUSTED_HOSTS": host.address}
    answer = delivered(small, to(host, 3), "job-put", **environ)

    assert answer["delivery"]["keys"] == [f"job-put/{number}.png" for number in range(3)]


def test_a_private_address_gets_nothing(small, host, monkeypatch):
    monkeypatch.setattr(put_url, "LONGEST_WAIT", 0.0)
    urls = [f"https://{host.address}/{number}" for number in range(3)]
    answer = delivered(small, {"delivery": "put", "urls": urls})

    assert answer["delivery"]["method"] == "base64"
    assert "no public address" in answer["warnings"][-1]
    assert host.received == []


def test_a_url_that_is_not_https_is_refused_before_anything_costs(host):
    output = Output.model_validate(to(host, 1))
    with pytest.raises(InvalidInput, match=r"output\.urls\.0: .* is not an https URL") as raised:
        worker().check(output)

    assert "5ecret" not in str(raised.value)
    worker(TRUSTED_HOSTS=host.address).check(output)


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "suffix"),
    [({}, ".png"), ({"format": "jpeg"}, ".jpg"), ({"format": "webp", "quality": 5}, ".webp")],
    ids=str,
)
def test_output_dir_has_the_files_as_they_were_delivered(small, tmp_path, caplog, output, suffix):
    caplog.set_level("INFO")
    answer = delivered(small, output, "../../etc/x", OUTPUT_DIR=str(tmp_path / "new"))

    files = sorted((tmp_path / "new").iterdir())
    assert [base64.b64encode(file.read_bytes()).decode() for file in files] == answer["images"]
    assert {file.suffix for file in files} == {suffix}
    assert all("_etc_x" in file.name for file in files)
    assert str(files[0]) in caplog.text


def test_output_dir_has_the_smaller_files(small, tmp_path):
    environ = limit(20_000) | {"OUTPUT_DIR": str(tmp_path)}
    answer = delivered(small, {"may_convert": True}, **environ)

    files = sorted(tmp_path.iterdir())
    assert [base64.b64encode(file.read_bytes()).decode() for file in files] == answer["images"]


def test_an_output_dir_that_cannot_be_written_is_a_warning_or_said_in_the_error(small, tmp_path):
    (tmp_path / "file").write_text("no folder")
    environ = {"OUTPUT_DIR": str(tmp_path / "file")}

    assert delivered(small, **environ)["warnings"][-1] == "not saved to OUTPUT_DIR: File exists"
    with pytest.raises(ResultTooLarge, match="could not be kept in OUTPUT_DIR: File exists"):
        delivered(small, **environ, **limit(2000))


def test_an_error_names_a_few_files_and_its_details_all(small, tmp_path):
    with pytest.raises(ResultTooLarge, match=r"-3\.png and 2 more\.") as raised:
        delivered(small * 2, OUTPUT_DIR=str(tmp_path), **limit(2000))

    assert len(raised.value.details["files"]) == 6


def test_a_picture_that_cannot_be_converted_is_kept_as_it_is(tmp_path):
    wide = base64.b64encode(png(16_400, 8, b"\x01\x02\x03", INFOTEXT)).decode()
    with pytest.raises(DeliveryFailed, match="16383 pixels"):
        delivered([wide], {"format": "webp"}, OUTPUT_DIR=str(tmp_path))

    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == base64.b64decode(wide)


@pytest.mark.parametrize(
    ("job_id", "name"),
    [
        ("0f3e-e1", "0f3e-e1"),
        ("../../etc", "_etc"),
        ("a b/c?d#e", "a_b_c_d_e"),
        ("\u72d0", "_"),
        ("", "job"),
        ("x" * 500, "x" * 128),
    ],
)
def test_a_jobs_id_is_no_path(job_id, name):
    assert cleaned(job_id) == name


def test_many_jobs_at_once_do_not_mix(small, server):
    shared = worker(**server.environ())

    def run(number):
        image = small[number % 3]
        output = Output(delivery="s3" if number % 2 else "base64")
        answer = shared.deliver(made([image]), answer_with([image]), output, f"many-{number}")
        return answer["images"][0], number

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run, range(18)))
    files = server.files()
    for url_or_image, number in results:
        expected = small[number % 3]
        if number % 2:
            assert f"/{NAME}/many-{number}/0.png" in url_or_image
            assert files[f"many-{number}/0.png"][1] == base64.b64decode(expected)
        else:
            assert url_or_image == expected
