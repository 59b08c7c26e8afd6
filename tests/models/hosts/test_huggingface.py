import hashlib

import pytest
from fakes.hosts.model_hosts import ModelHosts
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import (
    ModelForbidden,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelRateLimited,
    ModelRegionBlocked,
    WorkerError,
)
from worker.http.client import Document, SafeHttpClient
from worker.job.reference import HuggingFaceFile, StoreName
from worker.models.hosts.host import RemoteFile
from worker.models.hosts.huggingface import HuggingFace

DATA = b"weights"
COMMIT = "c0ffee" + "0" * 34
PATH = "a folder/tiny #1.safetensors"


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        hosts.add_hf("org/open", PATH, DATA, commit=COMMIT)
        hosts.add_hf("org/open", PATH, DATA, commit=COMMIT, revision="refs/pr/1")
        hosts.add_hf("org/open", "small.safetensors", DATA, commit=COMMIT, lfs=False)
        hosts.add_hf("org/gated", "a.safetensors", DATA, gated=True)
        hosts.add_hf("org/private", "a.safetensors", DATA, private=True)
        yield hosts


@pytest.fixture
def hosts(running_hosts):
    running_hosts.no_faults()
    running_hosts.forget_requests()
    return running_hosts


def hugging_face(hosts, token=None):
    trusted = [url.rpartition("/")[2] for url in (hosts.huggingface, hosts.hf_cdn, hosts.web)]
    http = SafeHttpClient(trusted, {hosts.huggingface: token} if token else {})
    return HuggingFace(http, hosts.huggingface), http


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", COMMIT])
def test_a_reference_becomes_a_file_pinned_to_its_commit(hosts, revision):
    remote = hugging_face(hosts)[0].resolve(HuggingFaceFile("org/open", PATH, revision))

    quoted = "a%20folder/tiny%20%231.safetensors"
    assert remote == RemoteFile(
        url=f"{hosts.huggingface}/org/open/resolve/{COMMIT}/{quoted}",
        filename="tiny #1.safetensors",
        source=f"hf://org/open@{COMMIT}/{PATH}",
        size=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        title=f"org/open/{PATH}",
    )


def test_the_signed_url_is_not_asked_for_metadata(hosts):
    hugging_face(hosts)[0].resolve(HuggingFaceFile("org/open", PATH))

    assert [(request.role, request.method) for request in hosts.requests] == [
        ("huggingface", "HEAD")
    ]


def test_a_file_outside_lfs_has_a_size_but_no_sha256(hosts):
    remote = hugging_face(hosts)[0].resolve(HuggingFaceFile("org/open", "small.safetensors"))

    assert (remote.size, remote.sha256) == (len(DATA), None)


def test_a_renamed_repository_is_followed(hosts):
    target = "/org/open/resolve/main/small.safetensors"
    hosts.fault("redirect_to", path="/old/", url=target)

    remote = hugging_face(hosts)[0].resolve(HuggingFaceFile("old/name", "small.safetensors"))

    assert COMMIT in remote.url


def test_the_url_gives_the_file(hosts):
    host, http = hugging_face(hosts, hosts.hf_token)
    remote = host.resolve(HuggingFaceFile("org/gated", "a.safetensors"))

    with http.open(remote.url) as reply:
        assert (reply.status, reply.read(100)) == (200, DATA)


def test_anothers_reference_is_a_bug(hosts):
    with pytest.raises(TypeError):
        hugging_face(hosts)[0].resolve(StoreName("a"))


NO_TOKEN, GOOD, STRANGER, WRONG = None, "hf_token", "hf_token_without_grant", "wrong"
REFUSED = [
    ("org/gated", "main", NO_TOKEN, ModelLoginRequired, "gated", "Set HF_TOKEN"),
    ("org/gated", "main", STRANGER, ModelForbidden, "no access", "Accept its terms"),
    ("org/gated", "main", WRONG, ModelLoginRequired, "not accepted", "valid token"),
    ("org/private", "main", NO_TOKEN, ModelNotFound, "or it is private", "Set HF_TOKEN"),
    ("org/private", "main", STRANGER, ModelNotFound, "account may not see it", "which account"),
    ("org/none", "main", GOOD, ModelNotFound, "does not exist", "Check its name"),
    ("org/open", "dev", GOOD, ModelNotFound, "no such branch, tag or commit", "`main`"),
    ("org/open", "main", GOOD, ModelNotFound, "no such file", "Check the path"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(map(str, case[:3])))
def test_each_refusal_has_its_meaning(hosts, case):
    repo, revision, token, kind, message, hint = case
    token = getattr(hosts, token, token) if token else None
    with pytest.raises(WorkerError) as caught:
        hugging_face(hosts, token)[0].resolve(HuggingFaceFile(repo, "a.safetensors", revision))

    error = caught.value
    assert type(error) is kind
    assert error.message.startswith(f"{repo}/a.safetensors (revision {revision}): ")
    assert message in error.message
    assert hint in error.hint
    assert not any(secret in str(error) for secret in hosts.planted_secrets)


def test_a_redirect_to_another_site_is_no_answer(hosts):
    hosts.fault("redirect_to", path="/org/", url=f"{hosts.web}/elsewhere?token=secret")

    with pytest.raises(ModelHostFailed, match="not what Hugging Face answers") as caught:
        hugging_face(hosts)[0].resolve(HuggingFaceFile("org/open", PATH))

    assert "secret" not in str(caught.value)
    assert hosts.count("web") == 0


STATUSES = [
    (401, {}, b"", ModelLoginRequired, "asks for a login"),
    (403, {}, b"", ModelForbidden, "does not give it"),
    (404, {}, b"", ModelNotFound, "(404)"),
    (404, {"X-Error-Code": "EntryNotFound"}, b"", ModelNotFound, "no such file"),
    (429, {}, b"", ModelRateLimited, "(429)"),
    (451, {}, b"", ModelRegionBlocked, "(451)"),
    (500, {}, b"", ModelHostFailed, "has failed (500)"),
    (503, {}, b"", ModelHostFailed, "has failed (503)"),
    (403, {}, b"<?xml?><Error/>", ModelHostFailed, "storage"),
    (200, {}, b"<html>", ModelHostFailed, "not what Hugging Face answers"),
    (418, {}, b"", ModelHostFailed, "(418)"),
]
REMOTE = RemoteFile("https://huggingface.co/o/r/resolve/0/a", "a", "hf://o/r@0/a")


@pytest.mark.parametrize(("status", "headers", "body", "kind", "message"), STATUSES)
def test_each_status_of_a_download_has_its_meaning(status, headers, body, kind, message):
    error = HuggingFace(SafeHttpClient()).refusal(Document(status, headers, body), REMOTE)

    assert type(error) is kind
    assert error.message.startswith("hf://o/r@0/a: ")
    assert message in error.message


class OddInternet:
    """Answers with these headers, whatever is asked."""

    def __init__(self, status, headers):
        self.answer = Document(status, headers, b"")

    def ask(self, url, **_):
        return self.answer, url

    def has_token(self, _):
        return False


NAMES = ["X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "Content-Length", "X-Error-Code"]
VALUES = st.text() | st.sampled_from([COMMIT, "1", '"' + "AB" * 32 + '"', "²", "9" * 5000])


@given(st.sampled_from([200, 302]), st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_odd_headers_are_no_answer_or_ignored(status, headers):
    host = HuggingFace(OddInternet(status, headers))
    if headers.get("X-Repo-Commit") != COMMIT:
        with pytest.raises(WorkerError):
            host.resolve(HuggingFaceFile("o/r", "a.pt"))
        return
    remote = host.resolve(HuggingFaceFile("o/r", "a.pt"))

    assert remote.url == f"https://huggingface.co/o/r/resolve/{COMMIT}/a.pt"
    assert remote.sha256 in {None, "ab" * 32}
