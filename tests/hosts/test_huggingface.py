import hashlib

import pytest
from fakes.hosts.fixtures import client_for
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
from worker.hosts.host import RemoteFile
from worker.hosts.huggingface import HuggingFace, HuggingFaceFile
from worker.http.document import Document

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
def resolve(hosts):
    """Resolve a reference at the fake; `token` is the worker's."""

    def run(ref, token=None):
        host = HuggingFace(hosts.huggingface, token)
        return host.resolve(ref, client_for(hosts, tokens=host.tokens).ask)

    return run


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", COMMIT])
def test_a_reference_becomes_a_file_pinned_to_its_commit(hosts, resolve, revision):
    remote = resolve(HuggingFaceFile("org/open", PATH, revision))
    quoted = "a%20folder/tiny%20%231.safetensors"
    assert remote == RemoteFile(
        url=f"{hosts.huggingface}/org/open/resolve/{COMMIT}/{quoted}",
        filename="tiny #1.safetensors",
        source=f"hf://org/open@{COMMIT}/{PATH}",
        size=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        title=f"org/open/{PATH}",
    )
    # The signed URL is good for a GET only.
    assert [(one.role, one.method) for one in hosts.requests] == [("huggingface", "HEAD")]


def test_a_file_outside_lfs_has_no_sha256_and_a_renamed_repository_is_followed(hosts, resolve):
    target = "/org/open/resolve/main/small.safetensors"
    hosts.fault("redirect_to", path="/old/", url=target)
    remote = resolve(HuggingFaceFile("old/name", "small.safetensors"))
    assert (remote.size, remote.sha256) == (len(DATA), None)
    assert COMMIT in remote.url


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
def test_each_refusal_has_its_meaning(hosts, resolve, case):
    repo, revision, token, kind, message, hint = case
    token = getattr(hosts, token, token) if token else None
    with pytest.raises(WorkerError) as caught:
        resolve(HuggingFaceFile(repo, "a.safetensors", revision), token)
    error = caught.value
    assert type(error) is kind
    assert error.message.startswith(f"{repo}/a.safetensors (revision {revision}): ")
    assert message in error.message
    assert hint in error.hint
    assert not any(secret in str(error) for secret in hosts.planted_secrets)


def test_a_redirect_to_another_site_is_refused(hosts, resolve):
    hosts.fault("redirect_to", path="/org/", url=f"{hosts.web}/elsewhere?token=secret")
    with pytest.raises(ModelHostFailed, match="does not come from Hugging Face") as caught:
        resolve(HuggingFaceFile("org/open", PATH))
    assert "secret" not in str(caught.value)
    assert hosts.count("web") == 0


STATUSES = [
    (401, {}, b"", ModelLoginRequired, "requires a login"),
    (403, {}, b"", ModelForbidden, "refuses it"),
    (404, {}, b"", ModelNotFound, "(404)"),
    (404, {"X-Error-Code": "EntryNotFound"}, b"", ModelNotFound, "no such file"),
    (429, {}, b"", ModelRateLimited, "(429)"),
    (451, {}, b"", ModelRegionBlocked, "(451)"),
    *((code, {}, b"", ModelHostFailed, f"has failed ({code})") for code in (500, 503)),
    (403, {}, b"<?xml?><Error/>", ModelHostFailed, "storage"),
    (200, {}, b"<html>", ModelHostFailed, "does not come from Hugging Face"),
    (418, {}, b"", ModelHostFailed, "(418)"),
]
REMOTE = RemoteFile("https://huggingface.co/o/r/resolve/0/a", "a", "hf://o/r@0/a")


@pytest.mark.parametrize(("status", "headers", "body", "kind", "message"), STATUSES)
def test_each_status_of_a_download_has_its_meaning(status, headers, body, kind, message):
    error = HuggingFace().refusal(Document(status, headers, body), REMOTE)
    assert type(error) is kind
    assert error.message.startswith("hf://o/r@0/a: ")
    assert message in error.message


NAMES = ["X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "Content-Length", "X-Error-Code"]
VALUES = st.text() | st.sampled_from([COMMIT, "1", '"' + "AB" * 32 + '"', "²", "9" * 5000])


@given(st.sampled_from([200, 302]), st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_odd_headers_are_refused_or_ignored(status, headers):
    ref, document = HuggingFaceFile("o/r", "a.pt"), Document(status, headers, b"")
    if headers.get("X-Repo-Commit") != COMMIT:
        with pytest.raises(WorkerError):
            HuggingFace().resolve(ref, lambda *_, **__: document)
        return
    remote = HuggingFace().resolve(ref, lambda *_, **__: document)
    assert remote.url == f"https://huggingface.co/o/r/resolve/{COMMIT}/a.pt"
    assert remote.sha256 in {None, "ab" * 32}
