"""A job that is sent as one request for each iteration makes what the whole request makes."""

import json

import pytest

from benchmarks.parity.img2img import sent
from worker.generation import iterations
from worker.generation.payload import Expected, Payload
from worker.generation.picture_answer import PictureAnswer

SMALL = {
    "prompt": "a cat",
    "seed": 7,
    "subseed": 9,
    "steps": 2,
    "width": 64,
    "height": 64,
    "n_iter": 3,
}
MASKED = {"init_images": ["@square"], "mask": "@mask", "denoising_strength": 0.8}
HIRES = {"enable_hr": True, "denoising_strength": 0.5, "hr_upscaler": "Lanczos"}


def answer(client, route, body):
    answer = client.post(route, **sent(body))
    assert answer.status_code == 200, answer.text
    fields = answer.json()
    facts = json.loads(fields["info"])
    return PictureAnswer(fields["images"], fields["parameters"], fields["info"], facts)


@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("txt2img", {"sampler_name": "Euler a"}),
        ("txt2img", {"batch_size": 2, "sampler_name": "DPM++ SDE", "subseed": 4}),
        ("txt2img", {"subseed": 4, "subseed_strength": 0.4, "batch_size": 2}),
        ("txt2img", {"override_settings": {"randn_source": "NV", "eta_noise_seed_delta": 5}}),
        ("txt2img", HIRES | {"n_iter": 2, "batch_size": 2, "sampler_name": "Euler a"}),
        ("txt2img", HIRES | {"n_iter": 2, "hr_upscaler": "Latent", "negative_prompt": "a dog"}),
        ("img2img", {"init_images": ["@square"], "batch_size": 2}),
        ("img2img", {"init_images": ["@square", "@wide"], "batch_size": 2, "n_iter": 2}),
        ("img2img", MASKED | {"inpainting_fill": 3, "inpaint_full_res": True}),
        ("img2img", MASKED | {"inpainting_fill": 0, "inpaint_full_res": False, "n_iter": 2}),
    ],
)
def test_iterations_as_requests_of_their_own_make_the_same_answer_bit_for_bit(client, route, more):
    body = SMALL | more
    payload = Payload(body, Expected(None), route=route)
    assert iterations.why_whole(payload, ()) is None
    requests = iterations.split(payload, None)
    assert len(requests) == body["n_iter"]
    made = iterations.joined(payload, [answer(client, route, one.body) for one in requests])
    whole = answer(client, route, body)
    assert made.images == whole.images  # the files, with the infotext of each picture
    assert len(made.images) == body["n_iter"] * body.get("batch_size", 1)
    facts = whole.facts | {"job_timestamp": made.facts["job_timestamp"]}
    assert made.facts == json.loads(made.info) == facts
    assert list(made.facts) == list(facts)
    assert made.parameters == whole.parameters
    assert made.seeds == whole.facts["all_seeds"]


def test_latent_noise_in_a_mask_is_that_of_the_first_iteration_so_it_is_not_split(client):
    body = SMALL | MASKED | {"inpainting_fill": 2, "inpaint_full_res": False}
    payload = Payload(body, Expected(None), route="img2img")
    assert "inpainting_fill" in iterations.why_whole(payload, ())
    whole = answer(client, "img2img", body)
    apart = [answer(client, "img2img", one.body) for one in iterations.split(payload, None)]
    assert iterations.joined(payload, apart).images != whole.images
