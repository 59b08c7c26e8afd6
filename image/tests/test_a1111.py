"""A1111's image on the CPU: tests its content, not its speed."""

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
ON_THE_CPU = "--use-cpu all --precision full --no-half"
LORA = {  # for SDXL
    f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.{part}.weight": shape
    for part, shape in {"lora_down": (1, 2048), "lora_up": (1, 1)}.items()
}


def test_its_python_environments_are_installed_from_the_lock_files(build, new_container):
    container = new_container(build("a1111-python")[0])
    modules = "torch, torchvision, xformers.ops, gradio, pytorch_lightning, cv2, open_clip"
    done = container.run(
        "/opt/a1111/bin/python", "-c", f"import {modules}; print(torch.__version__)"
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.1.2+cu121"
    assert '"sm_90"' in container.file("/opt/a1111/torch_build.json").read_text()


@pytest.fixture(scope="module")
def image(build, sources):
    return build("a1111", *sources)[0]


def test_without_a_gpu_it_ends_at_once_with_one_sentence(image, new_container):
    container = new_container(image)
    container.start(MODELS_DIR="/models")

    assert container.process.wait(30) == 71
    messages = [line for line in container.text().splitlines() if not line.startswith(BUILDAH)]
    (sentence,) = messages
    assert "There is no NVIDIA GPU here, and A1111 needs one: start the container with" in sentence


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Stable Diffusion 1 in its real size and layout, with random weights."""
    path = write_checkpoint(tmp_path_factory.mktemp("sd1") / "random-sd1.safetensors")
    path.chmod(0o644)
    yield path
    path.unlink()


def test_the_real_a1111_does_a_job(image, new_container, checkpoint):
    container = new_container(image)
    folder = container.file("/models/Stable-diffusion")
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    run("chown", "-R", checks.WORKER, folder)
    api = LocalApi(container, BOOT, WEBUI_ARGS=ON_THE_CPU, DEFAULT_TEMPLATE="none")
    checks.check_processes(container, "webui.py --api --nowebui")
    checks.check_is_loopback_only(urlsplit(api.engine).port)

    job = {"prompt": "a fox", "checkpoint": "random-sd1.safetensors", "steps": 2, "seed": 1}
    output = api.run_job(**job, width=64, height=64, clip_skip=2, sampler_name="Euler a")

    assert checks.picture(output).size == (64, 64)
    assert output["models"][0]["name"] == "random-sd1"
    assert checks.check_health(container, WEBUI_URL=api.engine).returncode == 0
    assert container.stop() == 143  # the local API's server ends by the signal
    log = container.text()
    print(log)
    assert "no libtcmalloc" not in log


def test_templates_are_baked_and_no_layer_has_the_key(build, new_container, tmp_path):
    secret = tmp_path / "key"
    with ModelHosts() as hosts:
        secret.write_text(hosts.civitai_key)
        hosts.add_model(version_id=1590699, data=safetensors(SDXL), name="jib.safetensors")
        hosts.add_model(
            version_id=135867, data=safetensors(LORA), name="xl.safetensors", kind="LORA"
        )
        mirrors = (hosts.civitai, hosts.storage, hosts.storage_b)
        image, _ = build(
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
