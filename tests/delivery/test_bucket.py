"""Uploads to a real S3 server, and the settings that lead there."""

import logging
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from fakes.a1111.process import free_port
from fakes.hosts.bucket import KEY_ID, NAME, SECRET, s3_server

from worker.config.credentials import secret_values
from worker.config.settings import Settings
from worker.delivery import bucket
from worker.delivery.bucket import Bucket
from worker.errors import ConfigError, DeliveryFailed


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


def to(server, **environ):
    return at(Settings.from_environ(server.environ() | environ))


def at(settings):
    return Bucket(
        settings.bucket,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_public_url,
    )


def test_what_is_uploaded_can_be_fetched_by_its_url(server):
    url = to(server).upload("job-1/0.png", b"picture", "image/png")
    fetched = requests.get(url, timeout=10)

    assert (fetched.content, fetched.headers["Content-Type"]) == (b"picture", "image/png")
    assert server.files()["job-1/0.png"] == ("image/png", b"picture")


def test_the_url_is_signed_for_seven_days_and_holds_no_secret(server):
    url = to(server).upload("job-1/0.png", b"picture", "image/png")
    query = parse_qs(urlsplit(url).query)

    assert urlsplit(url).path == f"/{NAME}/job-1/0.png"
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["604800"]
    assert query["X-Amz-Credential"][0].startswith(f"{KEY_ID}/")
    assert SECRET not in url


def test_the_region_is_in_the_signature(server):
    url = to(server, BUCKET_REGION="mars-1").upload("x", b"", "image/png")

    assert "/mars-1/s3/" in parse_qs(urlsplit(url).query)["X-Amz-Credential"][0]


def test_a_public_bucket_gives_its_own_url(server):
    public = to(server, BUCKET_PUBLIC_URL="https://cdn.example/pics/")

    assert public.upload("a b/0.png", b"x", "image/png") == "https://cdn.example/pics/a%20b/0.png"
    assert public.lifetime is None


def test_the_same_key_again_replaces_the_file(server):
    """A job that RunPod runs again has the same id."""
    for content in (b"first", b"second"):
        to(server).upload("job-2/0.png", content, "image/png")

    assert server.files()["job-2/0.png"][1] == b"second"


def test_a_bucket_that_is_not_there_is_told_without_secrets(server, caplog):
    caplog.set_level(logging.DEBUG, "worker")
    with pytest.raises(DeliveryFailed) as raised:
        to(server, BUCKET_NAME="nowhere").upload("x", b"", "image/png")

    assert f"{urlsplit(server.endpoint).netloc}/nowhere answered 404 (NoSuchBucket)" in str(
        raised.value
    )
    for told in (str(raised.value), str(raised.value.details), caplog.text):
        assert SECRET not in told
        assert KEY_ID not in told


def test_a_server_that_is_not_there_is_told(server, monkeypatch):
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    gone = to(server, BUCKET_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")

    with pytest.raises(DeliveryFailed, match=r"cannot be reached \(EndpointConnection"):
        gone.upload("x", b"", "image/png")


def test_an_endpoint_that_is_no_host_is_a_wrong_setting(server):
    with pytest.raises(ConfigError, match="Invalid endpoint"):
        to(server, BUCKET_ENDPOINT_URL="https://no_host..example")


# Settings ----------------------------------------------------------------------------------------

WHOLE = {
    "BUCKET_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com",
    "BUCKET_NAME": NAME,
    "BUCKET_ACCESS_KEY_ID": KEY_ID,
    "BUCKET_SECRET_ACCESS_KEY": SECRET,
}


def test_the_whole_of_a_bucket_is_read():
    settings = Settings.from_environ(WHOLE)

    assert settings.bucket.name == NAME
    assert Settings.from_environ({}).bucket is None
    assert SECRET not in repr(settings)
    assert {KEY_ID, SECRET} <= set(secret_values(WHOLE))


@pytest.mark.parametrize("missing", WHOLE)
def test_a_part_of_a_bucket_is_an_error_that_names_the_missing_rest(missing):
    rest = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ(rest)

    said = f"without {missing}: set all" if missing != "BUCKET_NAME" else "BUCKET_NAME is missing"
    assert said in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("alone", [*WHOLE, "BUCKET_REGION", "BUCKET_PUBLIC_URL"])
def test_a_single_variable_names_all_that_are_missing(alone):
    value = {**WHOLE, "BUCKET_REGION": "x", "BUCKET_PUBLIC_URL": "https://cdn.example"}[alone]
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({alone: value})

    missing = set(WHOLE) - {alone, "BUCKET_NAME"}
    assert all(name in str(raised.value) for name in missing)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BUCKET_ENDPOINT_URL": "s3.example"}, "must look like https://"),
        ({"BUCKET_ENDPOINT_URL": "https://a.example/other"}, "name two buckets"),
        ({"BUCKET_ENDPOINT_URL": "https://s3api-eu-ro-1.runpod.io"}, "signs no URLs"),
        ({"BUCKET_PUBLIC_URL": "cdn.example"}, "BUCKET_PUBLIC_URL='cdn.example'"),
        ({"BUCKET_SECRET_ACCESS_KEY": "two words"}, "BUCKET_SECRET_ACCESS_KEY=***"),
        ({"RESULT_LIMIT_MB": "-1"}, "RESULT_LIMIT_MB='-1'"),
        ({"RESULT_LIMIT_MB": "many"}, "RESULT_LIMIT_MB='many'"),
    ],
)
def test_a_wrong_value_is_told(environ, said):
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ(WHOLE | environ)

    assert said in str(raised.value)


def test_the_secrets_may_be_in_files(tmp_path):
    (tmp_path / "key").write_text(f"{KEY_ID}\n")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    environ = {name: value for name, value in WHOLE.items() if "KEY" not in name} | {
        "BUCKET_ACCESS_KEY_ID_FILE": str(tmp_path / "key"),
        "BUCKET_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret"),
    }
    settings = Settings.from_environ(environ)

    assert settings.bucket_access_key_id.get_secret_value() == KEY_ID
    assert settings.bucket_secret_access_key.get_secret_value() == SECRET
    assert SECRET in secret_values(environ)


def test_runpods_volumes_need_a_public_url():
    environ = {
        "BUCKET_ENDPOINT_URL": "https://s3api-eu-ro-1.runpod.io",
        "BUCKET_PUBLIC_URL": "https://x.example",
    }

    assert Settings.from_environ(WHOLE | environ).bucket.region == "EU-RO-1"
