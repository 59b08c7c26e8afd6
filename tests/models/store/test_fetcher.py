"""From a reference to a verified blob: every way that ends well, and every way that does not."""

import functools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import model_files
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors, sha256
from fakes.model_store import add, fetch, files_below, manager_for

from worker.errors import (
    FetchStopped,
    ModelArchived,
    ModelEarlyAccess,
    ModelFileInvalid,
    ModelForbidden,
    ModelHashMismatch,
    ModelHostFailed,
    ModelLoginRequired,
    ModelNotFound,
    ModelNotSupported,
    ModelRateLimited,
    ModelRegionBlocked,
    ModelUnsafe,
    StoreFull,
    WorkerError,
)
from worker.http import client as http
from worker.job.reference import Wanted, parse_reference
from worker.job.request import parse as parse_job
from worker.models.store import progress
from worker.models.store import references as references_module
from worker.models.store.blobs import Blobs
from worker.models.store.references import FRESH, NEGATIVE_FRESH

LORA = safetensors(model_files.LORA, ss_output_name="fox_v1")
OTHER = safetensors(model_files.LORA, number=2)
LARGE = 24 << 20
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
def manager(hosts, tmp_path):
    return manager_for(hosts, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """The time of day as the references see it."""
    clock = SimpleNamespace(now=time.time())
    clock.time = lambda: clock.now
    monkeypatch.setattr(references_module, "time", clock)
    return clock


@pytest.fixture
def lora(hosts):
    return hosts.add_model(
        version_id=22, model_id=2, data=LORA, name="fox.safetensors", kind="LORA", file_id=222
    )


def left(manager):
    """What a fetch has left in the store, but for what it has learnt."""
    root = manager.store.fetched.root
    return [name for name in files_below(root) if not name.startswith("references/")]


# What comes of a reference.


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
def test_each_form_brings_the_file_once(hosts, manager, text):
    hosts.add_hf("org/name", "loras/fox.safetensors", LORA)
    hosts.add_web("/fox.safetensors", LORA)
    text = text.format(web=hosts.web)

    blob = fetch(manager, text, "lora")

    assert (blob.sha256, blob.path.read_bytes()) == (sha256(LORA), LORA)
    assert (blob.about.kind, blob.about.stem, blob.about.family) == ("lora", "fox", "SD1")
    assert "swordfish" not in blob.path.with_suffix(".json").read_text()
    hosts.forget_requests()
    assert manager.ensure([Wanted(parse_reference(text), "lora")]) == [blob.as_file()]
    assert hosts.requests == []


def test_what_the_host_says_is_kept(hosts, manager):
    hosts.add_model(version_id=22, model_id=2, data=LORA, kind="LORA", trained_words=["fox, red"])
    about = fetch(manager, "22").about

    assert (about.source, about.ref) == (
        "civitai:2@22+900001",
        "https://civitai.com/api/download/models/22",
    )
    assert (about.title, about.trained_words) == ("Model 2 \N{EN DASH} v22", ("fox, red",))


KINDS = [
    (model_files.SD1, "checkpoint", "SD1"),
    (model_files.SDXL, "checkpoint", "SDXL"),
    (model_files.LORA, "lora", "SD1"),
    (model_files.VAE, "vae", None),
    (model_files.EMBEDDING, "embedding", "SD1"),
    (model_files.UNKNOWN, "checkpoint", None),
]


@pytest.mark.parametrize(("shapes", "kind", "family"), KINDS)
def test_a_file_of_which_nobody_says_anything_is_what_it_is(hosts, manager, shapes, kind, family):
    blob = fetch(manager, hosts.add_web("/x.safetensors", safetensors(shapes)))

    assert (blob.about.kind, blob.about.family) == (kind, family)
    assert manager.store.find(kind, "x") == blob.as_file()


# File names.

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
def test_a_strangers_file_name_is_only_a_name(hosts, manager, tmp_path, disposition, stem):
    url = hosts.add_web("/path.safetensors", LORA, content_disposition=disposition)
    before = files_below(tmp_path)

    assert fetch(manager, url).about.stem == stem
    outside = {
        name for name in files_below(tmp_path) if not name.startswith("models/fetched/")
    } - set(before)
    assert outside == set()
    assert left(manager)[0] == f"Lora/{stem}.safetensors"


@pytest.mark.usefixtures("lora")
def test_the_callers_name_goes_before_the_hosts(manager):
    assert fetch(manager, "22", filename="My: LoRA.safetensors").about.stem == "My_ LoRA"


# The hash.


def test_the_callers_hash_must_be_right(hosts, manager):
    url = hosts.add_web("/x.safetensors", LORA)

    with pytest.raises(ModelHashMismatch) as raised:
        fetch(manager, url, sha256=sha256(OTHER))
    assert raised.value.details == {"expected": sha256(OTHER), "actual": sha256(LORA)}
    assert left(manager) == []


@pytest.fixture
def wrong_hash(hosts):
    hashes = {"SHA256": sha256(OTHER).upper()}
    hosts.add_model(version_id=22, data=LORA, kind="LORA", hashes=hashes)


@pytest.mark.usefixtures("wrong_hash")
def test_the_hosts_hash_must_be_right(manager):
    with pytest.raises(ModelHashMismatch):
        fetch(manager, "22")
    assert left(manager) == []


@pytest.mark.usefixtures("wrong_hash")
def test_the_callers_hash_goes_before_the_hosts(manager):
    assert fetch(manager, "22", sha256=sha256(LORA)).sha256 == sha256(LORA)
    with pytest.raises(ModelHashMismatch):  # who does not say so still gets the host's word
        fetch(manager, "22")


def test_a_hash_that_is_here_needs_no_download(hosts, manager, lora):
    fetch(manager, "22")
    url = hosts.add_web("/never.safetensors", b"never")

    assert fetch(manager, url, sha256=lora.sha256).path.read_bytes() == LORA
    assert hosts.count("web") == 0


# What is refused.


@pytest.mark.usefixtures("lora")
def test_the_hosts_word_on_the_kind_is_enough(hosts, manager):
    with pytest.raises(ModelNotSupported, match=r"is a LoRA.*field `loras`"):
        fetch(manager, "22", "checkpoint")
    assert hosts.count("storage") == 0


@pytest.mark.parametrize("name", ["x.gguf", "x.zip", "x.onnx", "x.yaml"])
def test_the_suffix_is_enough(hosts, manager, name):
    with pytest.raises(ModelNotSupported):
        fetch(manager, hosts.add_web(f"/{name}", LORA))
    assert hosts.count() == 0


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.BIN"])
def test_a_pickle_is_refused_before_it_is_fetched(hosts, manager, name):
    with pytest.raises(ModelUnsafe, match="ALLOW_PICKLES"):
        fetch(manager, hosts.add_web(f"/{name}", model_files.PICKLE))
    assert hosts.count() == 0


def test_a_pickle_is_fetched_where_the_operator_wants_it(hosts, tmp_path):
    manager = manager_for(hosts, tmp_path, ALLOW_PICKLES="true")
    url = hosts.add_web("/old.ckpt", model_files.PICKLE)

    blob = fetch(manager, url, "checkpoint")

    assert blob.path.name == f"{blob.sha256}.ckpt"
    (file,) = manager.ensure([Wanted(parse_reference(url), "checkpoint")])
    file.check()
    assert (file.filename, manager.store.find("checkpoint", "old")) == ("old.ckpt", file)
    careful = manager_for(hosts, tmp_path)
    assert careful.store.find("checkpoint", "old") is None


NO_PICKLES = [
    (model_files.HTML, ModelFileInvalid, "a web page, not a model: 'Login'"),
    (b'{"error":"Unauthorized"}', ModelFileInvalid, "a JSON text"),
    (model_files.GGUF, ModelNotSupported, "GGUF"),
    (LORA, ModelFileInvalid, "no PyTorch pickle"),
    (bytes(1000), ModelFileInvalid, "no PyTorch pickle"),
]


@pytest.mark.parametrize("name", ["old.ckpt", "old.pt", "old.pth", "old.bin"])
@pytest.mark.parametrize(("data", "error", "says"), NO_PICKLES)
def test_what_only_has_a_pickles_name_is_refused(hosts, tmp_path, name, data, error, says):
    manager = manager_for(hosts, tmp_path, ALLOW_PICKLES="true")

    with pytest.raises(error, match=says):
        fetch(manager, hosts.add_web(f"/{name}", data), "checkpoint")
    assert left(manager) == []


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
def test_what_nobody_can_use_is_refused_after_a_megabyte(hosts, manager, data, kind, error):
    hosts.throttle(20_000_000, ttfb=0)  # else the sockets' buffers take in the whole file
    url = hosts.add_web("/x.safetensors", data)

    with pytest.raises(error):
        fetch(manager, url, kind)
    hosts.settle()
    assert hosts.bytes_sent() < LARGE / 3
    assert left(manager) == []


@pytest.mark.parametrize("data", [b"x", model_files.HTML, LORA[:-1], LORA[:20]])
def test_a_small_file_that_is_no_model_is_refused(hosts, manager, data):
    with pytest.raises(ModelFileInvalid):
        fetch(manager, hosts.add_web("/x.safetensors", data))
    assert left(manager) == []


def test_a_file_without_room_is_refused_and_leaves_nothing(hosts, tmp_path):
    manager = manager_for(hosts, tmp_path, MODELS_BUDGET_GB="0.000001")

    with pytest.raises(StoreFull):
        fetch(manager, hosts.add_web("/x.safetensors", LORA))
    assert left(manager) == []


@pytest.mark.usefixtures("lora")
def test_a_lora_that_is_here_is_no_checkpoint_either(manager):
    fetch(manager, "22")
    job = parse_job({"prompt": "x", "checkpoint": "civitai:2@22"})

    with pytest.raises(ModelNotSupported, match="is a LoRA"):
        manager.prepare_models_for_request(job)


def test_a_file_of_unknown_kind_is_what_the_job_takes_it_for(hosts, manager):
    url = hosts.add_web("/x.safetensors", safetensors(model_files.UNKNOWN))
    assert fetch(manager, url).about.kind == "checkpoint"

    (file,) = manager.ensure([Wanted(parse_reference(url), "lora")])
    assert file.kind == "lora"
    file.check()


REFUSALS = [
    ("login_required", {}, ModelLoginRequired),
    ("downloads_disabled", {}, ModelForbidden),
    ("early_access", {}, ModelEarlyAccess),
    ("no_access", {}, ModelForbidden),
    ("forbidden", {}, ModelForbidden),
    ("cloudflare_challenge", {}, ModelHostFailed),
    ("not_found", {}, ModelNotFound),
    ("archived", {}, ModelArchived),
    ("rate_limited", {}, ModelRateLimited),
    ("rate_limited", {"html": True}, ModelRateLimited),
    ("region_blocked", {}, ModelRegionBlocked),
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
    told = f"{raised.value} {raised.value.details} {caplog.text}"
    assert not [secret for secret in hosts.planted_secrets if secret in told]

    hosts.no_faults()
    shutil.rmtree(manager.store.fetched.root / "references", ignore_errors=True)
    assert fetch(manager, "22").path.read_bytes() == LORA


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_host_that_is_busy_is_told_with_the_model(hosts, manager, status):
    """A job may name twenty."""
    hosts.fault("server_error", status=status, path="/api/download/models/22")

    with pytest.raises(WorkerError, match=rf"civitai:2@22.*CivitAI .*\({status}\)"):
        fetch(manager, "22")


# A second time.


def test_a_damaged_blob_is_fetched_again(hosts, manager, lora):
    path = fetch(manager, "22").path
    path.write_bytes(LORA[:-1])
    job = parse_job({"prompt": "x", "loras": ["civitai:2@22"]})

    manager.prepare_models_for_request(job)

    assert path.read_bytes() == LORA
    hosts.settle()
    assert hosts.bytes_sent("storage") == 2 * lora.size


def test_a_damaged_blob_is_fetched_again_by_the_next_process(hosts, manager, lora, tmp_path):
    path = fetch(manager, "22").path
    path.write_bytes(OTHER)

    (file,) = manager_for(hosts, tmp_path).ensure([Wanted(parse_reference("22"), "lora")])

    assert (file.path.read_bytes(), file.verified_sha256) == (LORA, lora.sha256)


def test_an_evicted_blob_is_fetched_again_and_the_host_asked_once_at_most(hosts, manager, lora):
    blob = fetch(manager, "22")
    manager.store.fetched.remove(blob)
    hosts.forget_requests()

    assert manager.ensure([Wanted(parse_reference("22"), "lora")])[0].verified_sha256 == lora.sha256
    assert hosts.count("civitai", "/api/v1") == 0
    assert hosts.count("civitai", "/api/download") == 1


@pytest.mark.parametrize("text", ["22", "civitai:2", "org/name/x.safetensors", "{web}/x"])
def test_a_no_is_remembered_for_a_minute(hosts, tmp_path, clock, text):
    hosts.add_hf("org/name", "other.safetensors", LORA)
    text = text.format(web=hosts.web)
    with pytest.raises(ModelNotFound):
        fetch(manager_for(hosts, tmp_path), text)
    hosts.forget_requests()
    with pytest.raises(ModelNotFound):
        fetch(manager_for(hosts, tmp_path), text)
    assert hosts.requests == []
    clock.now += NEGATIVE_FRESH + 1
    with pytest.raises(ModelNotFound):
        fetch(manager_for(hosts, tmp_path), text)
    assert hosts.requests


@pytest.mark.parametrize("role", ["civitai", "storage"])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_moved_once_is_used_as_it_was_when_its_host_is_down(
    hosts, manager, clock, tmp_path, lora, role, restarted
):
    wanted = [Wanted(parse_reference("civitai:2"), "lora")]
    (first,) = manager.ensure(wanted)
    clock.now += FRESH + 1
    hosts.add_model(version_id=23, model_id=2, data=OTHER, kind="LORA")
    lora.version.overrides["status"] = "Unpublished"
    hosts.refuse(role)
    if restarted:
        manager = manager_for(hosts, tmp_path)

    for _ in range(2):
        assert manager.ensure(wanted) == [first]
    hosts.accept(role)
    assert manager.ensure(wanted)[0].verified_sha256 == sha256(OTHER)


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
    clock.now += FRESH + 1
    hosts.add_web("/x.safetensors", LORA, etag=now)
    hosts.forget_requests()

    assert fetch(manager, url).sha256 == first.sha256
    assert (hosts.bytes_sent("web") > 1) == is_fetched
    hosts.forget_requests()
    manager.ensure([Wanted(parse_reference(url))])
    assert not hosts.requests


def test_a_moving_reference_that_still_means_the_same_is_not_fetched_again(hosts, manager, clock):
    hosts.add_hf("org/name", "x.safetensors", LORA)
    fetch(manager, "org/name/x.safetensors")
    clock.now += FRESH + 1
    hosts.forget_requests()

    fetch(manager, "org/name/x.safetensors")
    assert [request.role for request in hosts.requests] == ["huggingface"]
    hosts.forget_requests()
    assert manager.ensure([Wanted(parse_reference("org/name/x.safetensors"), "lora")])
    assert hosts.requests == []


# Stopping, and many at once.


def test_a_stopped_download_goes_on_where_it_was(hosts, manager):
    data = safetensors(model_files.LORA, size=8 << 20)
    url = hosts.add_web("/x.safetensors", data)
    hosts.throttle(4 << 20, ttfb=0)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch, manager, url, stop=stop)
        while hosts.bytes_sent("web") < 3 << 20:
            time.sleep(0.01)
        stop.set()
        with pytest.raises(FetchStopped):
            running.result(timeout=10)
    hosts.no_throttle()
    hosts.settle()
    (partial,) = manager.store.fetched.partials()
    assert partial.stat().st_size > 1 << 20
    hosts.forget_requests()

    assert fetch(manager, url).path.read_bytes() == data
    hosts.settle()
    assert hosts.bytes_sent("web") < len(data) - (1 << 20)


@pytest.mark.parametrize("text", ["22", "{web}/x.safetensors"])
def test_many_workers_fetch_a_file_once(hosts, tmp_path, text):
    """Also a file of which nobody knows the hash before it is here."""
    data = safetensors(model_files.LORA, size=2 << 20)
    hosts.add_model(version_id=22, data=data, kind="LORA")
    text = text.format(web=hosts.add_web("/x.safetensors", data).rpartition("/")[0])
    hosts.throttle(8 << 20)

    def worker(_):
        return fetch(manager_for(hosts, tmp_path), text)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(worker, range(8)))
    hosts.settle()
    assert {blob.sha256 for blob in found} == {sha256(data)}
    assert hosts.bytes_sent("storage") + hosts.bytes_sent("web") == len(data)


def test_who_waits_knows_the_file_as_soon_as_it_may_go_on(hosts, manager, monkeypatch):
    """What a reference means must be noted before the lease ends, else the next one downloads."""
    url = hosts.add_web("/x.safetensors", LORA)
    known = []
    real = Blobs.lease

    def lease(self, *arguments):
        inner = real(self, *arguments)

        class Watched:
            def __enter__(self):
                return inner.__enter__()

            def __exit__(self, *error):
                known.append(manager.fetcher.references.sha256(parse_reference(url)))
                return inner.__exit__(*error)

        return Watched()

    monkeypatch.setattr(Blobs, "lease", lease)
    fetch(manager, url)

    assert known == [sha256(LORA)]


# The baked tier.


@pytest.fixture
def baked(hosts, tmp_path, lora):
    """A worker whose image was built with the LoRA."""
    builder = manager_for(hosts, tmp_path, MODELS_DIR=str(tmp_path / "baked"))
    fetch(builder, f"{lora.version_id}")
    hosts.forget_requests()
    return manager_for(hosts, tmp_path)


@pytest.mark.parametrize("text", ["22", "civitai:2@22", f"sha256:{sha256(LORA)}", "fox"])
def test_a_baked_model_needs_no_network(hosts, baked, tmp_path, text):
    job = parse_job({"prompt": "x", "loras": [text]})
    models, _ = baked.prepare_models_for_request(job)

    assert models.loras[0][0].path.is_relative_to(tmp_path / "baked")
    assert hosts.requests == []
    assert not (tmp_path / "models").exists()


def test_another_way_to_a_baked_model_downloads_nothing(hosts, baked):
    hosts.add_hf("org/name", "x.safetensors", LORA)
    blob = fetch(baked, "org/name/x.safetensors")

    assert blob.about.stem == "fox"
    assert hosts.count("hf_cdn") == 0


def test_a_fetched_model_does_not_hide_a_baked_one_of_its_name(hosts, baked, tmp_path):
    hosts.add_model(version_id=33, data=OTHER, name="fox.safetensors", kind="LORA")
    job = parse_job({"prompt": "x", "loras": ["22", "33"]})
    models, _ = baked.prepare_models_for_request(job)

    stems = [file.stem for file, _ in models.loras]
    assert stems == ["fox", f"fox-{sha256(OTHER)[:10]}"]
    folder = tmp_path / "webui" / "models" / "Lora"
    contents = [(folder / f"{stem}.safetensors").read_bytes() for stem in stems]
    assert contents == [LORA, OTHER]


def test_a_damaged_baked_model_is_fetched(hosts, baked, tmp_path):
    path = next((tmp_path / "baked" / "fetched" / "blobs").glob("*.safetensors"))
    Path(path).write_bytes(b"damaged")

    (file,) = baked.ensure([Wanted(parse_reference("22"), "lora")])
    assert file.path.read_bytes() == LORA
    assert hosts.count("storage") > 0


# Whole jobs.


@pytest.mark.usefixtures("lora")
def test_the_second_job_asks_nobody(hosts, manager):
    data = safetensors(model_files.SD1)
    hosts.add_model(version_id=11, model_id=1, data=data, name="base.safetensors")
    job = parse_job({"prompt": "x", "checkpoint": "civitai:1@11", "loras": ["22"]})
    first, new = manager.prepare_models_for_request(job)
    hosts.forget_requests()

    second, new_again = manager.prepare_models_for_request(job)

    assert (second, new, new_again) == (first, True, False)
    assert hosts.requests == []


@pytest.mark.usefixtures("lora")
def test_nothing_that_running_jobs_use_is_evicted_nor_what_stays_loaded(hosts, manager):
    for version, filler in ((11, 1), (12, 2)):
        data = safetensors(model_files.SD1, size=1000 + filler)
        hosts.add_model(version_id=version, model_id=1, data=data, name=f"base{version}")
    jobs = [
        parse_job({"prompt": "x", "checkpoint": f"civitai:1@{v}", "loras": ["22"]})
        for v in (11, 12)
    ]
    (one, _), (other, _) = map(manager.prepare_models_for_request, jobs)
    lora = one.loras[0][0].verified_sha256
    both = {one.checkpoint.verified_sha256, other.checkpoint.verified_sha256}

    assert manager.space.pinned == both | {lora}
    manager.release(one)
    assert manager.space.pinned == both | {lora}
    manager.release(other)
    assert manager.space.pinned == {other.checkpoint.verified_sha256}


def test_jobs_prepared_at_once_get_their_own_reports_of_one_store(hosts, manager):
    """Four jobs, two models, all at the same time: each model comes once, nobody is mixed up."""
    for version in (31, 32):
        data = safetensors(model_files.LORA, size=200_000 + version)
        hosts.add_model(
            version_id=version, model_id=3, data=data, name=f"l{version}.safetensors", kind="LORA"
        )

    def prepare(number):
        version = 31 + number % 2
        token = progress.listener.set(heard[number].append)
        job = parse_job({"prompt": "x", "loras": [f"civitai:3@{version}"]})
        models, _ = manager.prepare_models_for_request(job)
        progress.listener.reset(token)
        return models.loras[0][0].stem

    heard = [[] for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(prepare, range(4))) == ["l31", "l32", "l31", "l32"]
    reports = [report for one in heard for report in one]
    assert {report["phase"] for report in reports} <= {"download"}
    assert sum(manager.counts.values()) == 4
    assert manager.fetcher.bytes_fetched == sum(
        blob.about.size for blob in manager.store.fetched.all()
    )


@pytest.mark.usefixtures("lora")
def test_a_store_behind_a_link_is_linked_once(hosts, tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "volume")
    manager = manager_for(hosts, tmp_path)
    job = parse_job({"prompt": "x", "loras": ["22"]})

    assert [manager.prepare_models_for_request(job)[1] for _ in range(3)] == [True, False, False]
    assert files_below(tmp_path / "webui" / "models") == ["Lora/fox.safetensors"]


def test_the_first_failure_ends_the_other_downloads(hosts, manager):
    hosts.add_web("/slow.safetensors", safetensors(model_files.LORA, size=LARGE))
    hosts.throttle(1 << 20)
    start = time.monotonic()
    texts = [f"{hosts.web}/slow.safetensors", f"{hosts.web}/x.gguf"]

    with pytest.raises(ModelNotSupported):
        manager.ensure([Wanted(parse_reference(text), "lora") for text in texts])
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("lora")
def test_an_operators_file_keeps_its_name(manager, tmp_path):
    own = tmp_path / "models" / "Lora" / "fox.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(OTHER)

    assert fetch(manager, "22").about.stem == f"fox-{sha256(LORA)[:10]}"
    assert manager.store.find("lora", "fox").path == own


def test_a_hash_that_is_here_needs_no_host(hosts, manager):
    blob = add(manager.store.fetched, LORA)

    assert manager.ensure([Wanted(parse_reference(f"sha256:{blob.sha256}"), "lora")]) == [
        blob.as_file()
    ]
    assert hosts.requests == []
