"""Stories about RunPod's cached models: a start and jobs without a request to a model host.

The real SDK, start.sh, handler and model manager; the engine is the fake A1111. The embedded engine
draws with cached models in test_entry_points.py.
"""

import json
from types import SimpleNamespace

import pytest
from fakes import model_files
from fakes.a1111.process import wait_until
from fakes.hosts.model_hosts import ModelHosts
from fakes.hub_cache import COMMIT, add_cached, folder_of, read_only, state
from fakes.model_files import safetensors, sha256
from fakes.model_store import files_below
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import SMALL, completed, running_worker

REPO = "org/foxes"
BASE, FUR, NEW = (
    safetensors(shapes, number=number)
    for number, shapes in enumerate((model_files.SD1, model_files.LORA, model_files.LORA))
)
FILES = {"base.safetensors": BASE, "loras/fur.safetensors": FUR, "loras/lost.safetensors": FUR}
LORA = f"{REPO}/loras/fur.safetensors"
TEMPLATE = {"name": "Foxes", "checkpoint": {"url": f"hf://{REPO}/base.safetensors"}}


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A worker whose default template names a cached file; the cache is mounted read-only."""
    folder = tmp_path_factory.mktemp("cached")
    root, templates = folder / "hub", folder / "templates.json"
    paths = add_cached(root, REPO, FILES)
    (folder_of(root, REPO) / "refs/main").unlink()
    paths["loras/lost.safetensors"].unlink()
    paths["loras/lost.safetensors"].symlink_to("../../../blobs/lost")
    document = {"templates": {"foxes": TEMPLATE}, "default_template": "foxes"}
    templates.write_text(json.dumps(document))
    more = {"TEMPLATES_FILE": str(templates), "DEFAULT_TEMPLATE": "", "HUB_CACHE_DIR": str(root)}
    own = {"checkpoints": (), "loras": ()}
    with ModelHosts() as hosts, RunPodPlane() as plane, read_only(root):
        hosts.add_hf(REPO, "loras/lost.safetensors", NEW)
        before = state(root)
        with running_worker(folder, plane, hosts=hosts, **own, **more) as worker:
            assert "fetching" not in worker.log()
            yield SimpleNamespace(worker=worker, hosts=hosts, root=root)
        assert state(root) == before


def test_a_start_and_jobs_with_cached_models_ask_no_host_and_copy_nothing(cached):
    plain = completed(cached.worker.run(SMALL))
    named, by_name = (completed(cached.worker.run(SMALL | {"loras": [it]})) for it in (LORA, "fur"))
    assert by_name["models"] == named["models"]
    assert plain["models"][0]["sha256"] == sha256(BASE)
    assert [(one["sha256"], one["source"]) for one in named["models"]][:2] == [
        (sha256(BASE), f"hf://{REPO}@{COMMIT}/base.safetensors"),
        (sha256(FUR), f"hf://{REPO}@{COMMIT}/loras/fur.safetensors"),
    ]
    assert cached.hosts.requests == []
    assert files_below(cached.worker.store) == []
    options = json.loads((cached.worker.webui / "config.json").read_text())
    assert options["sd_model_checkpoint"] == "base"
    assert "hashing" not in cached.worker.log()


def test_cached_models_are_listed_and_in_health(cached):
    listed = completed(cached.worker.run({"task": "models"}))["models"]
    assert [(one["name"], one["source"]) for one in listed] == [
        ("base.safetensors", f"hf://{REPO}@{COMMIT}/base.safetensors")
    ]
    health = completed(cached.worker.run({"task": "health"}))["models"]
    size = len(BASE) + len(FUR)
    assert health["cached"] == [{"repo": REPO, "commit": COMMIT, "files": 2, "bytes": size}]


def test_a_file_whose_blob_is_missing_is_downloaded(cached):
    job = SMALL | {"loras": [f"{REPO}/loras/lost.safetensors"]}
    model = completed(cached.worker.run(job))["models"][1]
    assert model["sha256"] == sha256(NEW)
    assert cached.hosts.count("hf_cdn") > 0
    line = f"{REPO}/loras/lost.safetensors in the Hugging Face cache is not used"
    wait_until(lambda: line in cached.worker.log(), "the warning")
