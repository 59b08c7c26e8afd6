"""The forms of BUCKET_ENDPOINT_URL, and the bucket that each names."""

import pytest

from worker.config.bucket_address import BucketAddress, read

AWS, SPACES = "s3.eu-west-1.amazonaws.com", "nyc3.digitaloceanspaces.com"
B2, WASABI = "s3.us-west-004.backblazeb2.com", "s3.eu-central-1.wasabisys.com"
R2, RUNPOD = "0abc.r2.cloudflarestorage.com", "s3api-eu-ro-1.runpod.io"


@pytest.mark.parametrize(
    ("url", "name", "endpoint", "region"),
    [
        (f"https://{AWS}", "pics", AWS, "eu-west-1"),
        (f"https://{AWS}/", "pics", AWS, "eu-west-1"),
        (f"https://{AWS}/pics", None, AWS, "eu-west-1"),
        (f"https://{AWS}/pics/", "pics", AWS, "eu-west-1"),
        (f"https://pics.{AWS}", None, AWS, "eu-west-1"),
        (f"https://pics.{AWS}/pics", "pics", AWS, "eu-west-1"),
        ("https://pics.s3-eu-west-1.amazonaws.com", None, AWS.replace("s3.", "s3-"), "eu-west-1"),
        ("https://s3.amazonaws.com/pics", None, "s3.amazonaws.com", "us-east-1"),
        ("https://pics.s3.amazonaws.com", None, "s3.amazonaws.com", "us-east-1"),
        (f"https://pics.{SPACES}", None, SPACES, "nyc3"),
        (f"https://{SPACES}", "pics", SPACES, "nyc3"),
        (f"https://pics.{B2}", None, B2, "us-west-004"),
        (f"https://{WASABI}/pics", None, WASABI, "eu-central-1"),
        (f"https://{R2}/pics", None, R2, "auto"),
        (f"https://{RUNPOD}", "pics", RUNPOD, "EU-RO-1"),
        ("http://127.0.0.1:9000", "pics", "127.0.0.1:9000", "us-east-1"),
        ("http://[::1]:9000/pics", None, "[::1]:9000", "us-east-1"),
        ("https://MinIO.example", "pics", "minio.example", "us-east-1"),
    ],
)
def test_every_usual_form_is_understood(url, name, endpoint, region):
    endpoint = f"{url.split(':')[0]}://{endpoint}"
    assert read(url, name) == BucketAddress(endpoint, "pics", region, "runpod" not in url)
    assert read(url, name, "mars-1").region == "mars-1"


@pytest.mark.parametrize(
    ("url", "name", "message"),
    [
        ("s3.amazonaws.com", "pics", "must look like https://"),
        ("ftp://s3.amazonaws.com", "pics", "must look like https://"),
        ("https://", "pics", "must look like https://"),
        (f"https://{AWS}/pics?x=secret", None, "nothing else"),
        (f"https://{AWS}/pics#secret", None, "nothing else"),
        ("https://me:secret@minio.example/pics", None, "nothing else"),
        (f"https://{AWS}/pics/folder", None, "nothing else"),
        (f"https://{AWS}", None, "BUCKET_NAME is missing"),
        (f"https://{AWS}/pics", "others", "name two buckets, 'others' and 'pics'"),
        (f"https://pics.{AWS}", "others", "name two buckets"),
        (f"https://{AWS}", "../pics", "cannot be the name of a bucket"),
        (f"https://{AWS}", "p", "cannot be the name of a bucket"),
        (f"https://{AWS}", "", "BUCKET_NAME is missing"),
        ("http://minio.example:99999", "pics", "must look like https://"),
        ("https://me:secret@[minio.example/pics", None, "must look like https://"),
        ("https://me:secret\u2100@minio.example/pics", None, "must look like https://"),
    ],
)
def test_anything_else_is_refused_without_secrets(url, name, message):
    with pytest.raises(ValueError, match=message) as raised:
        read(url, name)
    assert "secret" not in str(raised.value)
