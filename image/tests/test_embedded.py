"""The `embedded` image: built, started by its entry point, given a job, and stopped."""

import json
from urllib.parse import urlsplit

import checks
import pytest
from containers import LocalApi, changed_code, layers, run
from fakes import tiny_models
from fakes.a1111.process import free_port
from fakes.runpod_plane import RunPodPlane

BOOT = 180.0  # seconds


@pytest.fixture(scope="module")
def image(build):
    return build("embedded")


def test_a_job_is_done_and_sigterm_ends_it_cleanly(image, new_container):
    container = new_container(image)
    api = LocalApi(container, BOOT)
    checks.check_processes(container, "python -m engine")
    checks.check_is_loopback_only(urlsplit(api.engine).port)

    output = api.run_job(prompt="a red circle on a blue background", seed=1)

    picture = checks.picture(output).convert("RGB")
    red, blue = picture.getpixel((128, 128)), picture.getpixel((5, 5))
    assert red[0] > 150 > red[2]
    assert blue[2] > 150 > blue[0]
    assert output["models"][0]["name"] == "demo-shapes"
    assert checks.check_health(container, WEBUI_URL=api.engine).returncode == 0

    assert container.stop() == 0  # after its jobs
    health = checks.check_health(container, WEBUI_URL=api.engine)
    assert health.returncode == 1, health.stdout
    print(container.text())


def test_it_works_for_runpod_and_stops_on_sigterm(image, new_container):
    container = new_container(image)
    with RunPodPlane() as plane:
        address = {"WEBUI_URL": f"http://127.0.0.1:{free_port()}"}
        container.start(**plane.worker_env(), **address)
        job = plane.wait(plane.submit({"prompt": "a blue square", "seed": 3}), BOOT)
        assert job["status"] == "COMPLETED", container.text()
        assert checks.picture(job["output"]).size == (256, 256)

        assert container.stop() == 0
    print(container.text())


def test_a_job_from_the_command_line_leaves_a_picture(image, new_container):
    container = new_container(image)
    job = {"input": {"prompt": "a green star", "template": "demo_striped", "seed": 2}}
    container.start("--test_input", json.dumps(job), OUTPUT_DIR="/outputs")

    assert container.process.wait(BOOT) == 0, container.text()
    (picture,) = container.file("/outputs").rglob("*.png")
    assert str(picture.stat().st_uid) == checks.WORKER


def test_where_runpod_counts_a_gpu_and_none_is_there_it_ends_instead_of_using_the_cpu(
    image, new_container
):
    container = new_container(image)
    container.start(RUNPOD_GPU_COUNT="1")

    assert container.process.wait(60) == 71
    assert "RUNPOD_GPU_COUNT=1, but" in container.text()


def test_a_container_starts_again_after_root_has_made_a_folder_on_its_volume(image, new_container):
    """As the worker's user, then as root, then again as the worker's user."""
    container = new_container(image)
    job = json.dumps({"input": {"prompt": "a green star"}})
    folder = container.file("/models") / "made-by-root"
    for number, user in enumerate((checks.WORKER, "0", checks.WORKER), 1):
        if user == "0":
            folder.mkdir()
            folder.chmod(0o755)
        elif folder.exists():
            run("chown", checks.WORKER, folder)  # what the entry point advises
        container.start("--test_input", job, OUTPUT_DIR="/outputs")
        assert container.process.wait(BOOT) == 0, container.text()
        stays_root = "stays root, because user 1000 cannot write /models/made-by-root"
        assert (stays_root in container.text()) == (user == "0")
        pictures = sorted(
            container.file("/outputs").rglob("*.png"), key=lambda p: p.stat().st_mtime
        )
        assert len(pictures) == number
        assert str(pictures[-1].stat().st_uid) == user


def test_the_models_of_the_image_before_serve_the_new_one(image, new_container, old_code, tmp_path):
    """The old worker fetches the model; the new one has no network."""
    container = new_container(image)
    checkpoint = tmp_path / "alpha.safetensors"
    tiny_models.write(tiny_models.make_checkpoint(), checkpoint)
    container.fetch_with_old_code(old_code, checkpoint)
    job = {"prompt": "a fox", "checkpoint": "alpha.safetensors", "steps": 2}
    environ = {"DEFAULT_TEMPLATE": "none", "OUTPUT_DIR": "/outputs"}
    container.start("--test_input", json.dumps({"input": job}), **environ)

    assert container.process.wait(BOOT) == 0, container.text()
    assert len([*container.file("/outputs").rglob("*.png")]) == 1


def test_a_wrong_setting_ends_it_with_78(image, new_container):
    container = new_container(image)
    container.start(JOB_TIMEOUT="soon")

    assert container.process.wait(60) == 78
    assert "JOB_TIMEOUT='soon'" in container.text()


def test_the_configuration_of_the_image(image, new_container):
    inspected = new_container(image).image
    checks.check_history(inspected)
    assert inspected["config"]["Labels"]["org.opencontainers.image.licenses"] == "MIT"


SMALL_LAYER = 50e6  # bytes: our code with the demo model, not an environment


def test_a_change_of_the_code_makes_only_small_layers_again(image, build):
    before = {layer.digest for layer in layers(image)}
    with changed_code():
        again = [one for one in layers(build("embedded")) if one.digest not in before]
    print("new layers, bytes:", *(layer.size for layer in again))
    assert again
    assert max(layer.size for layer in again) < SMALL_LAYER
