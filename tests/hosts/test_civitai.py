import json

import pytest
from fakes.hosts.fixtures import client_for
from fakes.hosts.model_hosts import ModelHosts
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import (
    ModelArchived,
    ModelEarlyAccess,
    ModelForbidden,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelNotSupported,
    ModelRateLimited,
    ModelRegionBlocked,
    ModelUnsafe,
    WorkerError,
)
from worker.hosts.civitai import CivitAI
from worker.hosts.civitai_api import CivitAIModel, CivitAIVersion, remote_file
from worker.hosts.host import RemoteFile
from worker.hosts.ref import Sha256
from worker.http.document import Document

DATA = b"weights"
FRONT = "https://civitai.com"
DIGEST = "ab" * 32
VERSION = CivitAIVersion(100)


@pytest.fixture(scope="module")
def running_hosts():
    described = {"name": "tiny.safetensors", "kind": "LORA", "base_model": "SDXL 1.0"}
    words = [" fox ", "", "red fox", "fox"]
    with ModelHosts() as hosts:
        hosts.add_model(
            version_id=100, data=DATA, model_id=7, file_id=900, trained_words=words, **described
        )
        hosts.add_model(version_id=200, data=b"hidden", red_only=True)
        yield hosts


@pytest.fixture
def resolve(hosts):
    """Resolve a reference at the fake; `key` is the worker's, `fronts` how many it asks."""

    def run(ref, key=None, fronts=2):
        host = CivitAI(*[hosts.civitai, hosts.civitai_red][:fronts], key=key)
        return host.resolve(ref, client_for(hosts, tokens=host.tokens).ask)

    return run


# What is asked, and what the answer means.


@pytest.mark.parametrize("ref", [VERSION, CivitAIVersion(100, 900), CivitAIModel(7), Sha256])
def test_a_reference_becomes_the_file(hosts, resolve, ref):
    digest = resolve(VERSION).sha256
    remote = resolve(Sha256(digest) if ref is Sha256 else ref)
    assert remote == RemoteFile(
        url=f"{hosts.civitai}/api/download/models/100?fileId=900",
        filename="tiny.safetensors",
        source="civitai:7@100+900",
        size=len(DATA),
        sha256=digest,
        role="lora",
        title="Model 7 \N{EN DASH} v100",
        family="SDXL 1.0",
        trained_words=("fox", "red fox"),
    )


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_model_that_one_front_hides_is_found_at_the_other_if_there_is_one(hosts, resolve, fronts):
    if fronts == 2:
        url = resolve(CivitAIVersion(200)).url
        assert url.startswith(f"{hosts.civitai_red}/api/download/models/200?")
    else:  # a mirror
        with pytest.raises(ModelNotFound):
            resolve(CivitAIVersion(200), fronts=1)
    assert [one.role for one in hosts.requests] == ["civitai", "civitai_red"][:fronts]


MISSING = [
    (CivitAIVersion(404), "CivitAI model version 404", "deleted, unpublished, or hidden"),
    (CivitAIModel(404), "CivitAI model 404", "deleted, unpublished, or hidden"),
    (Sha256(DIGEST), f"{DIGEST} is neither in the model store nor known", "Check the hash"),
    (CivitAIVersion(100, 5), "has no file 5", "900 'tiny.safetensors' (model, safetensor, 0 MB)"),
]


@pytest.mark.parametrize(("ref", "message", "hint"), MISSING)
def test_a_missing_model_is_not_found(resolve, ref, message, hint):
    with pytest.raises(ModelNotFound) as caught:
        resolve(ref)
    assert message in caught.value.message
    assert hint in caught.value.hint


# Refusals.

KEYLESS, KEYED = None, "a-key"
R2_EXPIRED = {"status": 400, "body": "<?xml version='1.0'?><Error><Code>ExpiredRequest</Code>"}
B2_EXPIRED = {"status": 401, "body": '{"code": "expired_auth_token", "status": 401}'}
FAULTS = [
    ("login_required", {}, KEYLESS, ModelLoginRequired, "none is set", "Set CIVITAI_API_KEY"),
    ("login_required", {}, KEYED, ModelLoginRequired, "not accepted", "a token inside a URL"),
    ("downloads_disabled", {}, KEYED, ModelForbidden, "disabled downloads", "another"),
    ("early_access", {}, KEYED, ModelEarlyAccess, "until 2099-01-01 00:00 UTC", "Buy access"),
    ("early_access", {"deadline": None}, KEYED, ModelEarlyAccess, "without an end", "Buy access"),
    ("no_access", {}, KEYED, ModelForbidden, "this key or address", "Ask the model's creator"),
    ("forbidden", {}, KEYED, ModelForbidden, "CivitAI's message: 'Forbidden'", "Ask the model's"),
    ("cloudflare_challenge", {}, KEYED, ModelHostFailed, "as a robot (403)", "another IP address"),
    ("not_found", {}, KEYED, ModelNotFound, "does not have it", "deleted, unpublished"),
    ("archived", {}, KEYED, ModelArchived, "is archived", "Use another version"),
    ("rate_limited", {}, KEYED, ModelRateLimited, "unusual amount", "Wait"),
    ("rate_limited", {"html": True}, KEYED, ModelRateLimited, "(429).", "Wait"),
    ("region_blocked", {}, KEYED, ModelRegionBlocked, "region", "another region"),
    ("server_error", {"status": 500}, KEYED, ModelHostFailed, "fake error 500", "again"),
    ("server_error", {"status": 503}, KEYED, ModelHostFailed, "has failed (503)", "again"),
    ("login_page", {}, KEYED, ModelHostFailed, "a web page", "check CIVITAI_API_KEY"),
    ("status", {"status": 418}, KEYED, ModelHostFailed, "unexpected status 418", "again"),
    ("status", R2_EXPIRED, KEYED, ModelHostFailed, "storage", "again"),
    ("status", B2_EXPIRED, KEYED, ModelHostFailed, "storage", "again"),
]


def refusal_of_download(hosts, resolve, key):
    host, remote = CivitAI(hosts.civitai, key=key), resolve(VERSION)
    with client_for(hosts, tokens=host.tokens).open(remote.url) as reply:
        return host.refusal(reply.document(), remote)


def refusal_of_resolve(_hosts, resolve, key):
    with pytest.raises(WorkerError) as caught:
        resolve(VERSION, key)
    return caught.value


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_each_refusal_of_a_download_has_its_meaning(hosts, resolve, case):
    fault, params, key, kind, message, hint = case
    hosts.fault(fault, path="/api/download/", **params)
    error = refusal_of_download(hosts, resolve, key)
    assert type(error) is kind
    assert error.message.startswith("civitai:7@100+900 ('Model 7 \N{EN DASH} v100'): ")
    assert message in error.message
    assert hint in error.hint


JSON = {"status": 200, "kind": "application/json"}
RESOLVE_FAULTS = [
    ("login_required", {}, ModelLoginRequired),
    ("forbidden", {}, ModelForbidden),
    ("region_blocked", {}, ModelRegionBlocked),
    ("html", {}, ModelHostFailed),
    *(("status", {"body": body, **JSON}, ModelHostFailed) for body in ("[]", '"')),
]


@pytest.mark.parametrize(("fault", "params", "kind"), RESOLVE_FAULTS)
def test_each_refusal_of_the_metadata_has_the_same_meaning(hosts, resolve, fault, params, kind):
    hosts.fault(fault, path="/api/v1/", **params)
    error = refusal_of_resolve(hosts, resolve, "a-key")
    assert type(error) is kind
    assert error.message.startswith("CivitAI model version 100: ")


@pytest.mark.parametrize("refusal", [refusal_of_download, refusal_of_resolve])
def test_a_quotation_of_the_host_contains_no_secret(hosts, resolve, refusal):
    key = "0123456789abcdef0123456789abcdef"
    echo = {"error": "x " * 90 + f"Bearer {key}", "message": f"https://r2/?X-Amz-Signature={key}"}
    where = "/api/download/" if refusal is refusal_of_download else "/api/v1/"
    for answer in (echo, {"error": echo["error"]}):
        hosts.reset()
        hosts.fault("status", path=where, status=418, body=json.dumps(answer))
        error = refusal(hosts, resolve, key)
        assert "CivitAI's message" in error.message
        assert "0123456" not in f"{error!s} {error!r} {error.details}"


# Which file.


def file(id_=1, name="a.safetensors", type_="Model", fmt="SafeTensor", **fields):
    meta = {"format": fmt, "size": fields.pop("size", None), "fp": fields.pop("fp", None)}
    passed = {"virusScanResult": "Success", "pickleScanResult": "Success"}
    return {"id": id_, "name": name, "type": type_, "metadata": meta, **passed, **fields}


def answer(*files, type_="Checkpoint", mode=None, **fields):
    model = {"name": "Jib Mix", "type": type_, "mode": mode}
    shown = {"id": 100, "modelId": 7, "name": "v2", "model": model, "files": list(files)}
    return shown | fields


def chosen(metadata, ref=VERSION, has_key=True):
    remote = remote_file(ref, metadata, FRONT, has_key=has_key)
    return int(remote.url.rpartition("=")[2])


def pickle_file(id_=1, **fields):
    return file(id_, "a.ckpt", fmt="PickleTensor", **fields)


CHOICES = {
    "safetensors before a primary pickle": (pickle_file(1, primary=True), file(2)),
    "primary before pruned": (file(1, size="pruned", fp="fp16"), file(2, primary=True)),
    "pruned before full": (file(1, size="full", fp="fp16"), file(2, size="pruned", fp="fp32")),
    "fp16 before fp32": (file(1, size="full", fp="fp32"), file(2, size="full", fp="fp16")),
    "the lowest id of equal ones": (file(3), file(2)),
    "no training data": (file(1, type_="Training Data", primary=True), file(2)),
    "no config": (file(1, "a.yaml", "Config", "Other"), pickle_file(2)),
    "no VAE of a checkpoint": (file(1, type_="VAE", primary=True), file(2)),
    "no GGUF": (file(1, "a.gguf", fmt="GGUF", primary=True), file(2)),
    "the format by the name where none is given": (file(1, "a.pt", fmt=None), file(2, fmt=None)),
    "the suffix tells a pickle from safetensors": (file(1, "a.ckpt", primary=True), file(2)),
    "a lonely pickle": (file(1, type_="Archive"), pickle_file(2)),
}


@pytest.mark.parametrize("files", CHOICES.values(), ids=CHOICES)
def test_the_best_file_is_chosen_whatever_their_order(files):
    assert chosen(answer(*files)) == 2
    assert chosen(answer(*reversed(files))) == 2


FOUR = (
    file(1, primary=True, size="full", fp="fp32", hashes={"SHA256": "CD" * 32}),
    file(2, type_="Pruned Model", size="pruned", fp="fp16", hashes={"SHA256": "AB" * 32}),
    file(3, type_="VAE"),
    pickle_file(4, size="full", fp="fp16"),
)
ASKED = [
    (VERSION, 1, "checkpoint"),
    (CivitAIVersion(100, 2), 2, "checkpoint"),
    (CivitAIVersion(100, 3), 3, "vae"),
    (CivitAIVersion(100, filters=(("type", "VAE"),)), 3, "vae"),
    (CivitAIVersion(100, filters=(("fp", "FP16"), ("size", "pruned"))), 2, "checkpoint"),
    (CivitAIVersion(100, filters=(("format", "pickletensor"),)), 4, "checkpoint"),
    (CivitAIVersion(100, filters=(("quantType", "Q4"),)), 1, "checkpoint"),  # no file has it
    (Sha256(DIGEST), 2, "checkpoint"),
]


@pytest.mark.parametrize(("ref", "id_", "role"), ASKED)
def test_the_caller_can_choose_the_file(ref, id_, role):
    remote = remote_file(ref, answer(*FOUR), FRONT, has_key=True)
    assert (remote.source, remote.role) == (f"civitai:7@100+{id_}", role)


def test_a_model_means_its_first_published_version_with_files():
    states = [{"files": []}, {"status": "Draft"}, {"status": "Published"}, {}]
    versions = [{"id": n, "files": [file()]} | one for n, one in enumerate(states, 1)]
    metadata = MODEL | {"modelVersions": versions}
    assert remote_file(CivitAIModel(7), metadata, FRONT, has_key=True).source == "civitai:7@3+1"


TYPES = {"Checkpoint": "checkpoint", "LORA": "lora", "LoCon": "lora", "DoRA": "lora"}
TYPES |= {"VAE": "vae", "TextualInversion": "embedding"}
FILE_TYPES = [("Model", model, role) for model, role in TYPES.items()]


@pytest.mark.parametrize(
    ("file_type", "model", "role"), [*FILE_TYPES, ("Negative", "TextualInversion", "embedding")]
)
def test_the_models_type_is_the_role(file_type, model, role):
    metadata = answer(file(type_=file_type), type_=model)
    assert remote_file(VERSION, metadata, FRONT, has_key=True).role == role


DANGER, PENDING = {"virusScanResult": "Danger"}, {"pickleScanResult": "Pending"}
EARLY = {"availability": "EarlyAccess", "earlyAccessEndsAt": "2999-01-02T03:04:05.678Z"}
FILTER = CivitAIVersion(100, filters=(("fp", "fp8"),))
NOT_OFFERED = [
    (answer(file(**DANGER)), ModelUnsafe, "virus scan reports 1 'a.safetensors'"),
    (answer(pickle_file(**PENDING)), ModelUnsafe, "has not passed CivitAI's pickle scan (Pending)"),
    (answer(pickle_file(virusScanResult=None)), ModelUnsafe, "virus scan (no result)"),
    (answer(file(1, "a.ckpt", **PENDING)), ModelUnsafe, "has not passed"),  # no safetensors
    (answer(file(fmt="GGUF", name="a.gguf")), ModelNotSupported, "'a.gguf' (model, gguf)"),
    (answer(file(fmt="Diffusers")), ModelNotSupported, "(model, diffusers)"),
    (answer(file(), type_="Upscaler"), ModelNotSupported, "is of type 'Upscaler'"),
    (answer(file(), mode="Archived"), ModelArchived, "('Jib Mix \N{EN DASH} v2') is archived"),
    (answer(), ModelArchived, "no longer has files"),
    (answer(file(), mode="TakenDown"), ModelNotFound, "was taken down"),
    (answer(file(), usageControl="Generation"), ModelForbidden, "disabled downloads"),
    (answer(file(), **EARLY), ModelEarlyAccess, "until 2999-01-02 03:04 UTC, and no key is set"),
    (answer(file(), paidAccess={"permanent": True}), ModelEarlyAccess, "without an end"),
    (answer(file(), paidAccess={"endsAt": "2999-01-02"}), ModelEarlyAccess, "until 2999-01-02"),
    (answer(file(), type_=None), ModelHostFailed, "the type of the model"),
    (answer({"name": "a"}), ModelHostFailed, "no number as `id`"),
    ([], ModelHostFailed, "the type of the model"),
]
MODEL = {"id": 7, "name": "Jib Mix", "type": "Checkpoint", "mode": None}
NOT_THERE = [
    (MODEL | {"modelVersions": []}, CivitAIModel(7), ModelArchived, "no published version"),
    (MODEL, CivitAIModel(7), ModelHostFailed, "no list of versions"),
    (answer(file()), Sha256(DIGEST), ModelNotFound, "no public file with this SHA-256"),
    (answer(file()), CivitAIVersion(100, 9), ModelNotFound, "no file 9"),
]


@pytest.mark.parametrize(
    ("metadata", "ref", "kind", "message"),
    NOT_THERE + [(metadata, VERSION, kind, message) for metadata, kind, message in NOT_OFFERED],
)
def test_a_file_that_is_not_offered_is_refused_before_the_download(metadata, ref, kind, message):
    with pytest.raises(WorkerError) as caught:
        chosen(metadata, ref, has_key=False)
    assert type(caught.value) is kind
    assert message in caught.value.message


def test_a_filter_without_a_match_lists_the_files():
    metadata = answer(file(1, fp="fp16", sizeKB=2_000_000), file(2, fp="fp32"))
    with pytest.raises(ModelNotFound, match="no file with fp=fp8") as caught:
        chosen(metadata, FILTER)
    assert "1 'a.safetensors' (model, safetensor, 2048 MB); 2" in caught.value.hint


ALLOWED = [
    (answer(file(**PENDING)), False),  # safetensors cannot run code
    (answer(file(virusScanResult="Error")), False),
    (answer(file(), **EARLY), True),  # its owner may have bought it
    (answer(file(), **EARLY | {"earlyAccessEndsAt": "2020-01-01T00:00:00Z"}), False),
    (answer(file(), paidAccess={"permanent": False, "endsAt": "2020-01-01"}), False),
    (answer(file(), usageControl=None), False),
]


@pytest.mark.parametrize(("metadata", "has_key"), ALLOWED)
def test_a_file_that_may_be_offered_is_tried(metadata, has_key):
    assert chosen(metadata, has_key=has_key) == 1


INFINITE = (float("inf"), float("nan"), 10**400)


@pytest.mark.parametrize(
    ("kib", "size"), [(1.5, 1536), *((kib, None) for kib in (0, -1, "1", None, *INFINITE))]
)
def test_an_impossible_size_is_ignored(kib, size):
    metadata = answer(file(sizeKB=kib))
    assert remote_file(VERSION, metadata, FRONT, has_key=True).size == size


# Metadata may be any JSON.

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
REFS = st.sampled_from([CivitAIVersion(1), FILTER, CivitAIModel(1), Sha256(DIGEST)])


@st.composite
def nearly_good(draw):
    """A good answer with odd values put in some places."""

    def spoilt(fields):
        odd = draw(st.dictionaries(st.sampled_from(sorted(fields)), ODD, max_size=2))
        return fields | odd

    one = spoilt(file(sizeKB=1, primary=True, hashes={"SHA256": "AB" * 32}))
    metadata = answer(one, **EARLY, paidAccess={"endsAt": "2020-01-01"}, trainedWords=["a"])
    metadata["model"] = spoilt(metadata["model"])
    model = {**metadata["model"], "id": 7, "modelVersions": [spoilt(metadata)]}
    return spoilt(draw(st.sampled_from([metadata, model])))


@settings(max_examples=50)
@given(REFS, ODD | nearly_good())
def test_odd_metadata_raises_only_our_errors(ref, metadata):
    try:
        remote = remote_file(ref, metadata, FRONT, has_key=False)
    except WorkerError as error:
        str(error).encode()
    else:
        assert remote.url.startswith(f"{FRONT}/api/download/models/")
        f"{remote.filename}{remote.title}{remote.trained_words}".encode()


@given(st.integers(100, 599), ODD.map(json.dumps).map(str.encode) | st.binary(max_size=20))
def test_odd_refusals_become_our_errors(status, body):
    remote = RemoteFile(f"{FRONT}/api/download/models/1", "a", "civitai:1@1+1")
    error = CivitAI().refusal(Document(status, {}, body), remote)
    assert error.message.startswith("civitai:1@1+1: ")
    assert error.details["status"] == status
