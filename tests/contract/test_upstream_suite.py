"""A1111's own tests of its API, if A1111_CHECKOUT names a checkout: against the embedded engine,
and against the gateway of a worker with this engine.

They come with A1111 (AGPL) and stay there. Those that need A1111's code in the same process are
left out.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from fakes.a1111.process import free_port, wait_until

CHECKOUT = os.environ.get("A1111_CHECKOUT")
ROOT = Path(__file__).parents[2]
SUITE = [f"test_{name}.py" for name in ("txt2img", "img2img", "extras", "utils")]
# {test: why it is refused}
BY_ENGINE = {
    "test_txt2img_with_restore_faces_performed": "it has no models that restore faces",
    "test_img2img_sd_upscale_performed": "it has no scripts",
    "test_options_write": "it has no options of A1111's page (send_seed)",
}
BY_GATEWAY = {
    **BY_ENGINE,
    "test_txt2img_with_hrfix_performed": "a second pass with denoising_strength 0 draws nothing",
}
# the fixture of pytest-base-url
PLUGIN = """
import os, pytest
@pytest.fixture(scope="session")
def base_url():
    return os.environ["ENGINE_URL"]
"""

if not CHECKOUT:
    pytest.skip("A1111_CHECKOUT is not set", allow_module_level=True)
tiny_models = pytest.importorskip("fakes.tiny_models", reason="the engine is not installed")


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def start(tmp_path, port):
    """Start a program that answers at `port`; it ends with the test."""
    with ExitStack() as stack:
        checkpoint = tmp_path / "models/Stable-diffusion/tiny.safetensors"
        tiny_models.write(tiny_models.make_checkpoint(), checkpoint)

        def start(route, *command, **environ):
            environ = os.environ | environ
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=environ))
            stack.callback(process.terminate)

            def answers():
                try:
                    return requests.get(f"http://127.0.0.1:{port}{route}", timeout=5).status_code
                except requests.ConnectionError:
                    return None

            wait_until(lambda: answers() == 200, "its answer", 120)

        yield start


def test_the_engine_passes_all_but_what_it_refuses(start, port, tmp_path):
    options = ["--port", str(port), "--data-dir", str(tmp_path)]
    start("/sdapi/v1/loras", sys.executable, "-m", "engine", *options)
    assert failures(tmp_path, port) == set(BY_ENGINE)


def test_the_gateway_passes_all_but_what_the_worker_refuses(start, port, tmp_path):
    settings = {
        "ENGINE": "embedded",
        "DEVICE": "cpu",
        "DEFAULT_TEMPLATE": "none",
        "PYTHON": sys.executable,
        "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
        "MODELS_DIR": str(tmp_path / "models"),
        "WEBUI_DIR": str(tmp_path / "webui"),
        "BAKED_MODELS_DIR": str(tmp_path / "baked"),
        "RUN_DIR": str(tmp_path / "run"),
    }
    start("/ping", "./start.sh", "--rp_serve_api", "--rp_api_port", str(port), **settings)
    assert failures(tmp_path, port) == set(BY_GATEWAY)


def failures(tmp_path, port):
    """The names of A1111's tests that fail at this port."""
    (tmp_path / "base_url_plugin.py").write_text(PLUGIN)
    report = tmp_path / "report.xml"
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "base_url_plugin"]
    options += ["-c", os.devnull, f"--rootdir={CHECKOUT}/test", f"--junitxml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"{CHECKOUT}/test/{name}" for name in SUITE)],
        env=os.environ | {"ENGINE_URL": f"http://127.0.0.1:{port}", "PYTHONPATH": str(tmp_path)},
        check=False,
        timeout=600,
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed = {case.get("name"): not list(case) for case in cases}
    assert len(passed) > len(BY_GATEWAY)
    return {name for name, is_good in passed.items() if not is_good}
