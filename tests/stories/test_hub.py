"""The story of a release in RunPod's Hub: its tests run on a worker with the project's templates.

The real SDK, start.sh and handler, with the settings of `.runpod/tests.json` and without a key;
the engine is the fake A1111, and Hugging Face has a small file under the real name.
"""

import json
from urllib.parse import urlsplit

from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import SD1, safetensors
from fakes.runpod_plane import RunPodPlane
from fakes.worker_process import completed, running_worker

from worker.config.settings import PROJECT

TESTS = json.loads((PROJECT / ".runpod" / "tests.json").read_text())
SETTINGS = {one["key"]: one["value"] for one in TESTS["config"]["env"]}
NO_KEYS = {"CIVITAI_API_KEY": "", "HF_TOKEN": ""}
TEMPLATES = json.loads((PROJECT / "templates.json").read_text())["templates"]


def test_the_hubs_tests_pass_on_a_new_worker_without_a_key(tmp_path):
    templates = [
        TEMPLATES[name] for one in TESTS["tests"] if (name := one["input"].get("template"))
    ]
    with ModelHosts() as hosts, RunPodPlane() as plane:
        for template in templates:
            owner, name, _, _, path = urlsplit(template["checkpoint"]["url"]).path[1:].split("/", 4)
            hosts.add_hf(f"{owner}/{name}", path, safetensors(SD1))
        environ = {"TEMPLATES_FILE": str(PROJECT / "templates.json"), **NO_KEYS, **SETTINGS}
        with running_worker(tmp_path, plane, hosts=hosts, checkpoints=(), **environ) as worker:
            health, picture = (completed(worker.run(one["input"])) for one in TESTS["tests"])
    assert health["engine"]["state"] == "running"
    assert [model["name"] for model in picture["models"]] == ["v1-5-pruned-emaonly-fp16"]
    assert len(picture["images"]) == 1
