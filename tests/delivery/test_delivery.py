"""Which method delivers a job's pictures, and what the answer or the error reports."""

import base64
import io
import json
import random
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from fakes.a1111.picture import png
from fakes.a1111.process import free_port
from fakes.hosts.bucket import KEY_ID, NAME, SECRET, volume_server
from PIL import Image, PngImagePlugin

from handler import build_delivery
from worker.config.settings import PROJECT, Settings
from worker.delivery.delivery import QUALITIES, RESERVE, json_size
from worker.delivery.limits import UploadLimits
from worker.delivery.output_dir import cleaned
from worker.delivery.s3_config import FIELDS, read
from worker.errors import DeliveryFailed, InvalidInput, ResultTooLarge
from worker.generation.picture_answer import PictureAnswer
from worker.images.metadata import infotext_of
from worker.job.output_fields import Output
from worker.stopwatch import NOT_PHASES

INFOTEXT = "a fox, caf\u00e9 \u72d0\nSteps: 5, Sampler: Euler a"
MB = 10**6
LIMITS = UploadLimits(attempts=1)


def noise(number, side=64):
    """A picture that no compression makes smaller: 16 kB as base64."""
    image = Image.frombytes("RGB", (side, side), random.Random(number).randbytes(3 * side * side))
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", INFOTEXT)
    image.save(file, "PNG", pnginfo=chunks, compress_level=1)
    return encoded(file.getvalue())


def encoded(data):
    return base64.b64encode(data).decode()


def decoded(images):
    return [base64.b64decode(image) for image in images]


PICTURES = [noise(number) for number in range(3)]
# The largest that there can be: 1024x1024 of noise.
LARGE = noise(1, 1024)


def made(images, **facts):
    facts = {"width": 64, "height": 64, "steps": 5, "sampler_name": "Euler a", "seed": 1} | facts
    return PictureAnswer(images, {"prompt": "\u72d0"}, json.dumps(facts), {"prompt": "x"} | facts)


def answer_with(images):
    """The handler's answer before the delivery."""
    parameters = {"prompt": "caf\u00e9 \u72d0 \U0001f98a"}
    facts = {"models": [{"name": "first"}], "timings": {"generate": 1.234, "total": 2.345}}
    answer = {"images": images, "parameters": parameters, "info": '{"prompt": "\\u72d0"}'}
    return answer | facts | {"warnings": ["from before"]}


def worker(**environ):
    return build_delivery(Settings.from_environ(environ), LIMITS)


def limit(number_of_bytes):
    return {"RESULT_LIMIT_MB": repr(number_of_bytes / MB)}


def delivered(images=PICTURES, output=None, job_id="job-1", facts=None, **environ):
    picture = made(images, **(facts or {}))
    output = Output.model_validate(output or {})
    return worker(**environ).deliver(picture, answer_with(images), output, job_id)


def how(answer):
    return answer["delivery"]["method"], answer["delivery"]["format"]


# The limit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_result_below_at_and_over_the_limit(tmp_path, count):
    images = PICTURES[:count]
    whole = delivered(images, RESULT_LIMIT_MB="0")
    # `_handle_result` of runpod/serverless/modules/rp_http.py; aiohttp sends text as UTF-8.
    posted = len(json.dumps({"output": whole}, ensure_ascii=False).encode())
    size = posted + RESERVE
    assert json_size(whole) == posted
    assert delivered(images, **limit(size + 1)) == delivered(images, **limit(size)) == whole

    with pytest.raises(ResultTooLarge, match=f"would have {size / MB:.2f} MB") as raised:
        delivered(images, OUTPUT_DIR=str(tmp_path), **limit(size - 1))
    for cure in ("fewer pictures", "output.format", "may_convert", "BUCKET_ENDPOINT_URL"):
        assert cure in str(raised.value)
    kept = sorted(map(str, tmp_path.iterdir()))
    facts = {"bytes": size, "limit_bytes": size - 1, "files": kept}
    assert facts.items() <= raised.value.details.items()
    assert [Path(file).read_bytes() for file in kept] == decoded(images)


def test_the_default_limit_is_below_that_of_both_routes_of_runpod():
    assert json_size(delivered([LARGE] * 2)) < 9 * MB
    with pytest.raises(ResultTooLarge, match="RESULT_LIMIT_MB is 9"):
        delivered([LARGE] * 3)


def test_the_reserve_is_enough_for_what_is_added_after_the_measurement():
    names = ("validate", "prepare", "images", "queue", "generate", "deliver", *NOT_PHASES)
    timings = dict.fromkeys(names, 86399.9999999)
    longest = "not saved to OUTPUT_DIR: " + "x" * 255
    assert len(json.dumps({"timings": timings, "warnings": [longest]})) < RESERVE


def test_a_result_that_is_too_large_without_its_pictures_names_the_uploaded_files(server):
    answer = answer_with(PICTURES) | {"parameters": {"alwayson_scripts": "x" * 50_000}}
    delivery, output = worker(**server.environ(), **limit(20_000)), Output(delivery="s3")
    with pytest.raises(ResultTooLarge) as raised:
        delivery.deliver(made(PICTURES), answer, output, "job-9")
    assert len(raised.value.details["uploaded"]) == 3
    assert requests.get(raised.value.details["uploaded"][0], timeout=30).ok


# base64 and the formats ---------------------------------------------------------------------------


def test_base64_png_is_what_the_engine_made():
    sizes = list(map(len, decoded(PICTURES)))
    assert delivered() == answer_with(PICTURES) | {
        "delivery": {"method": "base64", "format": "png", "bytes": sizes}
    }


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_formats_have_a_quality_and_the_infotext_in_the_same_order(form):
    output = {"format": form, "quality": 70}
    answer = delivered(PICTURES * 3, output)
    assert (how(answer), answer["delivery"]["quality"]) == (("base64", form), 70)
    assert answer["images"] == delivered(output=output)["images"] * 3
    (data, *_) = decoded(answer["images"])
    assert len(data) == answer["delivery"]["bytes"][0]
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, infotext_of(picture)) == (form.upper(), INFOTEXT)
    long = encoded(png(8, 8, b"\x01\x02\x03", "x" * 40_000))
    warning = delivered([long], {"format": form})["warnings"][-1]
    assert ("too long for a JPEG" in warning) is (form == "jpeg")


@pytest.mark.parametrize(
    ("output", "form", "qualities"),
    [
        ({}, "webp", QUALITIES[:2]),
        ({"format": "webp"}, "webp", QUALITIES[1:3]),
        ({"format": "jpeg", "quality": 60}, "jpeg", QUALITIES[4:6]),
    ],
    ids=str,
)
def test_a_smaller_picture_has_the_best_quality_that_fits(output, form, qualities):
    for quality in qualities:
        alone = json_size(delivered(output={"format": form, "quality": quality}))
        room = limit(alone + RESERVE + 400)  # for the warning
        answer = delivered(output=output | {"may_convert": True}, **room)
        assert (how(answer), answer["delivery"]["quality"]) == (("base64", form), quality)
        warning = answer["warnings"][-1]
        assert warning.startswith("The result would have ")
        assert warning.endswith(f"Delivered by base64, as {form} of quality {quality}.")
        assert infotext_of(Image.open(io.BytesIO(decoded(answer["images"])[0]))) == INFOTEXT


def test_pictures_are_converted_only_with_permission_and_an_error_has_all_sizes():
    with pytest.raises(ResultTooLarge):
        delivered(output={"format": "jpeg"}, **limit(3000))
    with pytest.raises(ResultTooLarge, match=r"(?s)3 png pictures.*3 webp pict") as raised:
        delivered(output={"may_convert": True}, **limit(3000))
    assert raised.value.details["picture_bytes"] == list(map(len, decoded(PICTURES)))  # the first


# The bucket ---------------------------------------------------------------------------------------


def test_the_bucket_gets_files_by_the_jobs_id(server):
    output, environ = {"format": "jpeg", "delivery": "s3"}, server.environ()
    answer = delivered(PICTURES, output, "job/7\u72d0", **environ)
    keys = [f"job_7_/{number}.jpg" for number in range(3)]
    facts, files = answer["delivery"], server.files()
    assert (facts["keys"], facts["expires_in"]) == (keys, 604_800)
    assert [(files[key][0], len(files[key][1])) for key in keys] == [
        ("image/jpeg", size) for size in facts["bytes"]
    ]
    contents = [requests.get(url, timeout=30).content for url in answer["images"]]
    assert contents == [files[key][1] for key in keys]
    assert answer["warnings"] == ["from before"]
    assert SECRET not in json.dumps(answer)
    public = delivered(output=output, **environ, BUCKET_PUBLIC_URL="https://cdn.example")
    assert "expires_in" not in public["delivery"]


BROKEN = {"BUCKET_NAME": "nowhere"}
GONE = {"BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
S3, PUT, SMALLER = {"delivery": "s3"}, {"delivery": "put"}, {"may_convert": True}


@pytest.mark.parametrize(
    ("output", "environ", "method", "messages"),
    [
        (SMALLER, limit(5000), ("s3", "png"), ["RESULT_LIMIT_MB"]),
        (S3, BROKEN, ("base64", "png"), ["404 (NoSuchBucket). Delivered by base64"]),
        (S3, GONE, ("base64", "png"), ["cannot be reached (EndpointConnectionError)"]),
        (S3 | SMALLER, BROKEN | limit(20_000), ("base64", "webp"), ["Bucket", "RESULT_LIMIT_MB"]),
        (PUT, {}, ("base64", "png"), ["answered 403 (AccessDenied). Delivered by base64"]),
        (PUT, limit(5000), ("s3", "png"), ["answered 403 (AccessDenied).", "RESULT_LIMIT_MB"]),
        (PUT, {"TRUSTED_HOSTS": ""}, ("base64", "png"), ["no public address"]),
    ],
)
def test_if_a_method_fails_the_next_one_is_tried(server, host, output, environ, method, messages):
    host.fault("status", status=403, body="<Code>AccessDenied</Code>")
    scheme = "https" if "TRUSTED_HOSTS" in environ else "http"
    urls = [f"{scheme}://{host.address}/{number}" for number in range(3)]
    output = output | ({"urls": urls} if output is PUT else {})
    environ = server.environ() | {"TRUSTED_HOSTS": host.address} | environ
    answer = delivered(PICTURES, output, **environ)
    assert how(answer) == method
    assert all(message in answer["warnings"][-1] for message in messages)
    # The first refusal ends the uploads: those that have not begun are not made.
    assert bool(host.received) == ("AccessDenied" in messages[0])


@pytest.mark.parametrize(("asked", "kind"), [("s3", DeliveryFailed), ("base64", ResultTooLarge)])
def test_if_no_method_works_the_error_is_the_first_one_and_names_all(
    server, tmp_path, caplog, asked, kind
):
    caplog.set_level("DEBUG", "worker")
    environ = server.environ() | BROKEN | limit(5000) | {"OUTPUT_DIR": str(tmp_path)}
    with pytest.raises(kind) as raised:
        delivered(output={"delivery": asked}, **environ)
    bucket = server.endpoint.removeprefix("http://")
    assert f"{bucket}/nowhere answered 404 (NoSuchBucket)" in str(raised.value)
    assert "RESULT_LIMIT_MB" in str(raised.value)
    assert len(raised.value.details["files"]) == len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        assert str(file) in str(raised.value)
    for secret in (SECRET, KEY_ID):
        assert secret not in f"{raised.value}{raised.value.details}{caplog.text}"


def test_without_a_bucket_s3_is_refused_before_the_engine_is_used_and_boto3_is_not_imported(server):
    with pytest.raises(InvalidInput, match=r"has no bucket.*BUCKET_ENDPOINT_URL"):
        worker().check(Output(delivery="s3"))
    worker(**server.environ()).check(Output(delivery="s3"))
    worker().check(Output())
    code = (  # the import takes a third of a second
        "import sys; from handler import build_delivery;"
        " from worker.config.settings import Settings;"
        " build_delivery(Settings.from_environ({}));"
        " assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


# The job's own bucket -----------------------------------------------------------------------------


@pytest.fixture
def theirs(server):
    """A second bucket of the server, and the `s3Config` that names it."""
    with server.another_bucket() as name:
        yield dict(zip(FIELDS, (KEY_ID, SECRET, name, server.endpoint), strict=True))


BASE64, NOT_THERE = {"delivery": "base64"}, {"bucketName": "not-there"}


@pytest.mark.parametrize(
    ("output", "change", "room", "method", "uploaded"),
    [
        ({}, {}, {}, "s3", 3),
        ({"format": "webp"}, {}, {}, "s3", 3),
        (S3, {}, {}, "s3", 3),
        (BASE64, {}, {}, "base64", 0),
        (BASE64, {}, limit(5000), "s3", 3),
        ({}, NOT_THERE, {}, "base64", 0),
        (S3, NOT_THERE, {}, "base64", 0),
        (SMALLER, NOT_THERE, limit(20_000), "base64", 0),
    ],
    ids=str,
)
def test_a_jobs_bucket_is_its_default_and_its_failure_is_not_the_operators_matter(
    server, theirs, output, change, room, method, uploaded
):
    before = server.files()
    trusted = {"TRUSTED_HOSTS": server.endpoint.removeprefix("http://")}
    own = worker(**server.environ(), **trusted, **room).to_bucket_of_job(read(theirs | change))
    wanted = Output.model_validate(output)
    own.check(wanted)
    answer = own.deliver(made(PICTURES), answer_with(PICTURES), wanted, "job-8")
    assert answer["delivery"]["method"] == method
    assert len(server.files(theirs["bucketName"])) == uploaded
    assert server.files() == before
    assert (len(answer["warnings"]) > 1) == bool(change or room)
    assert SECRET not in json.dumps(answer)
    if uploaded:
        contents = [requests.get(url, timeout=30).content for url in answer["images"]]
        assert contents == [one[1] for one in server.files(theirs["bucketName"]).values()]


def test_pictures_that_the_jobs_bucket_cannot_take_and_the_result_neither_are_an_error(
    server, theirs
):
    trusted = {"TRUSTED_HOSTS": server.endpoint.removeprefix("http://")} | limit(5000)
    own = worker(**server.environ(), **trusted).to_bucket_of_job(read(theirs | NOT_THERE))
    with pytest.raises(DeliveryFailed, match="not-there answered 404") as raised:
        own.deliver(made(PICTURES), answer_with(PICTURES), Output(), "job-8")
    assert "RESULT_LIMIT_MB" in str(raised.value)
    assert SECRET not in f"{raised.value}{raised.value.details}"


VOLUME = "s3api-eu-ro-1.runpod.io"


@pytest.mark.parametrize("is_of_job", [False, True])
def test_a_network_volume_of_runpod_is_a_bucket_without_signed_urls(monkeypatch, is_of_job):
    real = socket.getaddrinfo
    to_us = {VOLUME: "127.0.0.1"}
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real(to_us.get(host, host), *rest, **more),
    )
    with volume_server() as volume:
        endpoint = volume.endpoint.replace("127.0.0.1", VOLUME)
        given = dict(zip(FIELDS, (KEY_ID, SECRET, volume.name, endpoint), strict=True))
        environ = volume.environ() | {"BUCKET_ENDPOINT_URL": endpoint}
        trusted = {"TRUSTED_HOSTS": endpoint.removeprefix("http://")}
        operators = worker(**({} if is_of_job else environ), **trusted)
        delivery = operators.to_bucket_of_job(read(given)) if is_of_job else operators
        answer = delivery.deliver(made(PICTURES), answer_with(PICTURES), Output(**S3), "job-8")
        keys = [f"job-8/{number}.png" for number in range(3)]
        assert answer["images"] == [f"s3://{volume.name}/{key}" for key in keys]
        facts = answer["delivery"]
        assert (facts["keys"], facts["endpoint"]) == (keys, endpoint)
        assert "expires_in" not in facts
        assert [volume.files()[key][1] for key in keys] == decoded(PICTURES)


# The job's own URLs -------------------------------------------------------------------------------


def to(host, count, **output):
    return {"delivery": "put", "urls": [host.url(f"{one}.png") for one in range(count)]} | output


@pytest.mark.parametrize("grids", [0, 1])
def test_each_url_gets_its_picture_and_a_grid_in_front_none(host, grids):
    facts, environ = {"index_of_first_image": grids}, {"TRUSTED_HOSTS": host.address}
    answer = delivered(PICTURES, to(host, 3 - grids), facts=facts, **environ)
    paths = [f"/{number}.png" for number in range(3 - grids)]
    pictures = decoded(PICTURES[grids:])
    assert [host.files()[path] for path in paths] == pictures
    assert answer["images"] == [f"http://{host.address}{path}" for path in paths]
    assert how(answer) == ("put", "png")
    assert answer["delivery"]["bytes"] == list(map(len, pictures))
    assert len(answer["warnings"]) == 1 + grids
    assert ("the grid was left out" in answer["warnings"][-1]) == bool(grids)
    assert "5ecret" not in json.dumps(answer)


def test_a_url_that_is_not_https_is_refused_before_the_engine_is_used(host):
    output = Output.model_validate(to(host, 1))
    with pytest.raises(InvalidInput, match=r"output\.urls\.0: .* is not an https URL") as raised:
        worker().check(output)
    assert "5ecret" not in str(raised.value)
    worker(TRUSTED_HOSTS=host.address).check(output)


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "environ", "suffix"),
    [
        ({}, {}, ".png"),
        ({"format": "jpeg"}, {}, ".jpg"),
        ({"format": "webp", "quality": 5}, {}, ".webp"),
        ({"may_convert": True}, limit(20_000), ".webp"),
    ],
    ids=str,
)
def test_output_dir_has_the_files_as_they_were_delivered(tmp_path, caplog, output, environ, suffix):
    caplog.set_level("INFO")
    folder = tmp_path / "new"
    answer = delivered(PICTURES, output, "../../etc/x", OUTPUT_DIR=str(folder), **environ)
    files = sorted(folder.iterdir())
    assert [file.read_bytes() for file in files] == decoded(answer["images"])
    assert all((file.suffix, "_etc_x" in file.name) == (suffix, True) for file in files)
    assert str(files[0]) in caplog.text


def test_an_output_dir_that_cannot_be_written_is_a_warning_or_part_of_the_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    environ = {"OUTPUT_DIR": str(tmp_path / "file")}
    assert delivered(**environ)["warnings"][-1] == "not saved to OUTPUT_DIR: File exists"
    with pytest.raises(ResultTooLarge, match="could not be kept in OUTPUT_DIR: File exists"):
        delivered(**environ, **limit(2000))


def test_an_error_names_four_files_and_keeps_all_as_the_engine_made_them(tmp_path):
    with pytest.raises(ResultTooLarge, match=r"-3\.png and 2 more\.") as raised:
        delivered(PICTURES * 2, OUTPUT_DIR=str(tmp_path), **limit(2000))
    assert len(raised.value.details["files"]) == 6
    wide = encoded(png(16_400, 8, b"\x01\x02\x03", INFOTEXT))
    with pytest.raises(DeliveryFailed, match="16383 pixels"):
        delivered([wide], {"format": "webp"}, OUTPUT_DIR=str(tmp_path / "wide"))
    (kept,) = (tmp_path / "wide").iterdir()
    assert [kept.read_bytes()] == decoded([wide])


NAMES = {"0f3e-e1": "0f3e-e1", "../../etc": "_etc", "a b/c?d#e": "a_b_c_d_e"}
NAMES |= {"\u72d0": "_", "": "job", "x" * 500: "x" * 128}


def test_a_jobs_id_is_not_a_path():
    assert {job_id: cleaned(job_id) for job_id in NAMES} == NAMES


def test_many_jobs_at_once_do_not_mix(server):
    shared = worker(**server.environ())

    def run(number):
        images, output = [PICTURES[number % 3]], Output(delivery="s3" if number % 2 else "base64")
        return shared.deliver(made(images), answer_with(images), output, f"many-{number}")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(run, range(12)))
    files = server.files()
    for number, answer in enumerate(answers):
        (content,) = decoded([PICTURES[number % 3]])
        if number % 2:
            assert f"/{NAME}/many-{number}/0.png" in answer["images"][0]
            assert files[f"many-{number}/0.png"][1] == content
        else:
            assert decoded(answer["images"]) == [content]
