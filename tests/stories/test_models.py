"""Stories about models that a job names by reference: fetched from a loopback CivitAI.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111.
"""

import json
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import running_worker
from safetensors.numpy import save

SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64}
SD1, SDXL = 768, 2048  # widths of what the UNet attends to


def checkpoint(context=SD1, filler=0):
    """A stand-in that has what tells the families apart; `filler`: further bytes."""
    unet = "model.diffusion_model.input_blocks"
    tensors = {
        f"{unet}.0.0.weight": np.zeros((8, 4, 3, 3), np.float16),
        f"{unet}.4.1.transformer_blocks.0.attn2.to_k.weight": np.zeros((8, context), np.float16),
        "first_stage_model.decoder.conv_in.weight": np.zeros((8, 4, 3, 3), np.float16),
    }
    clip = {
        SD1: "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        SDXL: "conditioner.embedders.1.model.ln_final.weight",
    }
    tensors[clip[context]] = np.zeros((8, context), np.float16)
    if filler:
        tensors["filler"] = np.random.default_rng(filler).integers(0, 255, filler, np.uint8)
    return save(tensors)


def lora(context=SD1, seed=0):
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return save(
        {
            f"{block}.lora_down.weight": np.full((4, context), seed, np.float16),
            f"{block}.lora_up.weight": np.zeros((8, 4), np.float16),
            f"{block}.alpha": np.array(4.0, np.float16),
        }
    )


def environ(hosts, **more):
    """What an operator sets for mirrors; they answer on plain http and on loopback."""
    netlocs = [urlsplit(url).netloc for url in (hosts.storage, hosts.storage_b, hosts.web)]
    return {
        "CIVITAI_URL": hosts.civitai,
        "CIVITAI_API_KEY": hosts.civitai_key,
        "TRUSTED_HOSTS": ",".join(netlocs),
        "LOG_LEVEL": "DEBUG",
    } | more


@contextmanager
def worker_and_hosts(folder, **more):
    with (
        ModelHosts() as hosts,
        RunPodPlane() as plane,
        running_worker(folder, plane, **environ(hosts, **more)) as worker,
    ):
        yield worker, hosts


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with worker_and_hosts(folder) as pair:
        yield pair


@pytest.fixture
def worker(shared):
    worker, hosts = shared
    hosts.no_faults()
    hosts.no_throttle()
    hosts.forget_requests()
    return worker


@pytest.fixture
def hosts(shared):
    return shared[1]


def completed(job):
    assert job["status"] == "COMPLETED", job
    return job["output"]


def failed(job, code):
    assert job["status"] == "FAILED", job
    error = json.loads(job["error"]) if job["error"].startswith("{") else job
    text = str(error)
    assert code in text, text
    return text


def test_a_job_names_its_models_by_url_and_the_second_one_needs_no_network(worker, hosts):
    base = hosts.add_model(version_id=1, model_id=1, data=checkpoint(), name="base.safetensors")
    one = hosts.add_model(
        version_id=2, model_id=2, data=lora(seed=1), name="one: v1.safetensors", kind="LORA"
    )
    two = hosts.add_model(
        version_id=3,
        model_id=3,
        data=lora(seed=2),
        name="two.safetensors",
        kind="LORA",
        trained_words=("fox, red fur",),
    )
    job = SMALL | {
        "checkpoint": {"name": "Base", "url": "https://civitai.com/api/download/models/1"},
        "loras": [
            {"url": "https://civitai.com/models/2/one?modelVersionId=2", "scale": 0.5},
            {"url": two.download_url.replace(hosts.civitai, "https://civitai.red")},
        ],
        "trigger_words": True,
    }

    first = completed(worker.run(job))
    asked = len(hosts.requests)
    second = completed(worker.run(job))

    sent = worker.requests()[-1]["body"]
    assert sent["prompt"] == "a fox, red fur <lora:one_ v1:0.5> <lora:two:1>"
    assert sent["override_settings"]["sd_model_checkpoint"] == "base"
    used = [(model["name"], model["sha256"], model["source"]) for model in first["models"]]
    assert used == [
        ("base", base.sha256, f"civitai:1@1+{base.id}"),
        ("one_ v1", one.sha256, f"civitai:2@2+{one.id}"),
        ("two", two.sha256, f"civitai:3@3+{two.id}"),
    ]
    assert len(hosts.requests) == asked
    assert second["timings"]["prepare"] <= 0.5, second["timings"]
    assert first["cache_info"]["loras_cached"] >= 3


def test_a_lora_of_another_family_is_refused_before_the_gpu_is_touched(worker, hosts):
    hosts.add_model(version_id=11, model_id=11, data=checkpoint(SDXL), name="xl.safetensors")
    hosts.add_model(
        version_id=12, model_id=12, data=lora(SD1, seed=3), name="old.safetensors", kind="LORA"
    )
    before = len(worker.requests())

    text = failed(worker.run(SMALL | {"checkpoint": 11, "loras": ["12"]}), "MODEL_MISMATCH")

    assert "'old'" in text
    assert "'xl'" in text
    assert "SD1" in text
    assert "SDXL" in text
    assert len(worker.requests()) == before


REFUSALS = [
    ("login_required", {}, "MODEL_LOGIN_REQUIRED"),
    ("downloads_disabled", {}, "MODEL_FORBIDDEN"),
    ("early_access", {"deadline": None}, "MODEL_EARLY_ACCESS"),
    ("archived", {}, "MODEL_ARCHIVED"),
    ("not_found", {}, "MODEL_NOT_FOUND"),
    ("html", {}, "MODEL_FILE_INVALID"),
    ("corrupt", {"offset": 5000}, "MODEL_HASH_MISMATCH"),
    ("redirect_loop", {}, "MODEL_URL_REFUSED"),
    ("redirect_to", {"url": "https://127.0.0.1:1/x"}, "MODEL_URL_REFUSED"),
]


@pytest.mark.parametrize(("fault", "params", "code"), REFUSALS, ids=lambda value: str(value)[:20])
def test_what_cannot_be_fetched_is_told_by_its_own_code(worker, hosts, fault, params, code):
    number = 100 + [row[0] for row in REFUSALS].index(fault)
    hosts.add_model(
        version_id=number,
        model_id=number,
        data=checkpoint(filler=10_000 + number),
        name="x.safetensors",
    )
    hosts.fault(fault, **params)
    before = len(worker.requests())

    failed(worker.run(SMALL | {"checkpoint": f"civitai:{number}@{number}"}), code)

    assert len(worker.requests()) == before
    assert not list(worker.store.glob("fetched/downloads/*"))


def test_a_deadline_ends_a_download_and_the_next_job_goes_on_there(worker, hosts):
    data = checkpoint(filler=6_000_000)
    hosts.add_model(version_id=200, model_id=200, data=data, name="slow.safetensors")
    hosts.throttle(1_500_000, ttfb=0.0)

    failed(worker.run(SMALL | {"checkpoint": 200, "timeout": 2}), "JOB_TIMEOUT")
    hosts.settle()
    first = hosts.bytes_sent("storage")
    hosts.no_throttle()
    completed(worker.run(SMALL | {"checkpoint": 200}))
    hosts.settle()

    assert 0 < first < len(data)
    assert hosts.bytes_sent("storage") - first <= len(data) - first + 2_000_000


def test_a_cancelled_job_ends_its_download(worker, hosts):
    hosts.add_model(
        version_id=201, model_id=201, data=checkpoint(filler=9_000_000), name="long.safetensors"
    )
    hosts.throttle(500_000, ttfb=0.0)
    job = worker.plane.submit(SMALL | {"checkpoint": 201})
    wait_until(lambda: hosts.bytes_sent("storage") > 0, "the download")

    worker.plane.cancel(job)
    begun = time.monotonic()
    completed(worker.run(SMALL))

    assert time.monotonic() - begun < 10
    hosts.settle()
    sent = hosts.bytes_sent("storage")
    time.sleep(0.5)
    assert hosts.bytes_sent("storage") == sent


def test_progress_is_reported_while_a_model_comes(worker, hosts):
    hosts.add_model(
        version_id=202, model_id=202, data=checkpoint(filler=9_000_000), name="big.safetensors"
    )
    hosts.throttle(1_000_000, ttfb=0.0)

    job = worker.plane.submit(SMALL | {"checkpoint": 202})
    completed(worker.plane.wait(job, 60))

    told = list(worker.plane.events("progress"))
    assert any("downloading" in str(event) for event in told), told


def test_embeddings_are_linked_and_must_fit(worker, hosts):
    data = save({"emb_params": np.zeros((2, SD1), np.float32)})
    hosts.add_model(
        version_id=300, model_id=300, data=data, name="easyneg.safetensors", kind="TextualInversion"
    )

    answer = completed(
        worker.run(SMALL | {"embeddings": ["civitai:300@300"], "negative_prompt": "easyneg"})
    )

    assert (worker.webui / "embeddings/easyneg.safetensors").is_symlink()
    assert "easyneg" in [model["name"] for model in answer["models"]]


def test_no_secret_reaches_the_log_or_a_result(worker, hosts):
    """The last story: by now the log has seen every kind of failure."""
    text = worker.log()

    assert "fetching" in text
    assert not [secret for secret in hosts.planted_secrets if secret in text]
