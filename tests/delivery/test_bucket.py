"""Uploads to a real S3 server; what the settings may be is in tests/config."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from fakes.hosts.bucket import KEY_ID, NAME, SECRET

from worker.config.bucket_address import BucketAccess
from worker.config.settings import Settings
from worker.delivery.bucket import Bucket
from worker.delivery.limits import UploadLimits
from worker.errors import ConfigError


def bucket(server, **environ):
    settings = Settings.from_environ(server.environ() | environ)
    key_id, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
    access = BucketAccess(settings.bucket, key_id, secret)
    return Bucket(access, settings.bucket_public_url, limits=UploadLimits(attempts=1))


def test_an_uploaded_file_can_be_downloaded_for_seven_days_by_a_url_without_secrets(server):
    url = bucket(server, BUCKET_REGION="mars-1").upload("job-1/0.png", b"picture", "image/png")
    downloaded = requests.get(url, timeout=30)
    query = parse_qs(urlsplit(url).query)
    assert (downloaded.content, downloaded.headers["Content-Type"]) == (b"picture", "image/png")
    assert server.files()["job-1/0.png"] == ("image/png", b"picture")
    assert urlsplit(url).path == f"/{NAME}/job-1/0.png"
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["604800"]
    assert re.fullmatch(rf"{KEY_ID}/\d+/mars-1/s3/aws4_request", query["X-Amz-Credential"][0])
    assert SECRET not in url


def test_a_service_on_this_machine_is_not_asked_through_a_proxy(server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    bucket(server).upload("job-1/proxy.png", b"picture", "image/png")
    assert server.files()["job-1/proxy.png"] == ("image/png", b"picture")


def test_a_public_bucket_returns_its_own_url(server):
    public = bucket(server, BUCKET_PUBLIC_URL="https://cdn.example/pics/")
    assert public.upload("a b/0.png", b"x", "image/png") == "https://cdn.example/pics/a%20b/0.png"
    assert public.lifetime is None


def test_an_invalid_endpoint_is_a_wrong_setting(server):
    with pytest.raises(ConfigError, match=r"BUCKET_ENDPOINT_URL .*Invalid endpoint"):
        bucket(server, BUCKET_ENDPOINT_URL="https://no_host..example")
