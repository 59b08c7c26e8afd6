"""A real S3 server and a host for a job's own URLs, both on loopback."""

import pytest
from fakes.hosts.bucket import s3_server
from fakes.hosts.put_host import put_host


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture
def host():
    with put_host() as running:
        yield running
