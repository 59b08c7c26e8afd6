"""Pictures that are delivered while the next ones are drawn, and the result that uses them."""

import pytest
from fakes.hosts.put_host import put_host

from tests.delivery.test_delivery import PICTURES, answer_with, decoded, made, worker
from worker.errors import DeliveryFailed, ResultTooLarge
from worker.job.output_fields import Output


@pytest.fixture
def host():
    with put_host() as running:
        yield running


def delivered(output, *, images=PICTURES, streamed=True, before=lambda _place: None, **environ):
    """What each picture was delivered as, and the result."""
    delivery, facts = worker(**environ), {"index_of_first_image": output.pop("grids", 0)}
    wanted = Output.model_validate(output | {"stream": True})
    early, seen = delivery.early(wanted, "job-1"), []
    for place, image in enumerate(images):
        before(place)
        seen.append(early.add(image, facts["index_of_first_image"]))
    early.is_streamed = streamed
    answer = answer_with(images)
    return seen, delivery.deliver(made(images, **facts), answer, wanted, "job-1", early)


def puts(host, count, grids=0):
    urls = [host.url(f"{number}.webp") for number in range(count - grids)]
    return {"format": "webp", "delivery": "put", "urls": urls, "grids": grids}


@pytest.mark.parametrize("grids", [0, 1])
def test_each_picture_is_uploaded_once_and_the_result_has_its_url(host, grids, monkeypatch):
    monkeypatch.setattr("worker.delivery.delivery.from_engine", None)  # nothing is converted again
    output = puts(host, len(PICTURES), grids)
    seen, answer = delivered(output, TRUSTED_HOSTS=host.address)
    urls = [one.url for one in seen]
    assert urls == [None] * grids + answer["images"]
    assert len(host.received) == len(answer["images"]) == 3 - grids
    assert list(host.files().values()) == [one.file.data for one in seen[grids:]]
    assert answer["delivery"]["method"] == "put"


def test_after_a_failed_upload_the_pictures_come_themselves_and_the_result_falls_back(host):
    def before(place):
        if place == 1:
            host.fault("status", status=403, times=-1)

    output = puts(host, 3)
    seen, answer = delivered(output, before=before, TRUSTED_HOSTS=host.address)
    assert [bool(one.url) for one in seen] == [True, False, False]
    assert len(host.received) == 2  # a refused upload is not tried again, not even at the end
    assert answer["delivery"]["method"] == "base64"
    assert decoded(answer["images"]) == [one.file.data for one in seen]
    assert "403" in answer["warnings"][-1]


def test_without_a_bucket_s3_falls_back_as_without_a_stream(server):
    environ = server.environ() | {"BUCKET_ENDPOINT_URL": "http://127.0.0.1:9/pictures"}
    seen, answer = delivered({"delivery": "s3"}, **environ)
    assert [one.url for one in seen] == [None] * 3
    assert (answer["delivery"]["method"], answer["images"]) == ("base64", PICTURES)
    assert "cannot be reached" in answer["warnings"][-1]


@pytest.mark.parametrize(
    ("output", "has_bucket", "limit", "method"),
    [
        ({}, False, 9, "base64"),
        ({}, False, 0.01, "stream"),
        ({}, True, 0.01, "s3"),
        ({"may_convert": True}, False, 0.02, "base64"),
        ({"may_convert": True}, False, 0.002, "stream"),
    ],
)
def test_the_stream_alone_is_the_last_method(server, output, has_bucket, limit, method):
    environ = (server.environ() if has_bucket else {}) | {"RESULT_LIMIT_MB": str(limit)}
    _, answer = delivered(output, **environ)
    assert answer["delivery"]["method"] == method
    assert bool(answer["images"]) == (method != "stream")
    warning = "the result has no pictures: they are on /stream only."
    assert (warning in answer["warnings"]) == (method == "stream")
    assert len(answer["delivery"]["bytes"]) == 3


def test_pictures_that_were_not_all_streamed_are_not_left_out_of_the_result():
    with pytest.raises(ResultTooLarge):
        delivered({}, streamed=False, RESULT_LIMIT_MB="0.01")


def test_a_picture_that_cannot_be_converted_is_the_error_of_the_job():
    with pytest.raises(DeliveryFailed):
        delivered({"format": "jpeg"}, images=[PICTURES[0], "!"])
