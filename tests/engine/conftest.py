"""A data folder with two tiny checkpoints, a LoRA and a damaged file; and an engine serving it."""

import base64
import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from fakes import tiny_models
from fakes.a1111.process import free_port
from PIL import Image

ROOT = Path(__file__).parents[2]

# on a busy machine several threads mostly wait for each other
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    checkpoints, loras = folder / "models/Stable-diffusion", folder / "models/Lora"
    tiny_models.write(tiny_models.make_checkpoint(0), checkpoints / "alpha.safetensors")
    tiny_models.write(tiny_models.make_checkpoint(1), checkpoints / "sub/beta.safetensors")
    (checkpoints / "zz-damaged.safetensors").write_bytes(b"not a model" * 100)
    tiny_models.write(tiny_models.make_lora(0), loras / "style.v1.safetensors")
    (loras / "damaged.safetensors").write_bytes(b"<html>404</html>")
    return folder


class Client:
    """requests against one engine process."""

    def __init__(self, data_dir):
        self.port = free_port()
        command = [sys.executable, "-m", "engine", "--threads", "1", "--data-dir", str(data_dir)]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], cwd=ROOT)

    def request(self, method, path, **kwargs):
        url = f"http://127.0.0.1:{self.port}/sdapi/v1/{path}"
        return requests.request(method, url, timeout=60, **kwargs)

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **body):
        return self.request("POST", path, json=body)

    def txt2img(self, **fields):
        small = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}
        return self.post("txt2img", **(small | fields))

    def pictures(self, **fields):
        answer = self.txt2img(**fields)
        assert answer.status_code == 200, answer.text
        return [decode_png(image) for image in answer.json()["images"]]

    def picture(self, **fields):
        return self.pictures(**fields)[0]

    def info(self, **fields):
        return json.loads(self.txt2img(**fields).json()["info"])

    def wait_until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.ConnectionError):
                if condition():
                    return
            time.sleep(0.05)
        pytest.fail(f"not within {seconds} s")

    def close(self):
        self.process.kill()
        self.process.wait()


def decode_png(image):
    """base64 PNG -> (height, width, 3); pictures are compared by their pixels only."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"), dtype=int)


@pytest.fixture(scope="session")
def decode():
    return decode_png


@pytest.fixture(scope="module")
def client(data_dir):
    client = Client(data_dir)
    try:
        client.wait_until(lambda: client.get("loras").ok, seconds=120)
        yield client
    finally:
        client.close()
