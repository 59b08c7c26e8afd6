"""What people write for a bucket, and which bucket that is."""

import pytest

from worker.config.bucket_address import BucketAddress, read

AWS = "https://s3.eu-west-1.amazonaws.com"
FORMS = [
    # URL, name, endpoint, region
    (AWS, "pics", AWS, "eu-west-1"),
    (f"{AWS}/", "pics", AWS, "eu-west-1"),
    (f"{AWS}/pics", None, AWS, "eu-west-1"),
    (f"{AWS}/pics/", "pics", AWS, "eu-west-1"),
    ("https://pics.s3.eu-west-1.amazonaws.com", None, AWS, "eu-west-1"),
    ("https://pics.s3.eu-west-1.amazonaws.com/pics", "pics", AWS, "eu-west-1"),
    ("https://pics.s3-eu-west-1.amazonaws.com", None, AWS.replace("s3.", "s3-"), "eu-west-1"),
    ("https://s3.amazonaws.com/pics", None, "https://s3.amazonaws.com", "us-east-1"),
    ("https://pics.s3.amazonaws.com", None, "https://s3.amazonaws.com", "us-east-1"),
    (
        "https://pics.nyc3.digitaloceanspaces.com",
        None,
        "https://nyc3.digitaloceanspaces.com",
        "nyc3",
    ),
    (
        "https://nyc3.digitaloceanspaces.com",
        "pics",
        "https://nyc3.digitaloceanspaces.com",
        "nyc3",
    ),
    (
        "https://pics.s3.us-west-004.backblazeb2.com",
        None,
        "https://s3.us-west-004.backblazeb2.com",
        "us-west-004",
    ),
    (
        "https://s3.eu-central-1.wasabisys.com/pics",
        None,
        "https://s3.eu-central-1.wasabisys.com",
        "eu-central-1",
    ),
    (
        "https://0abc.r2.cloudflarestorage.com/pics",
        None,
        "https://0abc.r2.cloudflarestorage.com",
        "auto",
    ),
    ("https://s3api-eu-ro-1.runpod.io", "pics", "https://s3api-eu-ro-1.runpod.io", "EU-RO-1"),
    ("http://127.0.0.1:9000", "pics", "http://127.0.0.1:9000", "us-east-1"),
    ("http://[::1]:9000/pics", None, "http://[::1]:9000", "us-east-1"),
    ("https://MinIO.example", "pics", "https://minio.example", "us-east-1"),
]


@pytest.mark.parametrize(("url", "name", "endpoint", "region"), FORMS)
def test_every_usual_form_is_understood(url, name, endpoint, region):
    assert read(url, name) == BucketAddress(endpoint, "pics", region, "runpod" not in url)


def test_a_region_that_is_said_counts():
    assert read(AWS, "pics", "mars-1").region == "mars-1"


REFUSED = [
    ("s3.amazonaws.com", "pics", "must look like https://"),
    ("ftp://s3.amazonaws.com", "pics", "must look like https://"),
    ("https://", "pics", "must look like https://"),
    (f"{AWS}/pics?x=secret", None, "nothing else"),
    (f"{AWS}/pics#secret", None, "nothing else"),
    ("https://me:secret@minio.example/pics", None, "nothing else"),
    (f"{AWS}/pics/folder", None, "nothing else"),
    (AWS, None, "BUCKET_NAME is missing"),
    (f"{AWS}/pics", "others", "name two buckets, 'others' and 'pics'"),
    ("https://pics.s3.eu-west-1.amazonaws.com", "others", "name two buckets"),
    (AWS, "../pics", "cannot be the name of a bucket"),
    (AWS, "p", "cannot be the name of a bucket"),
    ("http://minio.example:99999", "pics", "ort"),
]


@pytest.mark.parametrize(("url", "name", "said"), REFUSED)
def test_anything_else_is_refused_without_secrets(url, name, said):
    with pytest.raises(ValueError, match=said) as raised:
        read(url, name)

    assert "secret" not in str(raised.value)
