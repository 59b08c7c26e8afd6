"""The page's files and data: which are served, with which headers, and at which cost."""

import pytest
import requests
from fakes.gateway_server import served_endpoint
from fakes.runpod_endpoint import RunPodEndpoint, completed

from tests.page.use import lists_of_a_worker


@pytest.fixture(scope="module")
def runpod():
    states = lambda _input: [completed(results=lists_of_a_worker())]  # noqa: E731
    with RunPodEndpoint(states) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def url(runpod):
    with served_endpoint(runpod) as gateway:
        yield gateway.url


FILES = {"/": "text/html", "/page/page.js": "text/javascript", "/page/style.css": "text/css"}
FILES |= {"/page/icon.svg": "image/svg+xml"}


@pytest.mark.parametrize("path", FILES)
def test_files_have_their_type_and_the_headers_of_a_safe_page(url, path):
    answer = requests.get(url + path, timeout=30)
    headers = answer.headers
    assert answer.status_code == requests.codes.ok
    assert headers["content-type"].partition(";")[0] == FILES[path]
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    known = {"If-None-Match": f'"other", {headers["etag"]}'}
    again = requests.get(url + path, headers=known, timeout=30)
    assert (again.status_code, again.content) == (304, b"")
    assert requests.head(url + path, timeout=30).headers["etag"] == headers["etag"]


OTHERS = (
    "routes.py",
    "__init__.py",
    "../app.py",
    "..%2fapp.py",
    "%2e%2e/jobs.py",
    "no.js",
    "a" * 999,
)


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_file_can_be_read(url, name):
    prepared = requests.Request("GET", f"{url}/page/").prepare()
    prepared.url += name  # as written: requests would take out the dots
    answer = requests.Session().send(prepared, timeout=30)
    assert answer.status_code == requests.codes.not_found
    assert "def " not in answer.text


def test_the_data_of_an_endpoint_that_sleeps_start_no_worker(url, runpod):
    runpod.health = {"workers": {"idle": 1, "ready": 1, "running": 0}}
    answer = requests.get(f"{url}/page/data", timeout=30).json()
    assert (answer["is_known"], answer["schema"], answer["lists"]["models"]) == (False, None, [])
    assert "Euler a" in [one["name"] for one in answer["lists"]["samplers"]]
    assert runpod.inputs() == []
    runpod.health = {"workers": {"running": 1}}
    answer = requests.get(f"{url}/page/data", timeout=30).json()
    assert (answer["is_known"], answer["lists"]["models"][0]["model_name"]) == (True, "base")
    assert [*answer["schema"]["tasks"]] == ["txt2img", "img2img"]
    assert [one["task"] for one in runpod.inputs()] == ["batch"]
