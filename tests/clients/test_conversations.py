"""What each client says from its first request to its last, on both gateways.

Those that can be installed have a test of their own beside this one.
"""

import base64
import http.client
import io
import json
from pathlib import Path

import pytest
import requests
from fakes.a1111.process import wait_until
from fakes.input_pictures import saved, scene
from fakes.worker_process import FOREVER
from PIL import Image

FOLDER = Path(__file__).parent
TALKS = {one["client"]: one for one in json.loads((FOLDER / "conversations.json").read_text())}
PICTURE = base64.b64encode(saved(scene(64, 64), "PNG")).decode()
# Smaller than the clients' own values, so that the tests are quick; a name of this worker's store.
SMALL = {"width": 64, "height": 64, "steps": 4, "hr_second_pass_steps": 1.5}
KEYS = {
    "txt2img": {"images", "parameters", "info"},
    "img2img": {"images", "parameters", "info"},
    "extra-single-image": {"html_info", "image"},
    "extra-batch-images": {"html_info", "images"},
    "png-info": {"info", "items", "parameters"},
}


def bodies(client):
    text = (FOLDER.parent / "translation/bodies.json").read_text().replace("<picture>", PICTURE)
    for name in ("base.safetensors [0123456789]", "base"):
        text = text.replace(f'"{name}"', '"first"')
    for one in json.loads(text):
        if one["client"] == client and one["route"] in KEYS:
            small = {key: value for key, value in SMALL.items() if key in one["body"]}
            yield one["route"], one["body"] | small


class Client:
    """One client of the table at the address of a gateway."""

    def __init__(self, url, talk):
        self.url, self.talk = url, talk
        self.session = requests.Session()
        self.session.headers.update({"User-Agent": talk["client"], "Authorization": ""})

    def path(self, route):
        return f"{self.url}{route if route[0] == '/' else f'/sdapi/v1/{route}'}"

    def get(self, route, keys=()):
        answer = self.session.get(self.path(route), timeout=60)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        found = answer.json()
        for one in found if isinstance(found, list) else [found]:
            assert set(keys) <= one.keys(), route
        return found

    def post(self, route, body, status=200):
        answer = self.session.post(self.path(route), json=body, timeout=60)
        assert answer.status_code == status, (route, answer.text)
        return answer.json()


@pytest.fixture(params=TALKS)
def client(request, url):
    client = Client(url, TALKS[request.param])
    yield client
    client.post("options", {"sd_model_checkpoint": None})
    client.session.close()


def test_it_connects_lists_chooses_and_draws(client):
    for route, keys in {**client.talk["connect"], **client.talk["lists"]}.items():
        client.get(route, keys)
    options, choose = client.get("options"), client.talk.get("choose")
    title = client.get("sd-models")[-1]["title"]
    if choose:
        all_options = options if choose == "all options" else {}
        assert client.post("options", all_options | {"sd_model_checkpoint": title}) is None
        assert client.get("options")["sd_model_checkpoint"] == title
    for route, body in bodies(client.talk["client"]):
        answer = client.post(route, body)
        assert answer.keys() == KEYS[route]
        check_pictures(answer, client.talk.get("info", []))
        if "after" in client.talk and "images" in answer:
            image = f"data:image/png;base64,{answer['images'][0]}"
            found = client.post(client.talk["after"], {"image": image})
            assert found["info"].startswith("a fox")
        own = body.get("override_settings", {}).get("sd_model_checkpoint")
        if choose and route.endswith("2img") and not own:
            name = json.loads(answer["info"])["sd_model_name"]
            assert title.startswith(f"{name}.safetensors")


def check_pictures(answer, info):
    for text in [*answer.get("images", []), *filter(None, [answer.get("image")])]:
        Image.open(io.BytesIO(base64.b64decode(text, validate=True))).verify()
    if "images" in answer and "parameters" in answer:
        assert set(info) <= json.loads(answer["info"]).keys()


def test_it_cancels(client, worker):
    engine = worker.worker
    engine.fault("slow_steps", seconds=0.5, times=FOREVER)
    try:
        route, body = next(bodies(client.talk["client"]))
        connection = http.client.HTTPConnection(client.url.removeprefix("http://"))
        headers = dict(client.session.headers) | {"Content-Type": "application/json"}
        connection.request("POST", f"/sdapi/v1/{route}", json.dumps(body | {"steps": 150}), headers)
        engine.wait_until_generating()
        assert client.get("progress")["state"]["job_count"] == 1
        if "interrupt" in client.talk["cancel"]:
            assert client.session.post(client.path("interrupt"), timeout=60).json() == {}
        if "hang up" not in client.talk["cancel"]:
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["error"]) == (409, "CANCELLED")
        connection.close()
        wait_until(engine.engine_is_idle, "an idle engine")
        wait_until(lambda: not client.get("progress")["state"]["job_count"], "no job")
    finally:
        engine.no_faults()


def test_it_gets_the_sentence_of_an_error_where_it_may_look_for_it(client, worker):
    route, body = next(bodies(client.talk["client"]))
    wrong = {"sampler_name": "nope", "sampler_index": "nope"}
    answer = client.post(route, body | wrong, status=422)
    assert "'nope'" in answer["detail"]
    assert (answer["errors"], answer["error"]) == (answer["detail"], "INVALID_INPUT")
    if client.url == worker.url:
        assert f"of {client.talk['client']}: HTTP 422" in worker.worker.log()
