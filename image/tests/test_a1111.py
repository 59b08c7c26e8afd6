"""A1111's image on the CPU: tests its content, not its speed."""

import json
import shutil
from urllib.parse import urlsplit

import checks
import pytest
from containers import LocalApi, run
from fakes.hosts.model_hosts import ModelHosts
from fakes.model_files import SDXL, safetensors
from sd1 import write_checkpoint

BOOT = 300.0  # seconds
BUILDAH = ("subprocess exited with status", "Error: exit status")  # buildah's own messages
LORA = {  # for SDXL
    f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.{part}.weight": shape
    for part, shape in {"lora_down": (1, 2048), "lora_up": (1, 1)}.items()
}


def test_its_python_environments_are_installed_from_the_lock_files(build, new_container):
    container = new_container(build("a1111-python"))
    modules = "torch, torchvision, xformers.ops, gradio, pytorch_lightning, cv2, open_clip"
    done = container.run(
        "/opt/a1111/bin/python", "-c", f"import {modules}; print(torch.__version__)"
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.10.0+cu128"
    built = json.loads(container.file("/opt/a1111/torch_build.json").read_text())
    assert {"sm_75", "sm_90", "sm_120"} <= set(built["architectures"])
    assert (built["cuda"], built["xformers"]) == ("12.8", "0.0.34")


@pytest.fixture(scope="module")
def image(build, sources):
    return build("a1111", *sources)


def test_without_a_gpu_it_ends_at_once_with_one_sentence(image, new_container):
    container = new_container(image)
    container.start(MODELS_DIR="/models")

    assert container.process.wait(30) == 71
    messages = [line for line in container.text().splitlines() if not line.startswith(BUILDAH)]
    introduction, sentence = messages
    assert "engine a1111; models in /models" in introduction
    assert "There is no NVIDIA GPU here, and A1111 needs one" in sentence
    assert "start the container with `--gpus all`" in sentence


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Stable Diffusion 1 in its real size and layout, with random weights."""
    path = write_checkpoint(tmp_path_factory.mktemp("sd1") / "random-sd1.safetensors")
    path.chmod(0o644)
    yield path
    path.unlink()


def the_job(api):
    """Has the small picture drawn by the checkpoint of real size; returns the job's output."""
    job = {"prompt": "a fox", "checkpoint": "random-sd1.safetensors", "steps": 2, "seed": 1}
    return api.run_job(**job, width=64, height=64, clip_skip=2, sampler_name="Euler a")


def test_the_real_a1111_does_a_job(image, new_container, checkpoint):
    container = new_container(image)
    folder = container.file("/models/Stable-diffusion")
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    run("chown", "-R", checks.WORKER, folder)
    api = LocalApi(container, BOOT, DEVICE="cpu", DEFAULT_TEMPLATE="none")
    checks.check_processes(container, "webui.py --api --nowebui")
    checks.check_is_loopback_only(urlsplit(api.engine).port)

    output = the_job(api)

    assert checks.picture(output).size == (64, 64)
    assert output["models"][0]["name"] == "random-sd1"
    assert checks.check_health(container, WEBUI_URL=api.engine).returncode == 0
    assert container.stop() == 0
    log = container.text()
    print(log)
    assert "no libtcmalloc" not in log


def test_the_models_and_settings_of_the_image_before_serve_the_new_one(
    image, new_container, old_code, checkpoint
):
    """The old worker fetches the model and writes config.json; the new one has no network."""
    container = new_container(image)
    container.fetch_with_old_code(old_code, checkpoint)
    container.old_manager("prepare-engine")
    config = container.file("/stable-diffusion-webui/config.json")
    saved = {"cross_attention_optimization": "xformers", "sd_model_checkpoint": "gone.safetensors"}
    config.write_text(json.dumps(json.loads(config.read_text()) | saved))

    api = LocalApi(container, BOOT, DEVICE="cpu", DEFAULT_TEMPLATE="none")
    output = the_job(api)

    assert checks.picture(output).size == (64, 64)
    assert output["models"][0]["name"] == "random-sd1"


def test_templates_are_baked_and_no_layer_has_the_key(build, new_container, tmp_path):
    secret = tmp_path / "key"
    with ModelHosts() as hosts:
        secret.write_text(hosts.civitai_key)
        hosts.add_model(version_id=1590699, data=safetensors(SDXL), name="jib.safetensors")
        hosts.add_model(
            version_id=135867, data=safetensors(LORA), name="xl.safetensors", kind="LORA"
        )
        mirrors = (hosts.civitai, hosts.storage, hosts.storage_b)
        image = build(
            "models",
            "BAKE=--template jib_mix_realistic",
            f"CIVITAI_URL={hosts.civitai}",
            f"TRUSTED_HOSTS={','.join(urlsplit(url).netloc for url in mirrors)}",
            secrets=(f"id=civitai_api_key,src={secret}",),
        )
        key = hosts.civitai_key
    container = new_container(image)

    models = container.file("/app/models")
    names = {path.name for path in models.rglob("*.safetensors")}
    assert {
        "jib_mix_illustrious_realistic_v2.safetensors",
        "detail_tweaker_xl.safetensors",
    } <= names
    checks.check_history(container.image, key)
    files = [path for path in models.rglob("*") if path.is_file()]
    assert [path for path in files if key.encode() in path.read_bytes()] == []
