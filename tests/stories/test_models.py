"""Stories about models that a job names by reference: fetched from a loopback CivitAI.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111.
"""

import base64
import json

import pytest
from fakes import model_files
from fakes.a1111.picture import png_chunks
from fakes.a1111.process import wait_until, write_safetensors
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, failed, running_worker

from worker.models.store.blobs import Blobs


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker, and the hosts of its models; at last its log must contain no secret."""
    folder = tmp_path_factory.mktemp("models")
    with (
        ModelHosts() as hosts,
        RunPodPlane() as plane,
        running_worker(folder, plane, hosts=hosts, LOG_LEVEL="DEBUG") as worker,
    ):
        yield worker, hosts
        log = worker.log()
        assert "fetching" in log
        assert not [secret for secret in hosts.planted_secrets if secret in log]


@pytest.fixture
def hosts(shared):
    hosts = shared[1]
    hosts.no_faults()
    hosts.no_throttle()
    hosts.forget_requests()
    return hosts


@pytest.fixture
def worker(shared):
    return shared[0]


@pytest.fixture
def add(hosts):
    """Put a file on CivitAI; its model and its version have the same number."""

    def add(number, name, shapes=model_files.SD1, size=0, **more):
        data = safetensors(shapes, number=number, size=size)
        return hosts.add_model(
            version_id=number, model_id=number, data=data, name=f"{name}.safetensors", **more
        )

    return add


def test_a_job_names_its_models_by_url_and_the_next_one_needs_no_network(worker, hosts, add):
    lora = {"shapes": model_files.LORA, "kind": "LORA"}
    base, one = add(1, "base"), add(2, "one: v1", **lora)
    two = add(3, "two", trained_words=("fox, red fur",), **lora)
    job = SMALL | {
        "checkpoint": {"name": "Base", "url": "https://civitai.com/api/download/models/1"},
        "loras": [
            {"url": "https://civitai.com/models/2/one?modelVersionId=2", "scale": 0.5},
            {"url": two.download_url.replace(hosts.civitai, "https://civitai.red")},
        ],
        "trigger_words": True,
    }
    first = completed(worker.run(job))
    requests = len(hosts.requests)
    completed(worker.run(job))
    sent = worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, red fur <lora:one_ v1:0.5> <lora:two:1>"
    assert sent["override_settings"]["sd_model_checkpoint"] == "base"
    used = [(model["name"], model["sha256"], model["source"]) for model in first["models"]]
    assert used == [
        ("base", base.sha256, f"civitai:1@1+{base.id}"),
        ("one_ v1", one.sha256, f"civitai:2@2+{one.id}"),
        ("two", two.sha256, f"civitai:3@3+{two.id}"),
    ]
    assert len(hosts.requests) == requests
    assert first["cache_info"]["loras_cached"] >= 3


def test_models_that_were_prefetched_are_used_without_a_network(worker, hosts, add):
    base = add(31, "ahead")
    lora = add(32, "later", shapes=model_files.LORA, kind="LORA")
    models = {"checkpoint": 31, "loras": [{"version_id": 32, "scale": 0.5}]}
    drawn = len(worker.requests())
    first, again = (completed(worker.run({"task": "prefetch"} | models)) for _ in range(2))
    assert len(worker.requests()) == drawn
    facts = [(one["name"], one["sha256"], one["source"], one["fetched"]) for one in first["models"]]
    assert facts == [
        ("ahead.safetensors", base.sha256, f"civitai:31@31+{base.id}", True),
        ("later.safetensors", lora.sha256, f"civitai:32@32+{lora.id}", True),
    ]
    assert [one["fetched"] for one in again["models"]] == [False, False]
    asked = len(hosts.requests)
    assert completed(worker.run(SMALL | models))["models"][0]["name"] == "ahead"
    assert len(hosts.requests) == asked
    failed(worker.run({"task": "prefetch", "checkpoint": "unknown"}), "MODEL_NOT_FOUND")
    assert "names no model" in failed(worker.run({"task": "prefetch"}), "INVALID_INPUT")


def test_a_lora_of_another_family_is_refused_before_the_engine_is_called(worker, add):
    add(11, "xl", model_files.SDXL)
    add(12, "old", model_files.LORA, kind="LORA")
    before = len(worker.requests())
    message = failed(worker.run(SMALL | {"checkpoint": 11, "loras": ["12"]}), "MODEL_MISMATCH")
    assert all(word in message for word in ("'old'", "'xl'", "SD1", "SDXL"))
    assert len(worker.requests()) == before


REFUSALS = {
    "login_required": ({}, "MODEL_LOGIN_REQUIRED"),
    "downloads_disabled": ({}, "MODEL_FORBIDDEN"),
    "early_access": ({"deadline": None}, "MODEL_EARLY_ACCESS"),
    "archived": ({}, "MODEL_ARCHIVED"),
    "not_found": ({}, "MODEL_NOT_FOUND"),
    "html": ({}, "MODEL_FILE_INVALID"),
    "corrupt": ({"offset": 5000}, "MODEL_HASH_MISMATCH"),
    "redirect_loop": ({}, "MODEL_URL_REFUSED"),
    "redirect_to": ({"url": "https://127.0.0.1:1/x"}, "MODEL_URL_REFUSED"),
}


def test_each_reason_why_a_model_cannot_be_fetched_has_its_code(worker, hosts, add):
    before = len(worker.requests())
    for number, (fault, (params, code)) in enumerate(REFUSALS.items(), 100):
        add(number, "x", size=10_000)
        hosts.no_faults()
        hosts.fault(fault, **params)
        failed(worker.run(SMALL | {"checkpoint": f"civitai:{number}@{number}"}), code)
        assert not list(worker.store.glob("fetched/downloads/*")), fault
    assert len(worker.requests()) == before


def wait_for_the_end_of_downloads(hosts):
    requests = hosts.asked("storage")
    wait_until(lambda: all(request.ended for request in requests), "the end of the download")


def test_a_deadline_ends_a_download(worker, hosts, add):
    add(200, "slow", size=9_000_000)
    hosts.throttle(300_000, ttfb=0.0)
    failed(worker.run(SMALL | {"checkpoint": 200, "timeout": 2}), "JOB_TIMEOUT")
    wait_for_the_end_of_downloads(hosts)
    assert hosts.bytes_sent("storage") < 9_000_000


def test_a_cancelled_job_ends_its_download_and_the_next_job_resumes_it(worker, hosts, add):
    add(201, "long", size=9_000_000)
    hosts.throttle(300_000, ttfb=0.0)
    job = worker.plane.submit(SMALL | {"checkpoint": 201})

    def some_bytes_are_reported():
        reports = [one["output"] for one in worker.plane.events("progress") if one["id"] == job]
        return any(
            one.get("percent") and "downloading" in one.get("message", "") for one in reports
        )

    wait_until(some_bytes_are_reported, "some bytes")
    worker.plane.cancel(job)
    completed(worker.run(SMALL))
    wait_for_the_end_of_downloads(hosts)
    assert hosts.bytes_sent("storage") < 9_000_000
    hosts.no_throttle()
    hosts.forget_requests()
    completed(worker.run(SMALL | {"checkpoint": 201}))
    ranges = [request.headers["range"] for request in hosts.asked("storage")]
    assert ranges
    assert not [one for one in ranges if one.startswith("bytes=0-")]


def test_an_embedding_is_linked_and_listed_in_the_answer(worker, add):
    add(300, "easyneg", model_files.EMBEDDING, kind="TextualInversion")
    job = SMALL | {"embeddings": ["civitai:300@300"], "negative_prompt": "easyneg"}
    answer = completed(worker.run(job))
    assert (worker.webui / "embeddings/easyneg.safetensors").is_symlink()
    assert "easyneg" in [model["name"] for model in answer["models"]]


def drawn(job):
    """The picture's pixels, the embeddings that A1111 reports for it, and the models."""
    answer = completed(job)
    facts = json.loads(answer["info"])["extra_generation_params"]
    models = {one["name"]: one["sha256"] for one in answer["models"] if one["kind"] == "embedding"}
    pixels = [
        content
        for kind, content in png_chunks(base64.b64decode(answer["images"][0]))
        if kind == b"IDAT"
    ]
    return pixels, facts.get("TI hashes"), models


def test_an_embedding_acts_in_its_own_job_only(worker, add):
    """A1111 uses every embedding whose name is in the prompt: here it is the word fox."""
    file = add(310, "fox", model_files.EMBEDDING, kind="TextualInversion")
    before = drawn(worker.run(SMALL))
    with_it = drawn(worker.run(SMALL | {"embeddings": ["civitai:310@310"]}))
    after = drawn(worker.run(SMALL))
    assert before == after
    assert before[1:] == (None, {})
    assert with_it[0] != before[0]
    assert with_it[1:] == (f"fox: {file.sha256[:12]}", {"fox": file.sha256})


def test_two_embeddings_of_one_file_name_are_drawn_each_in_its_job_and_both_in_one(worker, add):
    files = [
        add(number, "style", model_files.EMBEDDING, kind="TextualInversion")
        for number in (320, 321)
    ]
    refs = [{"version_id": number} for number in (320, 321)]
    job = SMALL | {"prompt": "a fox in style"}
    plain = drawn(worker.run(job))
    alone = [drawn(worker.run(job | {"embeddings": [ref]})) for ref in (*refs, refs[0])]
    assert alone[0] == alone[2]
    assert len({str(one[0]) for one in (plain, *alone)}) == 3
    for file, one in zip(files, alone, strict=False):
        assert one[1:] == (f"style: {file.sha256[:12]}", {"style": file.sha256})
    failed(worker.run(job | {"embeddings": refs}), "INVALID_INPUT")
    both = job | {"prompt": "style, other", "embeddings": [refs[0], refs[1] | {"name": "other"}]}
    assert drawn(worker.run(both))[2] == dict(
        zip(("style", "other"), (file.sha256 for file in files), strict=True)
    )


def test_the_operators_own_embedding_acts_as_soon_as_it_lies_there(worker):
    job = SMALL | {"prompt": "a fox, easyneg2"}
    before = drawn(worker.run(job))
    path = worker.store / "embeddings/easyneg2.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.with_name("broken.safetensors").write_bytes(b"<html>")
    data = safetensors(model_files.EMBEDDING, number=9)
    path.write_bytes(data)
    after = drawn(worker.run(job))
    assert after[0] != before[0]
    assert after[1] == f"easyneg2: {model_files.sha256(data)[:12]}"
    health = completed(worker.run({"task": "health"}))
    assert [one["file"] for one in health["models"]["left_out"]] == [
        "embeddings/broken.safetensors"
    ]
    path.unlink()
    assert drawn(worker.run(job)) == before


def test_a_checkpoint_that_another_worker_evicted_comes_back(worker, add):
    """Its link is the same, but the engine has listed its folder without it."""
    file = add(330, "returns")
    job = SMALL | {"checkpoint": "civitai:330@330"}
    first = completed(worker.run(job))
    restarts = completed(worker.run({"task": "health"}))["engine"]["restarts"]
    other = Blobs(worker.store / "fetched")
    other.remove(other.find(file.sha256))
    add(331, "next")
    completed(worker.run(SMALL | {"checkpoint": "civitai:331@331"}))
    again = completed(worker.run(job))
    assert first["models"] == again["models"]
    assert completed(worker.run({"task": "health"}))["engine"]["restarts"] == restarts


def test_two_loras_of_one_file_name_are_drawn_each_in_its_job_and_both_in_one(worker, add):
    """The second is stored under another name, but its own job's tag still means it."""
    numbers = (340, 341)
    for number in numbers:
        add(number, "look", model_files.LORA, kind="LORA")
    jobs = [SMALL | {"loras": [{"version_id": number}]} for number in numbers]
    tagged = [job | {"prompt": "a fox <lora:look:0.5>"} for job in jobs]
    both = SMALL | {"loras": [{"version_id": number} for number in numbers]}
    used = [
        [one["source"].partition("+")[0] for one in completed(worker.run(job))["models"][1:]]
        for job in (*jobs, *tagged, both)
    ]
    one, two = (f"civitai:{number}@{number}" for number in numbers)
    assert used == [[one], [two], [one], [two], [one, two]]
    failed(worker.run(both | {"prompt": "a fox <lora:look:0.5>"}), "INVALID_INPUT")


def test_a_checkpoint_is_named_by_its_title_with_folders(worker):
    path = worker.store / "Stable-diffusion/SDXL/photo/fourth.safetensors"
    write_safetensors(path, b"fourth..")
    for title in ("SDXL/photo/fourth.safetensors", "SDXL/photo/fourth", "SDXL_photo_fourth"):
        answer = completed(
            worker.run(SMALL | {"override_settings": {"sd_model_checkpoint": title}})
        )
        assert answer["models"][0]["sha256"] == model_files.sha256(path.read_bytes())
