"""Stories about models that a job names by reference: fetched from a loopback CivitAI.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111.
"""

import pytest
from fakes import model_files
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, failed, running_worker


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
