"""Uploads to a real S3 server; what the settings may be is in tests/config."""

import logging
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from fakes.a1111.process import free_port
from fakes.hosts.bucket import KEY_ID, NAME, SECRET

from worker.config.settings import Settings
from worker.delivery.bucket import Bucket
from worker.delivery.limits import UploadLimits
from worker.errors import ConfigError, DeliveryFailed


def bucket(server, **environ):
    settings = Settings.from_environ(server.environ() | environ)
    key_id, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
    limits = UploadLimits(attempts=1)
    return Bucket(settings.bucket, key_id, secret, settings.bucket_public_url, limits)


def test_an_uploaded_file_can_be_downloaded_for_seven_days_by_a_url_without_secrets(server):
    url = bucket(server).upload("job-1/0.png", b"picture", "image/png")
    downloaded = requests.get(url, timeout=30)
    query = parse_qs(urlsplit(url).query)
    assert (downloaded.content, downloaded.headers["Content-Type"]) == (b"picture", "image/png")
    assert server.files()["job-1/0.png"] == ("image/png", b"picture")
    assert urlsplit(url).path == f"/{NAME}/job-1/0.png"
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["604800"]
    assert query["X-Amz-Credential"][0].startswith(f"{KEY_ID}/")
    assert SECRET not in url


def test_the_same_key_again_replaces_the_file_and_the_region_is_in_the_signature(server):
    """A job that RunPod runs again has the same id."""
    for content in (b"first", b"second"):
        url = bucket(server, BUCKET_REGION="mars-1").upload("job-2/0.png", content, "image/png")
    assert server.files()["job-2/0.png"][1] == b"second"
    assert "/mars-1/s3/" in parse_qs(urlsplit(url).query)["X-Amz-Credential"][0]


def test_a_public_bucket_returns_its_own_url(server):
    public = bucket(server, BUCKET_PUBLIC_URL="https://cdn.example/pics/")
    assert public.upload("a b/0.png", b"x", "image/png") == "https://cdn.example/pics/a%20b/0.png"
    assert public.lifetime is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BUCKET_NAME": "nowhere"}, "{0}/nowhere answered 404 (NoSuchBucket)"),
        ({"BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}, "cannot be reached (Endpoint"),
    ],
)
def test_a_failed_upload_is_reported_without_secrets(server, caplog, environ, message):
    caplog.set_level(logging.DEBUG, "worker")
    with pytest.raises(DeliveryFailed) as raised:
        bucket(server, **environ).upload("x", b"", "image/png")
    assert message.format(urlsplit(server.endpoint).netloc) in str(raised.value)
    for text in (str(raised.value), str(raised.value.details), caplog.text):
        assert SECRET not in text
        assert KEY_ID not in text


def test_an_invalid_endpoint_is_a_wrong_setting(server):
    with pytest.raises(ConfigError, match=r"BUCKET_ENDPOINT_URL .*Invalid endpoint"):
        bucket(server, BUCKET_ENDPOINT_URL="https://no_host..example")
