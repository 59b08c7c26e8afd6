"""A network volume whose S3 API has small parts."""

import pytest
from fakes.hosts.volume_api import volume_api


@pytest.fixture(scope="module")
def running_api():
    with volume_api() as running:
        yield running


@pytest.fixture
def api(running_api, monkeypatch):
    """RunPod has no smallest part, as S3 and moto have."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    running_api.reset()
    return running_api
