"""Tiny random models on disk, and one engine in this process that serves them over HTTP."""

import base64
import contextlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch
import uvicorn
from fakes import tiny_models
from fakes.a1111.process import wait_until
from PIL import Image

from engine.__main__ import bind
from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.server import create_app

# on a busy machine, several threads mostly wait for each other
torch.set_num_threads(1)
SMALL = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    checkpoints, loras = folder / "models/Stable-diffusion", folder / "models/Lora"
    tiny_models.write(tiny_models.make_checkpoint(0), checkpoints / "alpha.safetensors")
    tiny_models.write(tiny_models.make_checkpoint(1), checkpoints / "sub/beta.safetensors")
    tiny_models.write(tiny_models.make_checkpoint(xl=True), checkpoints / "xl.safetensors")
    (checkpoints / "zz-damaged.safetensors").write_bytes(b"not a model" * 100)
    for name, is_xl in (("style.v1", False), ("xl", True)):
        state = tiny_models.make_lora(xl=is_xl)
        tiny_models.write(state, loras / f"{name}.safetensors")
        for part in ("unet", "te", "te1", "te2"):
            half = {key: value for key, value in state.items() if key.startswith(f"lora_{part}_")}
            tiny_models.write(half, loras / f"{name}-{part}.safetensors")
    tiny_models.write(tiny_models.make_lora(xl=True, sgm=True), loras / "xl-sgm.safetensors")
    (loras / "damaged.safetensors").write_bytes(b"<html>404</html>")
    return folder


class Client:
    """requests against the engine on this port."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}/sdapi/v1/"
        self.threads = ThreadPoolExecutor(4)

    def get(self, path):
        return requests.get(self.url + path, timeout=60)

    def post(self, path, **body):
        return requests.post(self.url + path, json=body, timeout=60)

    def txt2img(self, **fields):
        return self.post("txt2img", **(SMALL | fields))

    def pictures(self, **fields):
        answer = self.txt2img(**fields)
        assert answer.status_code == 200, answer.text
        return [decode_png(image) for image in answer.json()["images"]]

    def picture(self, **fields):
        return self.pictures(**fields)[0]

    def info(self, **fields):
        return json.loads(self.txt2img(**fields).json()["info"])

    def state(self):
        return self.get("progress").json()["state"]

    def start(self, **fields):
        """Begin a job beside the test: a future of the answer, once the first step is done."""
        job = self.threads.submit(self.txt2img, **fields)
        wait_until(lambda: self.state()["sampling_step"] > 0, "the first step", 120)
        return job

    def wait(self):
        """Wait for the start of the engine."""

        def answers():
            with contextlib.suppress(requests.ConnectionError):
                return self.get("loras").ok

        wait_until(answers, "the engine", 120)


def decode_png(image):
    """base64 PNG -> (height, width, 3); pictures are compared by their pixels only."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"), dtype=int)


@pytest.fixture(scope="session")
def decode():
    return decode_png


@contextlib.contextmanager
def serving(data_dir):
    """A new engine with these files, in this process."""
    engine = Engine(data_dir, Options(data_dir / "config.json"), threads=1)
    engine.start()
    server = uvicorn.Server(uvicorn.Config(create_app(engine), log_config=None))
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    client = Client(bound.getsockname()[1])
    client.wait()
    engine._queue(int)  # it has loaded: accelerate's loading is not safe in two threads at once
    yield client
    engine.close()
    engine._jobs.shutdown()
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def serve():
    return serving


@pytest.fixture(scope="session")
def client(data_dir):
    with serving(data_dir) as client:
        yield client


@pytest.fixture(scope="module")
def cat(client):
    """The picture that most tests compare with."""
    return client.picture()
