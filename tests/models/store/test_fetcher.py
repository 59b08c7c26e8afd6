"""From a reference to a verified blob: what is fetched, what is rejected, what is remembered."""

import contextlib
import errno
import functools
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import model_files
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors, sha256
from fakes.model_store import add, fetch, files_below, manager_for
from safetensors import SafetensorError

from worker.errors import (
    MachineExhausted,
    ModelArchived,
    ModelFileInvalid,
    ModelHashMismatch,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelNotSupported,
    ModelRateLimited,
    ModelUnsafe,
    StoreFull,
    WorkerError,
)
from worker.formats import model_file
from worker.http import client as http
from worker.job.reference import Wanted, parse_reference
from worker.job.txt2img import parse as parse_job
from worker.models.store import fetcher, progress
from worker.models.store.blobs import Blobs
from worker.models.store.references import Freshness

LORA = safetensors(model_files.LORA, ss_output_name="fox_v1")
OTHER = safetensors(model_files.LORA, number=2)
LARGE = 24 << 20
FRESH = Freshness()
POOLS = functools.cache(http._pools)


@pytest.fixture(autouse=True)
def _one_set_of_certificates(monkeypatch):
    """Reading them takes longer than most of these tests."""
    monkeypatch.setattr(http, "_pools", POOLS)


@pytest.fixture
def hosts():
    with ModelHosts() as running:
        yield running


@pytest.fixture
def new_worker(hosts, tmp_path, clock):
    """Make the model manager of another worker of the same volume."""
    return lambda **environ: manager_for(hosts, tmp_path, clock, **environ)


@pytest.fixture
def manager(new_worker):
    return new_worker()


@pytest.fixture
def lora(hosts):
    return hosts.add_model(
        version_id=22, model_id=2, data=LORA, name="fox.safetensors", kind="LORA", file_id=222
    )


def left(manager):
    """The files that a fetch has left in the store, except for references."""
    root = manager.store.fetched.root
    return [name for name in files_below(root) if not name.startswith("references/")]


def refused(manager, error, *what, match=None, **wanted):
    """The error of a fetch that leaves nothing."""
    with pytest.raises(error, match=match) as raised:
        fetch(manager, *what, **wanted)
    assert left(manager) == []
    return raised.value


def ensure(manager, *texts, kind="lora"):
    return manager.ensure([Wanted(parse_reference(text), kind) for text in texts])


def lora_job(*texts, **fields):
    return parse_job({"prompt": "x", "loras": list(texts), **fields})


def prepared_lora(manager, text):
    return manager.prepare_models_for_request(lora_job(text))[0].loras[0][0]


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize(
    "text",
    [
        "22",
        "civitai:2",
        "civitai:2@22+222",
        "https://civitai.com/models/2/fox?modelVersionId=22",
        f"sha256:{sha256(LORA)}",
        "org/name/loras/fox.safetensors",
        "{web}/fox.safetensors",
        "{web}/fox.safetensors?token=swordfish",
    ],
)
def test_each_form_of_a_reference_fetches_the_file_once(hosts, manager, text):
    hosts.add_hf("org/name", "loras/fox.safetensors", LORA)
    hosts.add_web("/fox.safetensors", LORA)
    text = text.format(web=hosts.web)
    blob = fetch(manager, text, "lora")
    assert (blob.sha256, blob.path.read_bytes()) == (sha256(LORA), LORA)
    assert (blob.about.kind, blob.about.stem, blob.about.family) == ("lora", "fox", "SD1")
    assert "swordfish" not in blob.path.with_suffix(".json").read_text()
    hosts.forget_requests()
    assert ensure(manager, text) == [blob.as_file()]
    assert hosts.requests == []


def test_the_hosts_answer_is_stored(hosts, manager):
    hosts.add_model(version_id=22, model_id=2, data=LORA, kind="LORA", trained_words=["fox, red"])
    about = fetch(manager, "22", filename="My: LoRA.safetensors").about
    assert about.stem == "My_ LoRA"
    url = "https://civitai.com/api/download/models/22"
    assert (about.source, about.ref) == ("civitai:2@22+900001", url)
    assert (about.title, about.trained_words) == ("Model 2 \N{EN DASH} v22", ("fox, red",))


KINDS = [
    (model_files.SD1, "checkpoint", "SD1"),
    (model_files.SDXL, "checkpoint", "SDXL"),
    (model_files.LORA, "lora", "SD1"),
    (model_files.VAE, "vae", None),
    (model_files.EMBEDDING, "embedding", "SD1"),
]


@pytest.mark.parametrize(("shapes", "kind", "family"), KINDS)
def test_a_file_of_unannounced_kind_is_recognised_by_its_header(
    hosts, manager, shapes, kind, family
):
    url = hosts.add_web("/x.safetensors", safetensors(shapes))
    blob = fetch(manager, url)
    assert (blob.about.kind, blob.about.family) == (kind, family)
    assert manager.store.find(kind, "x") == blob.as_file()


def test_a_file_that_is_no_model_is_refused_by_its_header(hosts, manager):
    url = hosts.add_web("/x.safetensors", safetensors(model_files.UNKNOWN))
    with pytest.raises(ModelNotSupported, match=r"no tensor `model\.diffusion_model\.input_blocks"):
        fetch(manager, url)


NAMES = [
    ('attachment; filename="fox.safetensors"', "fox"),
    ('attachment; filename="../../etc/cron.d/evil.safetensors"', "evil"),
    ('attachment; filename="..\\\\..\\\\evil.safetensors"', "evil"),
    ('attachment; filename="/etc/passwd"', "passwd"),
    ('attachment; filename=".."', "model"),
    ("attachment; filename*=UTF-8''%e7%8c%ab%2f%2e%2e%2ffox.safetensors", "fox"),
    ('attachment; filename="a: <b>#1, [c].safetensors"', "a_ _b_1_ _c_"),
    ('attachment; filename=""', "path"),
    ("nonsense", "path"),
]


@pytest.mark.parametrize(("disposition", "stem"), NAMES)
def test_a_hosts_file_name_cannot_be_a_path(hosts, manager, tmp_path, disposition, stem):
    url = hosts.add_web("/path.safetensors", LORA, content_disposition=disposition)
    before = set(files_below(tmp_path))
    assert fetch(manager, url).about.stem == stem
    new = set(files_below(tmp_path)) - before
    assert [name for name in new if not name.startswith("models/fetched/")] == []
    assert left(manager)[0] == f"Lora/{stem}.safetensors"


def test_the_jobs_hash_must_be_right(hosts, manager):
    url = hosts.add_web("/x.safetensors", LORA)
    error = refused(manager, ModelHashMismatch, url, sha256=sha256(OTHER))
    assert error.details == {"expected": sha256(OTHER), "actual": sha256(LORA)}


def test_the_hosts_hash_must_be_right_unless_the_job_gives_one(hosts, manager):
    hashes = {"SHA256": sha256(OTHER).upper()}
    hosts.add_model(version_id=22, data=LORA, kind="LORA", hashes=hashes)
    refused(manager, ModelHashMismatch, "22")
    assert fetch(manager, "22", sha256=sha256(LORA)).sha256 == sha256(LORA)
    with pytest.raises(ModelHashMismatch):  # the job's hash is not stored for the reference
        fetch(manager, "22")


def test_a_known_hash_needs_no_host(hosts, manager):
    blob = add(manager.store.fetched, LORA)
    assert ensure(manager, f"sha256:{blob.sha256}") == [blob.as_file()]
    url = hosts.add_web("/never.safetensors", b"never")
    assert fetch(manager, url, sha256=blob.sha256).path.read_bytes() == LORA
    assert hosts.requests == []


@pytest.mark.usefixtures("lora")
def test_the_kind_that_the_host_names_is_enough_to_reject(hosts, manager):
    refused(manager, ModelNotSupported, "22", "checkpoint", match=r"is a LoRA.*field `loras`")
    assert hosts.count("storage") == 0
    fetch(manager, "22")
    with pytest.raises(ModelNotSupported, match="is a LoRA"):
        manager.prepare_models_for_request(lora_job(checkpoint="civitai:2@22"))


@pytest.mark.parametrize(
    ("name", "error"),
    [(f"x.{suffix}", ModelNotSupported) for suffix in ("gguf", "zip", "onnx", "yaml")]
    + [(f"x.{suffix}", ModelUnsafe) for suffix in ("ckpt", "pt", "BIN")],
)
def test_the_suffix_is_enough_to_reject(hosts, manager, name, error):
    match = "ALLOW_PICKLES" if error is ModelUnsafe else "cannot load"
    refused(manager, error, hosts.add_web(f"/{name}", LORA), match=match)
    assert hosts.count() == 0


def test_a_pickle_is_fetched_if_the_operator_allows_it(hosts, new_worker):
    manager = new_worker(ALLOW_PICKLES="true")
    url = hosts.add_web("/old.ckpt", model_files.PICKLE)
    blob = fetch(manager, url, "checkpoint")
    assert blob.path.name == f"{blob.sha256}.ckpt"
    (file,) = ensure(manager, url, kind="checkpoint")
    file.check()
    assert (file.filename, manager.store.find("checkpoint", "old")) == ("old.ckpt", file)
    assert new_worker().store.find("checkpoint", "old") is None


NO_PICKLES = [
    (model_files.HTML, ModelFileInvalid, "a web page, not a model: 'Login'"),
    (b'{"error":"Unauthorized"}', ModelFileInvalid, "a JSON text"),
    (model_files.GGUF, ModelNotSupported, "GGUF"),
    (LORA, ModelFileInvalid, "suffix of a PyTorch pickle"),
    (bytes(1000), ModelFileInvalid, "suffix of a PyTorch pickle"),
]


@pytest.mark.parametrize("name", ["old.ckpt", "old.bin"])
@pytest.mark.parametrize(("data", "error", "message"), NO_PICKLES)
def test_a_file_with_a_pickles_suffix_must_be_a_pickle(
    hosts, new_worker, name, data, error, message
):
    url = hosts.add_web(f"/{name}", data)
    refused(new_worker(ALLOW_PICKLES="true"), error, url, "checkpoint", match=message)


REFUSED = [
    (safetensors(model_files.FLUX, size=LARGE), "checkpoint", ModelNotSupported),
    (safetensors(model_files.LORA, size=LARGE), "checkpoint", ModelNotSupported),
    (safetensors(model_files.SD1, size=LARGE), "lora", ModelNotSupported),
    (safetensors(model_files.FLUX, size=LARGE), None, ModelNotSupported),
    (model_files.GGUF + bytes(LARGE), "checkpoint", ModelNotSupported),
    (model_files.HTML + b" " * LARGE, "checkpoint", ModelFileInvalid),
    (model_files.PICKLE + bytes(LARGE), "checkpoint", ModelUnsafe),
    (safetensors(model_files.SD1, size=LARGE)[:-1], "checkpoint", ModelFileInvalid),
    (safetensors(model_files.SD1, size=LARGE) + b"\0", "checkpoint", ModelFileInvalid),
    (bytes(LARGE), "checkpoint", ModelFileInvalid),
    (b"\xff" * LARGE, "checkpoint", ModelFileInvalid),
]


@pytest.mark.parametrize(("data", "kind", "error"), REFUSED)
def test_an_unusable_file_is_rejected_after_the_first_bytes(hosts, manager, data, kind, error):
    """With the first request for data; at this speed the whole file would take 6 s."""
    hosts.throttle(4 << 20, ttfb=0)
    refused(manager, error, hosts.add_web("/x.safetensors", data), kind)
    hosts.settle()
    assert hosts.count("web") == 1
    assert hosts.bytes_sent() < LARGE


def test_a_small_file_that_is_not_a_model_is_rejected(hosts, manager, monkeypatch):
    def reject(*_, **__):
        raise SafetensorError("invalid offset")

    for number, data in enumerate((b"x", model_files.HTML, LORA[:-1], LORA[:20])):
        refused(manager, ModelFileInvalid, hosts.add_web(f"/{number}.safetensors", data))
    monkeypatch.setattr(model_file, "safe_open", reject)
    url = hosts.add_web("/x.safetensors", LORA)
    refused(manager, ModelFileInvalid, url, match="safetensors library")


def test_a_file_that_does_not_fit_is_rejected_and_leaves_nothing(hosts, new_worker):
    manager = new_worker(MODELS_BUDGET_GB="0.000001")
    refused(manager, StoreFull, hosts.add_web("/x.safetensors", LORA))


REFUSALS = [  # every other one: tests/hosts/test_civitai.py
    ("login_required", {}, ModelLoginRequired),
    ("cloudflare_challenge", {}, ModelHostFailed),
    ("archived", {}, ModelArchived),
    ("rate_limited", {}, ModelRateLimited),
    ("server_error", {"status": 429}, ModelRateLimited),
    ("server_error", {"status": 500}, ModelHostFailed),
    ("server_error", {"status": 503}, ModelHostFailed),
    ("login_page", {}, WorkerError),
    ("redirect_loop", {}, WorkerError),
    ("redirect_to", {"url": "http://10.0.0.1/x"}, WorkerError),
    ("drop", {}, ModelHostFailed),
    ("html", {}, ModelFileInvalid),
]


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("path", ["/api/download/models/22", "/api/v1/model-versions/22"])
@pytest.mark.parametrize(("name", "params", "error"), REFUSALS)
def test_each_refusal_of_civitai_leaves_nothing_behind(
    hosts, manager, name, params, error, path, caplog
):
    fault = hosts.fault(name, **params, **({} if name in {"drop", "html"} else {"path": path}))
    with pytest.raises(error) as raised:
        fetch(manager, "22")
    assert fault.hits
    assert [one for one in left(manager) if not one.endswith(".part")] == []
    if name == "server_error" and "download" in path:  # a job can name twenty models
        assert re.search(rf"civitai:2@22.*CivitAI .*\({params['status']}\)", str(raised.value))
    shown = f"{raised.value} {raised.value.details} {caplog.text}"
    assert not [secret for secret in hosts.planted_secrets if secret in shown]
    hosts.no_faults()
    shutil.rmtree(manager.store.fetched.root / "references", ignore_errors=True)
    assert fetch(manager, "22").path.read_bytes() == LORA


@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_blob_is_fetched_again(hosts, manager, new_worker, lora, restarted):
    path = fetch(manager, "22").path
    path.write_bytes(LORA[:-1])
    worker = new_worker() if restarted else manager
    assert prepared_lora(worker, "civitai:2@22").verified_sha256 == lora.sha256
    assert path.read_bytes() == LORA
    hosts.settle()
    assert hosts.bytes_sent("storage") == 2 * lora.size


def test_an_evicted_blob_is_fetched_again_without_a_question_to_the_host(hosts, manager, lora):
    manager.store.fetched.remove(fetch(manager, "22"))
    hosts.forget_requests()
    assert ensure(manager, "22")[0].verified_sha256 == lora.sha256
    assert hosts.count("civitai", "/api/v1") == 0
    assert hosts.count("civitai", "/api/download") == 1


@pytest.mark.parametrize("text", ["22", "civitai:2", "org/name/x.safetensors", "{web}/x"])
def test_a_refusal_is_remembered_for_a_minute(hosts, new_worker, clock, text):
    hosts.add_hf("org/name", "other.safetensors", LORA)
    for later, is_asked in ((0, True), (0, False), (FRESH.refusal + 1, True)):
        clock.now += later
        hosts.forget_requests()
        with pytest.raises(ModelNotFound):
            fetch(new_worker(), text.format(web=hosts.web))
        assert bool(hosts.requests) is is_asked


@pytest.mark.parametrize("role", ["civitai", "storage"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_was_fetched_earlier_is_used_while_its_host_is_down(
    hosts, manager, new_worker, clock, lora, role, restarted
):
    (first,) = ensure(manager, "civitai:2")
    clock.now += FRESH.content + 1
    hosts.add_model(version_id=23, model_id=2, data=OTHER, kind="LORA")
    lora.version.overrides["status"] = "Unpublished"
    hosts.refuse(role)
    worker = new_worker() if restarted else manager
    for _ in range(2):
        assert ensure(worker, "civitai:2") == [first]
    hosts.accept(role)
    assert ensure(worker, "civitai:2")[0].verified_sha256 == sha256(OTHER)


@pytest.mark.parametrize(
    ("before", "now", "is_fetched"),
    [('"a"', '"a"', False), ('"a"', '"b"', True), ('W/"a"', 'W/"a"', True), ("", "", True)],
)
@pytest.mark.parametrize("query", ["", "?download=true"])
def test_a_web_file_is_fetched_again_unless_its_etag_is_the_same(
    hosts, manager, clock, before, now, is_fetched, query
):
    url = hosts.add_web("/x.safetensors", LORA, etag=before) + query
    first = fetch(manager, url)
    clock.now += FRESH.content + 1
    hosts.add_web("/x.safetensors", LORA, etag=now)
    hosts.forget_requests()
    assert fetch(manager, url).sha256 == first.sha256
    assert (hosts.bytes_sent("web") > 1) == is_fetched
    hosts.forget_requests()
    ensure(manager, url)
    assert not hosts.requests


def test_a_moving_reference_with_the_same_meaning_is_not_fetched_again(hosts, manager, clock):
    hosts.add_hf("org/name", "x.safetensors", LORA)
    fetch(manager, "org/name/x.safetensors")
    clock.now += FRESH.content + 1
    hosts.forget_requests()
    fetch(manager, "org/name/x.safetensors")
    assert [request.role for request in hosts.requests] == ["huggingface"]
    hosts.forget_requests()
    assert ensure(manager, "org/name/x.safetensors")
    assert hosts.requests == []


def test_many_workers_fetch_a_file_once_whose_hash_is_unknown(hosts, new_worker):
    data = safetensors(model_files.LORA, size=2 << 20)
    url = hosts.add_web("/x.safetensors", data)
    hosts.throttle(8 << 20)
    with ThreadPoolExecutor(8) as pool:
        fetches = [pool.submit(fetch, new_worker(), url) for _ in range(8)]
    assert {one.result().sha256 for one in fetches} == {sha256(data)}
    hosts.settle()
    assert hosts.bytes_sent("web") == len(data)


def test_the_meaning_of_a_reference_is_stored_before_the_lease_ends(hosts, manager, monkeypatch):
    """Otherwise the next worker would download the file again."""
    url = hosts.add_web("/x.safetensors", LORA)
    known, real = [], Blobs.lease

    @contextlib.contextmanager
    def lease(self, *arguments):
        with real(self, *arguments) as is_mine:
            yield is_mine
            known.append(manager.fetcher.references.sha256(parse_reference(url)))

    monkeypatch.setattr(Blobs, "lease", lease)
    fetch(manager, url)
    assert known == [sha256(LORA)]


@pytest.fixture
def baked(hosts, tmp_path, new_worker, lora):
    """A worker whose image was built with the LoRA."""
    fetch(new_worker(MODELS_DIR=str(tmp_path / "baked")), f"{lora.version_id}")
    hosts.forget_requests()
    return new_worker()


@pytest.mark.parametrize("text", ["22", "civitai:2@22", f"sha256:{sha256(LORA)}", "fox"])
def test_a_baked_model_needs_no_network(hosts, baked, tmp_path, text):
    assert prepared_lora(baked, text).path.is_relative_to(tmp_path / "baked")
    assert hosts.requests == []
    assert not (tmp_path / "models").exists()


def test_a_fetched_model_does_not_hide_a_baked_one_of_its_name(hosts, baked, tmp_path):
    hosts.add_model(version_id=33, data=OTHER, name="fox.safetensors", kind="LORA")
    models, _ = baked.prepare_models_for_request(lora_job("22", "33"))
    stems = [file.stem for file, _ in models.loras]
    assert stems == ["fox", f"fox-{sha256(OTHER)[:10]}"]
    folder = tmp_path / "webui" / "models" / "Lora"
    contents = [(folder / f"{stem}.safetensors").read_bytes() for stem in stems]
    assert contents == [LORA, OTHER]


def test_only_a_damaged_baked_model_is_downloaded(hosts, baked, tmp_path):
    hosts.add_hf("org/name", "x.safetensors", LORA)
    assert fetch(baked, "org/name/x.safetensors").about.stem == "fox"
    assert hosts.count("hf_cdn") == 0
    (path,) = (tmp_path / "baked" / "fetched" / "blobs").glob("*.safetensors")
    path.write_bytes(b"damaged")
    assert ensure(baked, "22")[0].path.read_bytes() == LORA
    assert hosts.count("storage") > 0


@pytest.mark.usefixtures("lora")
def test_the_second_job_needs_no_network_and_no_new_link(hosts, new_worker, tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "volume")
    data = safetensors(model_files.SD1)
    hosts.add_model(version_id=11, model_id=1, data=data, name="base.safetensors")
    manager, job = new_worker(), lora_job("22", checkpoint="civitai:1@11")
    first, new = manager.prepare_models_for_request(job)
    assert new
    hosts.forget_requests()
    for _ in range(2):
        assert manager.prepare_models_for_request(job) == (first, False)
    assert hosts.requests == []
    linked = ["Lora/fox.safetensors", "Stable-diffusion/base.safetensors"]
    assert files_below(tmp_path / "webui" / "models") == linked


@pytest.mark.usefixtures("lora")
def test_models_of_running_jobs_and_the_loaded_checkpoint_are_pinned(hosts, manager):
    for version, filler in ((11, 1), (12, 2)):
        data = safetensors(model_files.SD1, size=1000 + filler)
        hosts.add_model(version_id=version, model_id=1, data=data, name=f"base{version}")
    jobs = [lora_job("22", checkpoint=f"civitai:1@{version}") for version in (11, 12)]
    (one, _), (other, _) = map(manager.prepare_models_for_request, jobs)
    lora = one.loras[0][0].verified_sha256
    both = {one.checkpoint.verified_sha256, other.checkpoint.verified_sha256}
    assert manager.space.pinned == both | {lora}
    manager.release(one)
    assert manager.space.pinned == both | {lora}
    manager.release(other)
    assert manager.space.pinned == both, "the first in the list is the engine's default"


@pytest.fixture
def later(manager, monkeypatch):
    """Let an hour pass for the store; returns its new time."""

    def later():
        now = round(time.time()) + 3600.0
        monkeypatch.setattr(manager.store.fetched, "_clock", lambda: now)
        return now

    return later


@pytest.mark.usefixtures("lora")
def test_the_jobs_other_models_stay_in_use_while_one_is_fetched(hosts, manager, later, monkeypatch):
    """A large one from a slow host takes longer than a use mark holds."""
    fetch(manager, "22")
    store, fetch_one, marked = manager.store.fetched, manager.fetcher.fetch, []
    quick, slow = (
        hosts.add_web(f"/{name}.safetensors", safetensors(model_files.LORA, number=number))
        for number, name in enumerate(("quick", "slow"), 3)
    )

    def fetch_for_an_hour(wanted, stop):
        if wanted.ref == parse_reference(slow):
            wait_until(lambda: len(list(store.all())) == 2, "the quick download")
            now, stored = later(), list(store.all())
            wait_until(lambda: {*map(store.last_used, stored)} == {now}, "the use marks")
            marked.extend(one.about.stem for one in stored)
        return fetch_one(wanted, stop)

    monkeypatch.setattr(manager.fetcher, "fetch", fetch_for_an_hour)
    ensure(manager, "22", quick, slow)
    assert sorted(marked) == ["fox", "quick"]


def test_the_models_of_a_job_that_waits_for_long_stay_in_use(manager, later, lora):
    models, _ = manager.prepare_models_for_request(lora_job("22"))
    now = later()
    manager.mark_used(models)
    assert manager.store.fetched.last_used(manager.store.blob(lora.sha256)) == now


def test_four_jobs_at_once_with_two_models_fetch_each_model_once(hosts, manager):
    for version in (31, 32):
        data = safetensors(model_files.LORA, size=200_000 + version)
        hosts.add_model(
            version_id=version, model_id=3, data=data, name=f"l{version}.safetensors", kind="LORA"
        )

    def prepare(number):
        token = progress.listener.set(updates[number].append)
        stem = prepared_lora(manager, f"civitai:3@{31 + number % 2}").stem
        progress.listener.reset(token)
        return stem

    updates = [[] for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(prepare, range(4))) == ["l31", "l32", "l31", "l32"]
    assert {update["phase"] for one in updates for update in one} <= {"download"}
    assert sum(manager.counts.values()) == 4
    sizes = [blob.about.size for blob in manager.store.fetched.all()]
    assert manager.fetcher.bytes_fetched == sum(sizes)


def test_the_first_failure_stops_the_other_downloads(hosts, manager):
    slow = hosts.add_web("/slow.safetensors", safetensors(model_files.LORA, size=LARGE))
    hosts.throttle(1 << 20)
    with pytest.raises(ModelNotSupported):
        ensure(manager, slow, f"{hosts.web}/x.gguf")
    assert hosts.bytes_sent("web") < LARGE


@pytest.mark.usefixtures("lora")
def test_a_download_that_cannot_be_opened_for_its_check_is_kept(hosts, manager, monkeypatch):
    """The cause is not the file, such as too many open files; the next job fetches nothing."""

    def no_descriptor_left(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(fetcher, "check_with_safetensors", no_descriptor_left)
        with pytest.raises(MachineExhausted, match="Too many open files"):
            fetch(manager, "22")
    sent = hosts.bytes_sent("storage")

    assert fetch(manager, "22").path.read_bytes() == LORA
    assert hosts.bytes_sent("storage") == sent


@pytest.mark.usefixtures("lora")
def test_an_operators_file_keeps_its_name(manager, tmp_path):
    own = tmp_path / "models" / "Lora" / "fox.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(OTHER)
    assert fetch(manager, "22").about.stem == f"fox-{sha256(LORA)[:10]}"
    assert manager.store.find("lora", "fox").path == own
