"""A1111's own tests of its API against the embedded engine, if A1111_CHECKOUT names a checkout.

They come with A1111 (AGPL) and stay there. Those that need A1111's code in the same process are
left out.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from fakes.a1111.process import free_port, wait_until

CHECKOUT = os.environ.get("A1111_CHECKOUT")
ROOT = Path(__file__).parents[2]
SUITE = [f"test_{name}.py" for name in ("txt2img", "img2img", "extras", "utils")]
# {test: why the embedded engine refuses it}
REFUSED = {
    "test_txt2img_with_restore_faces_performed": "it has no models that restore faces",
    "test_img2img_sd_upscale_performed": "it has no scripts",
    "test_options_write": "it has no options of A1111's page (send_seed)",
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
def engine_url(tmp_path):
    checkpoint = tmp_path / "models/Stable-diffusion/tiny.safetensors"
    tiny_models.write(tiny_models.make_checkpoint(), checkpoint)
    port = free_port()
    command = [sys.executable, "-m", "engine", "--port", str(port), "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}"

        def answers():
            try:
                return requests.get(f"{url}/sdapi/v1/loras", timeout=5).ok
            except requests.ConnectionError:
                return False

        try:
            wait_until(answers, "the engine", 120)
            yield url
        finally:
            process.terminate()


def test_passes_all_but_what_it_refuses(engine_url, tmp_path):
    (tmp_path / "base_url_plugin.py").write_text(PLUGIN)
    report = tmp_path / "report.xml"
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "base_url_plugin"]
    options += ["-c", os.devnull, f"--rootdir={CHECKOUT}/test", f"--junitxml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"{CHECKOUT}/test/{name}" for name in SUITE)],
        env=os.environ | {"ENGINE_URL": engine_url, "PYTHONPATH": str(tmp_path)},
        check=False,
        timeout=600,
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed = {case.get("name"): not list(case) for case in cases}
    assert {name for name, is_good in passed.items() if not is_good} == set(REFUSED)
    assert len(passed) > len(REFUSED)
