import json

import pytest
from fakes.hosts.model_hosts import ModelHosts
from hypothesis import given
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
from worker.http.client import Document, SafeHttpClient
from worker.job.reference import CivitAIModel, CivitAIVersion, Sha256, StoreName
from worker.models.hosts.civitai import CivitAI
from worker.models.hosts.civitai_api import remote_file
from worker.models.hosts.host import RemoteFile

DATA = b"weights"
FRONT = "https://civitai.com"
DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def running_hosts():
    with ModelHosts() as hosts:
        hosts.add_model(
            version_id=100,
            data=DATA,
            model_id=7,
            name="tiny.safetensors",
            kind="LORA",
            base_model="SDXL 1.0",
            trained_words=[" fox ", "", "red fox", "fox"],
            file_id=900,
        )
        hosts.add_model(version_id=200, data=b"hidden", red_only=True)
        yield hosts


@pytest.fixture
def hosts(running_hosts):
    running_hosts.no_faults()
    running_hosts.forget_requests()
    return running_hosts


def civitai(hosts, key=None, mirror=True):
    fronts = [hosts.civitai, hosts.civitai_red]
    trusted = [url.rpartition("/")[2] for url in (*fronts, hosts.storage)]
    http = SafeHttpClient(trusted, dict.fromkeys(fronts, key) if key else {})
    return CivitAI(http, *fronts[: 2 if mirror else 1]), http


# What is asked, and what comes of it.


def digest_of(hosts):
    return civitai(hosts)[0].resolve(CivitAIVersion(100)).sha256


@pytest.mark.parametrize("ref", [CivitAIVersion(100), CivitAIVersion(100, 900), CivitAIModel(7)])
def test_a_reference_becomes_the_file(hosts, ref):
    remote = civitai(hosts)[0].resolve(ref)

    assert remote == RemoteFile(
        url=f"{hosts.civitai}/api/download/models/100?fileId=900",
        filename="tiny.safetensors",
        source="civitai:7@100+900",
        size=len(DATA),
        sha256=digest_of(hosts),
        role="lora",
        title="Model 7 \N{EN DASH} v100",
        family="SDXL 1.0",
        trained_words=("fox", "red fox"),
    )


def test_a_hash_becomes_the_file_with_that_hash(hosts):
    remote = civitai(hosts)[0].resolve(Sha256(digest_of(hosts)))

    assert remote.source == "civitai:7@100+900"


def test_the_url_gives_the_file_to_a_known_key(hosts):
    host, http = civitai(hosts, hosts.civitai_key)

    with http.open(host.resolve(CivitAIVersion(100)).url) as reply:
        assert (reply.status, reply.read(100)) == (200, DATA)


def test_what_one_front_hides_the_other_knows_and_gives(hosts):
    remote = civitai(hosts)[0].resolve(CivitAIVersion(200))

    assert remote.url.startswith(f"{hosts.civitai_red}/api/download/models/200?")
    assert [request.role for request in hosts.requests] == ["civitai", "civitai_red"]


MISSING = [
    (CivitAIVersion(404), "CivitAI model version 404", "deleted, unpublished, or hidden"),
    (CivitAIModel(404), "CivitAI model 404", "deleted, unpublished, or hidden"),
    (Sha256(DIGEST), f"{DIGEST} is neither in the model store nor known", "Check the hash"),
    (CivitAIVersion(100, 5), "has no file 5", "900 'tiny.safetensors' (model, safetensor, 0 MB)"),
]


@pytest.mark.parametrize(("ref", "message", "hint"), MISSING)
def test_what_is_not_there(hosts, ref, message, hint):
    with pytest.raises(ModelNotFound) as caught:
        civitai(hosts)[0].resolve(ref)

    assert message in caught.value.message
    assert hint in caught.value.hint


def test_without_a_mirror_one_front_is_asked(hosts):
    with pytest.raises(ModelNotFound):
        civitai(hosts, mirror=False)[0].resolve(CivitAIVersion(200))

    assert hosts.count() == 1


def test_anothers_reference_is_a_bug(hosts):
    with pytest.raises(TypeError):
        civitai(hosts)[0].resolve(StoreName("a"))


# What an answer means.

KEYLESS, KEYED = False, True
R2_EXPIRED = {"status": 400, "body": "<?xml version='1.0'?><Error><Code>ExpiredRequest</Code>"}
B2_EXPIRED = {"status": 401, "body": '{"code": "expired_auth_token", "status": 401}'}
FAULTS = [
    ("login_required", {}, KEYLESS, ModelLoginRequired, "none is set", "Set CIVITAI_API_KEY"),
    ("login_required", {}, KEYED, ModelLoginRequired, "not accepted", "a token inside a URL"),
    ("downloads_disabled", {}, KEYED, ModelForbidden, "disabled downloads", "another"),
    ("early_access", {}, KEYED, ModelEarlyAccess, "until 2099-01-01 00:00 UTC", "Buy access"),
    ("early_access", {"deadline": None}, KEYED, ModelEarlyAccess, "without an end", "Buy access"),
    ("no_access", {}, KEYED, ModelForbidden, "this key or address", "Ask its creator"),
    ("forbidden", {}, KEYED, ModelForbidden, "It says: 'Forbidden'", "Ask its creator"),
    ("cloudflare_challenge", {}, KEYED, ModelHostFailed, "for a robot (403)", "another address"),
    ("not_found", {}, KEYED, ModelNotFound, "does not have it", "deleted, unpublished"),
    ("archived", {}, KEYED, ModelArchived, "is archived", "Use another version"),
    ("rate_limited", {}, KEYED, ModelRateLimited, "unusual amount", "Wait"),
    ("rate_limited", {"html": True}, KEYED, ModelRateLimited, "(429).", "Wait"),
    ("region_blocked", {}, KEYED, ModelRegionBlocked, "region", "another region"),
    ("server_error", {"status": 500}, KEYED, ModelHostFailed, "fake error 500", "again"),
    ("server_error", {"status": 503}, KEYED, ModelHostFailed, "has failed (503)", "again"),
    ("login_page", {}, KEYED, ModelHostFailed, "a web page", "check CIVITAI_API_KEY"),
    ("status", {"status": 418}, KEYED, ModelHostFailed, "418, which has no known meaning", "again"),
    ("status", R2_EXPIRED, KEYED, ModelHostFailed, "storage", "again"),
    ("status", B2_EXPIRED, KEYED, ModelHostFailed, "storage", "again"),
]


def error_of_download(hosts, key):
    host, http = civitai(hosts, key)
    remote = host.resolve(CivitAIVersion(100))
    with http.open(remote.url) as reply:
        return host.refusal(reply.document(), remote)


def error_of_resolve(hosts, key):
    with pytest.raises(WorkerError) as caught:
        civitai(hosts, key)[0].resolve(CivitAIVersion(100))
    return caught.value


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_each_refusal_has_its_meaning(hosts, case):
    fault, params, keyed, kind, message, hint = case
    hosts.fault(fault, path="/api/download/", **params)

    error = error_of_download(hosts, "a-key" if keyed else None)

    assert type(error) is kind
    assert error.message.startswith("civitai:7@100+900 ('Model 7 \N{EN DASH} v100'): ")
    assert message in error.message
    assert hint in error.hint


RESOLVE_FAULTS = [
    ("login_required", {}, ModelLoginRequired),
    ("forbidden", {}, ModelForbidden),
    ("region_blocked", {}, ModelRegionBlocked),
    ("html", {}, ModelHostFailed),
    ("status", {"status": 200, "body": "[]", "kind": "application/json"}, ModelHostFailed),
    ("status", {"status": 200, "body": '"', "kind": "application/json"}, ModelHostFailed),
]


@pytest.mark.parametrize(("fault", "params", "kind"), RESOLVE_FAULTS)
def test_the_metadata_api_refuses_alike(hosts, fault, params, kind):
    hosts.fault(fault, path="/api/v1/", **params)

    error = error_of_resolve(hosts, "a-key")

    assert type(error) is kind
    assert error.message.startswith("CivitAI model version 100: ")


@pytest.mark.parametrize("where", ["/api/v1/", "/api/download/"])
def test_what_a_host_echoes_tells_no_secret(hosts, where):
    key = "0123456789abcdef0123456789abcdef"
    said = {"error": "x " * 90 + f"Bearer {key}", "message": f"https://r2/?X-Amz-Signature={key}"}
    for text in (said, {"error": said["error"]}):
        hosts.no_faults()
        hosts.fault("status", path=where, status=418, body=json.dumps(text))
        error = (error_of_resolve if where == "/api/v1/" else error_of_download)(hosts, key)

        assert "It says" in error.message
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


def chosen(said, ref=None, has_key=True):
    remote = remote_file(ref or CivitAIVersion(100), said, FRONT, has_key=has_key)
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
def test_our_own_choice(files):
    assert chosen(answer(*files)) == 2
    assert chosen(answer(*reversed(files))) == 2


THREE = (
    file(1, primary=True, size="full", fp="fp32", hashes={"SHA256": "CD" * 32}),
    file(2, type_="Pruned Model", size="pruned", fp="fp16", hashes={"SHA256": "AB" * 32}),
    file(3, type_="VAE"),
    pickle_file(4, size="full", fp="fp16"),
)
ASKED = [
    (CivitAIVersion(100), 1, "checkpoint"),
    (CivitAIVersion(100, 2), 2, "checkpoint"),
    (CivitAIVersion(100, 3), 3, "vae"),
    (CivitAIVersion(100, filters=(("type", "VAE"),)), 3, "vae"),
    (CivitAIVersion(100, filters=(("fp", "FP16"), ("size", "pruned"))), 2, "checkpoint"),
    (CivitAIVersion(100, filters=(("format", "pickletensor"),)), 4, "checkpoint"),
    (CivitAIVersion(100, filters=(("quantType", "Q4"),)), 1, "checkpoint"),  # no file says
    (Sha256(DIGEST), 2, "checkpoint"),
]


@pytest.mark.parametrize(("ref", "id_", "role"), ASKED)
def test_the_callers_choice(ref, id_, role):
    remote = remote_file(ref, answer(*THREE), FRONT, has_key=True)

    assert (remote.source, remote.role) == (f"civitai:7@100+{id_}", role)


def test_a_model_means_its_first_published_version_with_files():
    versions = [
        {"id": 1, "files": []},
        {"id": 2, "status": "Draft", "files": [file()]},
        {"id": 3, "status": "Published", "files": [file()]},
        {"id": 4, "files": [file()]},
    ]
    said = {"id": 7, "name": "Jib Mix", "type": "Checkpoint", "modelVersions": versions}

    assert remote_file(CivitAIModel(7), said, FRONT, has_key=True).source == "civitai:7@3+1"


TYPES = [
    ("Checkpoint", "checkpoint"),
    ("LORA", "lora"),
    ("LoCon", "lora"),
    ("DoRA", "lora"),
    ("VAE", "vae"),
    ("TextualInversion", "embedding"),
]


@pytest.mark.parametrize(("type_", "role"), TYPES)
def test_the_models_type_is_the_role(type_, role):
    said = answer(file(), type_=type_)

    assert remote_file(CivitAIVersion(100), said, FRONT, has_key=True).role == role


def test_a_negative_embedding_is_one():
    said = answer(file(1, type_="Negative"), type_="TextualInversion")

    assert remote_file(CivitAIVersion(100), said, FRONT, has_key=True).role == "embedding"


DANGER, PENDING = {"virusScanResult": "Danger"}, {"pickleScanResult": "Pending"}
EARLY = {"availability": "EarlyAccess", "earlyAccessEndsAt": "2999-01-02T03:04:05.678Z"}
FILTER = CivitAIVersion(100, filters=(("fp", "fp8"),))
NOT_OFFERED = [
    (answer(file(**DANGER)), ModelUnsafe, "virus scan calls the file 1 'a.safetensors'"),
    (answer(pickle_file(**PENDING)), ModelUnsafe, "has not passed CivitAI's pickle scan (Pending)"),
    (answer(pickle_file(virusScanResult=None)), ModelUnsafe, "virus scan (no result)"),
    (answer(file(1, "a.ckpt", **PENDING)), ModelUnsafe, "has not passed"),  # no safetensors
    (answer(file(fmt="GGUF", name="a.gguf")), ModelNotSupported, "'a.gguf' (model, gguf)"),
    (answer(file(fmt="Diffusers")), ModelNotSupported, "(model, diffusers)"),
    (answer(file(), type_="Controlnet"), ModelNotSupported, "is of type 'Controlnet'"),
    (answer(file(), mode="Archived"), ModelArchived, "('Jib Mix \N{EN DASH} v2') is archived"),
    (answer(), ModelArchived, "has no files any more"),
    (answer(file(), mode="TakenDown"), ModelNotFound, "was taken down"),
    (answer(file(), usageControl="Generation"), ModelForbidden, "disabled downloads"),
    (answer(file(), **EARLY), ModelEarlyAccess, "until 2999-01-02 03:04 UTC, and no key is set"),
    (answer(file(), paidAccess={"permanent": True}), ModelEarlyAccess, "without an end"),
    (answer(file(), paidAccess={"endsAt": "2999-01-02"}), ModelEarlyAccess, "until 2999-01-02"),
    (answer(file(), type_=None), ModelHostFailed, "what sort of model"),
    (answer({"name": "a"}), ModelHostFailed, "no number as `id`"),
    ([], ModelHostFailed, "what sort of model"),
]


@pytest.mark.parametrize(("said", "kind", "message"), NOT_OFFERED)
def test_what_is_not_offered_is_refused_before_the_download(said, kind, message):
    with pytest.raises(WorkerError) as caught:
        chosen(said, has_key=False)

    assert type(caught.value) is kind
    assert message in caught.value.message


def test_a_contradicted_filter_lists_what_there_is():
    said = answer(file(1, fp="fp16", sizeKB=2_000_000), file(2, fp="fp32"))

    with pytest.raises(ModelNotFound, match="no file with fp=fp8") as caught:
        chosen(said, FILTER)

    assert "1 'a.safetensors' (model, safetensor, 2048 MB); 2" in caught.value.hint


ALLOWED = [
    (answer(file(**PENDING)), False),  # safetensors cannot run code
    (answer(file(virusScanResult="Error")), False),
    (answer(file(), **EARLY), True),  # its owner may have bought it
    (answer(file(), **EARLY | {"earlyAccessEndsAt": "2020-01-01T00:00:00Z"}), False),
    (answer(file(), paidAccess={"permanent": False, "endsAt": "2020-01-01"}), False),
    (answer(file(), usageControl=None), False),
]


@pytest.mark.parametrize(("said", "has_key"), ALLOWED)
def test_what_may_work_is_tried(said, has_key):
    assert chosen(said, has_key=has_key) == 1


SIZES = [(1.5, 1536), (0, None), (-1, None), ("1", None), (float("inf"), None), (10**400, None)]


@pytest.mark.parametrize(("said", "size"), [*SIZES, (float("nan"), None), (None, None)])
def test_only_a_possible_size_is_believed(said, size):
    said = answer(file(sizeKB=said))

    assert remote_file(CivitAIVersion(100), said, FRONT, has_key=True).size == size


# Foreign JSON may be anything.

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
    said = answer(one, **EARLY, paidAccess={"endsAt": "2020-01-01"}, trainedWords=["a"])
    said["model"] = spoilt(said["model"])
    model = {**said["model"], "id": 7, "modelVersions": [spoilt(said)]}
    return spoilt(draw(st.sampled_from([said, model])))


@given(REFS, ODD | nearly_good())
def test_odd_answers_raise_nothing_but_our_errors(ref, said):
    try:
        remote = remote_file(ref, said, FRONT, has_key=False)
    except WorkerError as error:
        str(error).encode()
    else:
        assert remote.url.startswith(f"{FRONT}/api/download/models/")
        f"{remote.filename}{remote.title}{remote.trained_words}".encode()


INTERNET = SafeHttpClient()


@given(st.integers(100, 599), ODD.map(json.dumps).map(str.encode) | st.binary(max_size=20))
def test_odd_refusals_are_our_errors(status, body):
    remote = RemoteFile(f"{FRONT}/api/download/models/1", "a", "civitai:1@1+1")

    error = CivitAI(INTERNET).refusal(Document(status, {}, body), remote)

    assert error.message.startswith("civitai:1@1+1: ")
    assert error.details["status"] == status
