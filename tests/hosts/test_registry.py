import pytest

from worker.config.settings import Settings
from worker.errors import (
    ModelFileInvalid,
    ModelForbidden,
    ModelHostFailed,
    ModelNotFound,
    ModelRateLimited,
)
from worker.hosts.civitai import CivitAI, CivitAIModel, CivitAIVersion
from worker.hosts.huggingface import HuggingFace, HuggingFaceFile
from worker.hosts.ref import Sha256
from worker.hosts.registry import HOSTS, Hosts
from worker.hosts.web import AnyHost, WebFile
from worker.http.document import Document
from worker.job.reference import StoreName

CIVITAI, RED, HF = "https://civitai.com", "https://civitai.red", "https://huggingface.co"


REFS = {
    CivitAI: [CivitAIVersion(1), CivitAIModel(1), Sha256("ab" * 32)],
    HuggingFace: [HuggingFaceFile("org/repo", "a.pt")],
    AnyHost: [WebFile("https://example.com/a")],
}


def test_each_reference_has_its_host_and_another_one_is_a_bug():
    hosts = Hosts.from_settings(Settings.from_environ({}))
    for host, refs in REFS.items():
        assert {type(hosts.of(ref)) for ref in refs} == {host}
    for host in (CivitAI, HuggingFace):
        with pytest.raises(TypeError):
            host().resolve(StoreName("a"), None)


def test_a_missing_or_second_host_for_a_reference_is_found_at_the_start():
    for missing in HOSTS:
        with pytest.raises(TypeError, match="no host resolves"):
            Hosts(host() for host in HOSTS if host is not missing)
    with pytest.raises(TypeError, match="two hosts resolve WebFile"):
        Hosts([*(host() for host in HOSTS), AnyHost()])


@pytest.mark.parametrize(
    ("environ", "tokens"),
    [
        ({}, {}),
        ({"CIVITAI_API_KEY": "k", "HF_TOKEN": "t"}, {CIVITAI: "k", RED: "k", HF: "t"}),
        ({"CIVITAI_API_KEY": "k", "CIVITAI_URL": "http://m:1"}, {"http://m:1": "k"}),
        ({"HF_TOKEN": "t", "HF_ENDPOINT": "http://m:2"}, {"http://m:2": "t"}),
    ],
)
def test_each_host_has_the_tokens_of_the_settings(environ, tokens):
    assert Hosts.from_settings(Settings.from_environ(environ)).tokens == tokens


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, ModelForbidden) for status in (401, 402, 403, 407, 451)),
        *((status, ModelNotFound) for status in (404, 410)),
        *[(429, ModelRateLimited), (416, ModelFileInvalid), (500, ModelHostFailed)],
    ],
)
def test_each_status_of_any_host_has_its_meaning(status, kind):
    remote = AnyHost().resolve(WebFile("https://example.com/a?sig=secret"), None)
    error = AnyHost().refusal(Document(status, {}, b"secret"), remote)
    assert type(error) is kind
    assert str(error).startswith(f"{kind.code}: https://example.com/a: ")
    assert remote.filename == "a"
    assert "secret" not in f"{error}{remote!r}"  # a host may have signed the URL
