"""Whole jobs and where their pictures go: real SDK and worker, fake A1111, real S3 server."""

import base64
import json

import pytest
import requests
from fakes import worker_process
from fakes.a1111.picture import png
from fakes.hosts.bucket import KEY_ID, SECRET, s3_server
from fakes.hosts.put_host import put_host
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import JOB_TIMEOUT, completed, failed, png_size, running_worker

from worker.config.settings import EXIT_BAD_CONFIGURATION
from worker.delivery.delivery import json_size
from worker.delivery.s3_config import FIELDS

SMALL = worker_process.SMALL | {"prompt": "a fox, \u72d0"}
FOUR = SMALL | {"width": 1024, "height": 1024, "batch_size": 2, "n_iter": 2}  # 20 kB each here
TWO = ["https://a.example/1", "https://a.example/2"]
SIGNED = "http://10.0.0.1/x?sig=5ecret"
THEIR_ID, THEIR_SECRET = "id-of-the-callers-key", "secret-of-the-callers-key"
LIMIT = {"RESULT_LIMIT_MB": "0.05"}


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def host():
    with put_host() as running:
        yield running


@pytest.fixture(scope="module")
def with_bucket(tmp_path_factory, server, host):
    """A worker with a bucket; at last its log must contain no secret."""
    folder = tmp_path_factory.mktemp("worker")
    trusted = f"{host.address},{server.endpoint.removeprefix('http://')}"
    environ = server.environ() | LIMIT | {"TRUSTED_HOSTS": trusted}
    with RunPodPlane(hold=1.0) as plane, running_worker(folder, plane, **environ) as worker:
        yield worker
        for secret in (SECRET, KEY_ID, THEIR_SECRET, THEIR_ID, "5ecret", "X-Amz"):
            assert secret not in worker.log()


@pytest.fixture(scope="module")
def with_folder(tmp_path_factory):
    """A worker without a bucket that writes files."""
    folder = tmp_path_factory.mktemp("worker")
    environ = LIMIT | {"OUTPUT_DIR": str(folder / "out")}
    with RunPodPlane(hold=1.0) as plane, running_worker(folder, plane, **environ) as worker:
        worker.out = folder / "out"
        yield worker


def test_pictures_are_uploaded_to_the_bucket(with_bucket):
    job = with_bucket.run(SMALL | {"batch_size": 2, "output": {"delivery": "s3"}})
    output = completed(job)
    assert output["delivery"]["keys"] == [f"{job['id']}/{number}.png" for number in range(2)]
    for url in output["images"]:
        fetched = requests.get(url, timeout=10)
        assert fetched.headers["Content-Type"] == "image/png"
        assert png_size(base64.b64encode(fetched.content).decode()) == (64, 64)
    assert output["warnings"] == []
    assert output["timings"]["total"] >= output["timings"]["deliver"] > 0


def test_a_result_over_the_limit_goes_to_the_bucket(with_bucket):
    output = completed(with_bucket.run(FOUR))
    assert output["delivery"]["method"] == "s3"
    assert [requests.get(url, timeout=10).ok for url in output["images"]] == [True] * 4
    assert "RESULT_LIMIT_MB is 0.05" in output["warnings"][0]


@pytest.fixture
def theirs(server):
    with server.another_bucket() as name:
        yield name


def test_a_jobs_own_bucket_gets_its_pictures_of_every_task_and_the_operators_none(
    with_bucket, server, theirs
):
    before = server.files()
    values = (THEIR_ID, THEIR_SECRET, theirs, server.endpoint)
    config = dict(zip(FIELDS, values, strict=True))
    picture = base64.b64encode(png(16, 16, b"\1\2\3", "")).decode()
    upscale = {"task": "upscale", "upscaler_1": "Lanczos", "image": picture}
    openai = {"openai_route": "/v1/images/generations", "openai_input": {"prompt": "a fox"}}
    batch = {"task": "batch", "inputs": [SMALL, SMALL]}
    plane = with_bucket.plane
    for job in (SMALL, upscale, openai, batch):
        done = plane.wait(plane.submit(job, s3Config=config), JOB_TIMEOUT)
        output = completed(done)
        for result in output.get("results", [output]):
            keys = result["delivery"]["keys"]
            assert set(keys) <= server.files(theirs).keys()
            (url,) = result.get("images") or [one["url"] for one in result["data"]]
            assert f"/{theirs}/" in url
        assert THEIR_SECRET not in json.dumps(done)
    assert (server.files(), len(server.files(theirs))) == (before, 5)
    wrong = plane.submit(SMALL, s3Config=config | {"accessSecret": None})
    drawn = len(with_bucket.requests())
    message = failed(plane.wait(wrong, JOB_TIMEOUT), "INVALID_INPUT")
    assert "s3Config.accessSecret is missing" in message
    assert len(with_bucket.requests()) == drawn
    wrong = plane.submit(SMALL, s3Config=config | {"bucketName": "not-there"})
    output = completed(plane.wait(wrong, JOB_TIMEOUT))
    assert (output["delivery"]["method"], server.files()) == ("base64", before)
    assert "not-there answered 404 (NoSuchBucket)" in output["warnings"][0]


def test_pictures_are_put_to_the_jobs_own_urls(with_bucket, host):
    urls = [host.url(f"{name}.webp") for name in "ab"]
    wanted = {"format": "webp", "delivery": "put", "urls": urls}
    output = completed(with_bucket.run(SMALL | {"batch_size": 2, "output": wanted}))
    assert output["images"] == [url.partition("?")[0] for url in urls]
    assert host.files()["/a.webp"][8:12] == b"WEBP"
    assert {one.headers["content-type"] for one in host.received} == {"image/webp"}


@pytest.mark.parametrize(
    ("worker", "output", "message"),
    [
        ("with_bucket", {"delivery": "put", "urls": [SIGNED]}, "is not an https URL"),
        (
            "with_bucket",
            {"delivery": "put", "urls": TWO},
            "urls has 2, but the number of pictures is 1",
        ),
        ("with_bucket", {"delivery": "ftp"}, "must be 'base64', 's3' or 'put'"),
        ("with_folder", {"delivery": "s3"}, "BUCKET_ENDPOINT_URL"),
    ],
)
def test_a_delivery_that_cannot_work_costs_no_engine_call(request, worker, output, message):
    worker = request.getfixturevalue(worker)
    before = len(worker.requests())
    assert message in failed(worker.run(SMALL | {"output": output}), "INVALID_INPUT")
    assert len(worker.requests()) == before


def test_a_result_over_the_limit_is_an_error_and_its_pictures_are_kept(with_folder):
    job = with_folder.run(FOUR)
    assert "RESULT_LIMIT_MB is 0.05" in failed(job, "RESULT_TOO_LARGE")
    assert job["output"]["limit_bytes"] == 50_000
    kept = [file for file in with_folder.out.iterdir() if job["id"] in file.name]
    assert sorted(job["output"]["files"]) == sorted(map(str, kept))
    assert len(kept) == 4
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in kept)


def test_a_result_over_the_limit_is_converted_and_its_measured_size_is_the_posted_one(with_folder):
    job = with_folder.run(FOUR | {"output": {"may_convert": True}})
    output = completed(job)
    done = next(one for one in with_folder.plane.events("done") if one["id"] == job["id"])
    assert (output["delivery"]["method"], output["delivery"]["format"]) == ("base64", "webp")
    assert len(output["images"]) == 4
    assert done["size"] == json_size(job["output"])


def test_an_incomplete_bucket_ends_the_worker_before_anything_starts(tmp_path, server):
    environ = server.environ()
    environ.pop("BUCKET_SECRET_ACCESS_KEY")
    with (
        RunPodPlane(hold=1.0) as plane,
        running_worker(tmp_path, plane, wait=False, **environ) as worker,
    ):
        assert worker.end() == EXIT_BAD_CONFIGURATION
        assert "without BUCKET_SECRET_ACCESS_KEY" in worker.log()
        assert KEY_ID not in worker.log()
